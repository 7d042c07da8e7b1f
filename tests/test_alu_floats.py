"""Float arithmetic of the emulator against exact fractions: every result is the correctly rounded one, to the bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from alu_numbers import DTYPE, KEEP, SHAPE, edges, exact_binary, exact_fma, larger, middle, nan_or, numbers, rounded, same, smaller
from hypothesis import given
from hypothesis import strategies as st

from iq.emulator.alu import VECTOR, Mode, UnsupportedMode

pytestmark = pytest.mark.usefixtures("quiet")


def run(name: str, *sources: Any, mode: Mode = KEEP) -> Any:
    """One lane through a row."""
    op = VECTOR[name]
    types = {**DTYPE, "i32": np.int32, "i16": np.int16, "u32": np.uint32, "u16": np.uint16, "mask": bool, "mix": np.float32}
    result = op.bind(mode)(*(np.array([[x]], types[code]) for x, code in zip(sources, op.sources, strict=True)))
    assert not isinstance(result, tuple)
    assert result.dtype == {**types, "u8": np.uint8}[op.result], (name, result.dtype)
    return result[0, 0]


@pytest.mark.parametrize("code", ["f16", "f32", "f64"])
@pytest.mark.parametrize("name", ["add", "sub", "subrev", "mul"])
def test_sums_and_products_are_correctly_rounded(name: str, code: str) -> None:
    if f"v_{name}_{code}" not in VECTOR:
        assert code == "f64" and name.startswith("sub")
        return

    @given(numbers(code), numbers(code))
    def check(a: float, b: float) -> None:
        assert same(run(f"v_{name}_{code}", a, b), exact_binary(name, a, b, code))

    check()


@pytest.mark.parametrize("code", ["f16", "f32", "f64"])
@pytest.mark.parametrize("name", ["fma", "fmac", "fmaak", "fmamk"])
def test_fma_rounds_once(name: str, code: str) -> None:
    if f"v_{name}_{code}" not in VECTOR:
        assert code == "f64" and name.startswith("fma") and name != "fma"
        return

    @given(numbers(code), numbers(code), numbers(code))
    def check(a: float, b: float, c: float) -> None:
        assert same(run(f"v_{name}_{code}", a, b, c), exact_fma(a, b, c, code))

    check()


@pytest.mark.parametrize("code", ["f16", "f32", "f64"])
def test_fma_where_rounding_twice_goes_wrong(code: str) -> None:
    """1 + ulp/2 is a tie, which a far smaller addend breaks; in a wider type the addend would be lost."""
    precision, lowest, _ = SHAPE[code]
    half_ulp = 2.0**-precision
    tiny = 2.0 ** (lowest // 2)
    product = f"v_fma_{code}"
    for base in (1.0, 1.0 + 2 * half_ulp):
        up, down = base + 2 * half_ulp, base
        # half_ulp = x * y exactly, plus or minus tiny * tiny through c is impossible: put the tie in c and the breaker in the product.
        tie_low = rounded(Fraction(base) + Fraction(half_ulp), code)
        assert tie_low in (up, down)
        x = 1.0 + 2 * half_ulp
        # x * (1 - 2 half_ulp) = 1 - 4 half_ulp^2: just below 1.
        assert same(run(product, x, 1.0 - 2 * half_ulp, half_ulp), exact_fma(x, 1.0 - 2 * half_ulp, half_ulp, code))
        assert same(run(product, -x, 1.0 - 2 * half_ulp, -half_ulp), exact_fma(-x, 1.0 - 2 * half_ulp, -half_ulp, code))
    assert same(run(product, tiny, tiny, 1.0 + 2 * half_ulp), exact_fma(tiny, tiny, 1.0 + 2 * half_ulp, code))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("code", ["f16", "f32"])
def test_fma_near_ties(code: str, seed: int) -> None:
    """Products whose low bits put the sum at a tie, or one unit of the product beside it."""
    rng = np.random.default_rng(seed)
    precision, _, _ = SHAPE[code]
    a = (rng.integers(2 ** (precision - 1), 2**precision, 300) * 2.0 ** (1 - precision)).astype(DTYPE[code])
    b = (rng.integers(2 ** (precision - 1), 2**precision, 300) * 2.0 ** (1 - precision)).astype(DTYPE[code])
    # c large: the product sits around half a unit of c's last place.
    c = (np.ldexp(rng.integers(2 ** (precision - 1), 2**precision, 300) * 1.0, 1 - precision + precision)).astype(DTYPE[code])
    a = np.where(rng.random(300) < 0.5, DTYPE[code](1), a)
    got = VECTOR[f"v_fma_{code}"].bind(KEEP)(a, b, c)
    for i in range(300):
        assert same(got[i], exact_fma(float(a[i]), float(b[i]), float(c[i]), code))


@pytest.mark.parametrize("mixed", ["fma", "mad"])
def test_mixed_precision_rounds_to_f32_and_then_to_its_result(mixed: str) -> None:
    @given(numbers("f32"), numbers("f32"), numbers("f32"))
    def check(a: float, b: float, c: float) -> None:
        if all(map(math.isfinite, (a, b, c))):
            for half in ("lo", "hi"):
                with np.errstate(over="ignore"):
                    wanted = np.float32(exact_fma(a, b, c, "f32")).astype(np.float16)
                assert same(run(f"v_{mixed}_mix{half}_f16", a, b, c), float(wanted))
            assert same(run(f"v_{mixed}_mix_f32", a, b, c), exact_fma(a, b, c, "f32"))

    check()
    low, high = VECTOR[f"v_{mixed}_mixlo_f16"], VECTOR[f"v_{mixed}_mixhi_f16"]
    assert (low.half, high.half, low.sources) == ("low", "high", ("mix", "mix", "mix"))


@pytest.mark.parametrize("code", ["f16", "f32"])
def test_mad_rounds_twice(code: str) -> None:
    @given(numbers(code), numbers(code), numbers(code))
    def check(a: float, b: float, c: float) -> None:
        if not all(map(math.isfinite, (a, b, c))):
            return
        flushed = (lambda x: math.copysign(0.0, x) if abs(x) < 2.0**-126 else x) if code == "f32" else (lambda x: x)
        a, b, c = map(flushed, (a, b, c))
        product = flushed(exact_binary("mul", a, b, code))
        wanted = flushed(exact_binary("add", product, c, code))
        for name in ("mad", "mac", "madak", "madmk"):
            assert same(run(f"v_{name}_{code}", a, b, c), wanted)

    check()
    assert VECTOR[f"v_mac_{code}"].tied and not VECTOR[f"v_mad_{code}"].tied


ORDERINGS: dict[str, tuple[int, Callable[..., float]]] = {
    "min": (2, smaller),
    "max": (2, larger),
    "min3": (3, lambda a, b, c: smaller(smaller(a, b), c)),
    "max3": (3, lambda a, b, c: larger(larger(a, b), c)),
    "med3": (3, middle),
    "minmax": (3, lambda a, b, c: larger(smaller(a, b), c)),
    "maxmin": (3, lambda a, b, c: smaller(larger(a, b), c)),
}
NAN_ORDERINGS: dict[str, tuple[int, Callable[..., float]]] = {
    "minimum": (2, nan_or(smaller)),
    "maximum": (2, nan_or(larger)),
    "minimum3": (3, nan_or(lambda a, b, c: smaller(smaller(a, b), c))),
    "maximum3": (3, nan_or(lambda a, b, c: larger(larger(a, b), c))),
    "minimummaximum": (3, nan_or(lambda a, b, c: larger(smaller(a, b), c))),
    "maximumminimum": (3, nan_or(lambda a, b, c: smaller(larger(a, b), c))),
}
ALL_ORDERINGS = {**ORDERINGS, **{f"{name}_num": row for name, row in ORDERINGS.items()}, **NAN_ORDERINGS}


@pytest.mark.parametrize("code", ["f16", "f32", "f64"])
@pytest.mark.parametrize("name", ALL_ORDERINGS)
def test_orderings_of_numbers_zeros_and_nans(name: str, code: str) -> None:
    row = f"v_{name}_{code}"
    count, wanted = ALL_ORDERINGS[name]
    if row not in VECTOR:
        assert code == "f64" and count == 3
        return
    some = [*edges(code)[:2], *edges(code)[12:16], *edges(code)[-4:]]
    grid = np.meshgrid(*[np.array(some, DTYPE[code])] * count, indexing="ij")
    got = VECTOR[row].bind(KEEP)(*grid)
    assert got.dtype == DTYPE[code]
    for result, *sources in zip(got.ravel(), *(g.ravel() for g in grid), strict=True):
        assert same(result, wanted(*map(float, sources))), (name, sources, result)


ROUNDINGS: dict[str, Callable[[Fraction], int]] = {
    "floor": math.floor,
    "ceil": math.ceil,
    "trunc": math.trunc,
    "rndne": round,  # Python rounds fractions half to even
}


@pytest.mark.parametrize("code", ["f16", "f32", "f64"])
@pytest.mark.parametrize("name", ROUNDINGS)
def test_rounding_to_integers(name: str, code: str) -> None:
    @given(st.one_of(numbers(code), st.integers(-40, 40).map(lambda n: n / 4)))
    def check(x: float) -> None:
        got = run(f"v_{name}_{code}", x)
        if not math.isfinite(x):
            assert same(got, x)
        else:
            assert same(got, math.copysign(abs(float(ROUNDINGS[name](Fraction(x)))), x))

    check()


@pytest.mark.parametrize("code", ["f16", "f32", "f64"])
def test_fract_frexp_ldexp(code: str) -> None:
    precision = SHAPE[code][0]

    @given(numbers(code), st.integers(-300, 300))
    def check(x: float, power: int) -> None:
        fraction, mantissa = run(f"v_fract_{code}", x), run(f"v_frexp_mant_{code}", x)
        exponent = run("v_frexp_exp_i16_f16" if code == "f16" else f"v_frexp_exp_i32_{code}", x)
        scaled = run(f"v_ldexp_{code}", x, power)
        if not math.isfinite(x):
            assert math.isnan(fraction) and same(mantissa, x) and exponent == 0 and same(scaled, x)
            return
        exact = Fraction(x) - math.floor(x)
        assert fraction == min(rounded(exact, code), 1 - 2.0**-precision)
        assert (same(mantissa, x) and exponent == 0) if x == 0 else Fraction(float(mantissa)) * Fraction(2) ** int(exponent) == Fraction(x)
        assert x == 0 or 0.5 <= abs(mantissa) < 1
        assert same(scaled, rounded(Fraction(x) * Fraction(2) ** power, code, zero=x))

    check()


def test_ldexp_takes_any_exponent() -> None:
    for power, wanted in ((2**31 - 1, math.inf), (-(2**31), 0.0)):
        assert same(run("v_ldexp_f32", 1.0, power), wanted)
    assert run("v_ldexp_f32", 2.0**-149, 276) == 2.0**127


# Approximated functions: within one unit in the last place of Python's own.

APPROXIMATED: dict[str, Callable[[float], float]] = {
    "rcp": lambda x: math.copysign(math.inf, x) if x == 0 else 1 / x,
    "sqrt": lambda x: math.sqrt(x) if x >= 0 else math.nan,
    "rsq": lambda x: (1 / math.sqrt(x) if x > 0 else math.copysign(math.inf, x)) if x >= 0 else math.nan,
    "exp": lambda x: 2.0**x if x < 1024 else math.inf,
    "log": lambda x: (math.log2(x) if x > 0 else -math.inf) if x >= 0 else math.nan,
}


@pytest.mark.parametrize("code", ["f16", "f32", "f64"])
@pytest.mark.parametrize("name", APPROXIMATED)
def test_functions_are_within_one_unit(name: str, code: str) -> None:
    if f"v_{name}_{code}" not in VECTOR:
        assert code == "f64" and name in ("exp", "log")
        return

    @given(numbers(code) if code == "f16" or name not in ("exp",) else st.floats(-160, 160, width=32))
    def check(x: float) -> None:
        got = float(run(f"v_{name}_{code}", x))
        if math.isnan(x):
            assert math.isnan(got)
            return
        tiny = 2.0**-126 if code == "f32" else 0.0  # f32: "denormals are flushed"
        wanted = APPROXIMATED[name](math.copysign(0.0, x) if abs(x) < tiny else x)
        if not math.isfinite(wanted) or wanted == 0:
            assert same(got, wanted)
            return
        nearest = DTYPE[code](wanted)
        if abs(wanted) < tiny * (1 - 2**-24):
            assert got == 0
        else:
            assert abs(float(nearest) - got) <= abs(np.spacing(nearest)) or (not np.isfinite(nearest) and got == nearest)

    check()


@pytest.mark.parametrize("code", ["f16", "f32"])
@pytest.mark.parametrize("name", ["sin", "cos"])
def test_sine_and_cosine_count_turns(name: str, code: str) -> None:
    function = math.sin if name == "sin" else math.cos
    for x in np.array([0.0, 0.125, 0.25, 1 / 3, 0.5, 0.75, 1.0, 5.25, -0.25, -7.3, 200.125], DTYPE[code]):
        wanted = function(2 * math.pi * math.fmod(float(x), 1.0))
        assert abs(float(run(f"v_{name}_{code}", x)) - wanted) <= np.finfo(DTYPE[code]).eps
    assert run(f"v_{name}_{code}", 1000.0) == {"sin": 0.0, "cos": 1.0}[name]  # beyond 256
    assert math.isnan(run(f"v_{name}_{code}", math.inf)) and math.isnan(run(f"v_{name}_{code}", math.nan))


def test_renamed_and_legacy() -> None:
    assert VECTOR["v_rcp_iflag_f32"] is VECTOR["v_rcp_f32"]
    for name in ("v_mul_legacy_f32", "v_mul_dx9_zero_f32"):
        assert run(name, 0.0, math.inf) == 0 and run(name, math.nan, -0.0) == 0 and run(name, 3.0, -2.0) == -6


# Modes.


@pytest.mark.parametrize("code", ["f16", "f32", "f64"])
def test_denormals_are_flushed_as_the_mode_says(code: str) -> None:
    precision, lowest, _ = SHAPE[code]
    denormal, normal = 2.0**lowest, 2.0 ** (lowest + precision - 1)
    field = "denormals_f32" if code == "f32" else "denormals_f16_f64"
    for setting, from_source, into_result in ((0, 0.0, 0.0), (1, denormal * 4, 0.0), (2, 0.0, normal / 2), (3, denormal * 4, normal / 2)):
        mode = Mode(**{field: setting})
        # A denormal source, scaled up into the normal range; a denormal result of normal sources.
        assert run(f"v_mul_{code}", denormal * 4, 2.0 ** (precision + 1), mode=mode) == from_source * 2.0 ** (precision + 1)
        assert run(f"v_mul_{code}", normal, 0.5, mode=mode) == into_result
        assert same(run(f"v_mul_{code}", -normal, 0.5, mode=mode), -into_result)
        assert run(f"v_max_{code}", denormal, -1.0, mode=mode) == (denormal if setting == 3 else 0)
        assert run(f"v_fma_{code}", normal, 0.5, 0.0, mode=mode) == into_result
    other = Mode(**{"denormals_f16_f64" if code == "f32" else "denormals_f32": 0})
    assert run(f"v_mul_{code}", normal, 0.5, mode=other) == normal / 2


def test_functions_of_f32_flush_in_every_mode_and_f16_in_none() -> None:
    assert run("v_rcp_f32", 2.0**127) == 0 and math.isinf(run("v_rcp_f32", 2.0**-130)) and run("v_exp_f32", -130.0) == 0
    assert run("v_sqrt_f32", 2.0**-130) == 0 and run("v_log_f32", 2.0**-130) == -math.inf
    assert run("v_rcp_f16", 2.0**15) == 2.0**-15 and run("v_exp_f16", -20.0) == 2.0**-20


def test_the_mode_register_is_read_as_the_manual_has_it() -> None:
    assert Mode.of_float_mode(0xF0) == KEEP
    assert Mode.of_float_mode(0b10_01_00_11) == Mode(denormals_f32=1, denormals_f16_f64=2, round_f32=3, round_f16_f64=0)


def test_other_roundings_are_refused() -> None:
    with pytest.raises(UnsupportedMode, match="nearest even only"):
        VECTOR["v_add_f32"].bind(Mode(round_f32=3))
    with pytest.raises(UnsupportedMode, match="f16"):
        VECTOR["v_add_f16"].bind(Mode(round_f16_f64=1))
    VECTOR["v_add_f32"].bind(Mode(round_f16_f64=1))
    VECTOR["v_add_u32"].bind(Mode(round_f32=3))
