"""div_scale, div_fmas and div_fixup: together, in the sequences that LLVM emits, they must give the correctly rounded quotient."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from alu_numbers import DTYPE, KEEP, SHAPE, edges, numbers, rounded, same
from hypothesis import example, given
from numpy.typing import NDArray

from iq.emulator.alu import VECTOR, Mode

pytestmark = pytest.mark.usefixtures("quiet")


def call(name: str, *sources: Any) -> Any:
    return VECTOR[name].bind(KEEP)(*sources)


def divide_f32(n: NDArray[np.float32], d: NDArray[np.float32]) -> Any:
    """AMDGPU's lowering of an f32 division with denormals (SITargetLowering::LowerFDIV32)."""
    one = np.float32(1) + 0 * n
    (d1, _), (n1, scaled) = call("v_div_scale_f32", d, d, n), call("v_div_scale_f32", n, d, n)
    r = call("v_rcp_f32", d1)
    r = call("v_fma_f32", call("v_fma_f32", -d1, r, one), r, r)
    q = call("v_mul_f32", n1, r)
    q = call("v_fma_f32", call("v_fma_f32", -d1, q, n1), r, q)
    rest = call("v_fma_f32", -d1, q, n1)
    return call("v_div_fixup_f32", call("v_div_fmas_f32", rest, r, q, scaled), d, n)


def divide_f64(n: NDArray[np.float64], d: NDArray[np.float64]) -> Any:
    """The same for f64 (SITargetLowering::LowerFDIV64)."""
    one = 1 + 0 * n
    (d1, _), (n1, scaled) = call("v_div_scale_f64", d, d, n), call("v_div_scale_f64", n, d, n)
    r = call("v_rcp_f64", d1)
    for _ in range(2):
        r = call("v_fma_f64", r, call("v_fma_f64", -d1, r, one), r)
    q = call("v_mul_f64", n1, r)
    rest = call("v_fma_f64", -d1, q, n1)
    return call("v_div_fixup_f64", call("v_div_fmas_f64", rest, r, q, scaled), d, n)


def quotient(n: float, d: float, code: str) -> float:
    sign = math.copysign(1, n) * math.copysign(1, d)
    if math.isnan(n) or math.isnan(d) or (n == d == 0) or (math.isinf(n) and math.isinf(d)):
        return math.nan
    if d == 0 or math.isinf(n):
        return sign * math.inf
    if n == 0 or math.isinf(d):
        return sign * 0.0
    return rounded(Fraction(n) / Fraction(d), code, zero=sign * 0.0)


@pytest.mark.parametrize("code", ["f32", "f64"])
def test_divisions_are_correctly_rounded(code: str) -> None:
    divide = divide_f32 if code == "f32" else divide_f64
    _, lowest, highest = SHAPE[code]

    @given(numbers(code), numbers(code))
    @example(2.0 ** (highest - 1) * 1.5, 2.0 ** (lowest // 2))
    @example(2.0**lowest * 3, 2.0**lowest * 7)
    @example(2.0**highest, 2.0**lowest)
    @example(2.0**-20, 2.0**highest * 1.25)  # reciprocal and quotient denormal
    @example(2.0 ** (lowest + 40), 2.0**60 * 1.75)
    @example(1.0, 2.0**highest * 1.5)
    def check(n: float, d: float) -> None:
        got = divide(*(np.array([[x]], DTYPE[code]) for x in (n, d)))
        assert same(got[0, 0], quotient(n, d, code)), (n, d)

    check()


@pytest.mark.parametrize("code", ["f32", "f64"])
def test_divisions_over_all_pairs_of_exponents(code: str) -> None:
    divide = divide_f32 if code == "f32" else divide_f64
    precision, lowest, highest = SHAPE[code]
    rng = np.random.default_rng(0)
    exponents = np.arange(lowest, highest + 1, 1 if code == "f32" else 41)
    mantissas = rng.integers(2 ** (precision - 1), 2**precision, 2 * len(exponents)) * 2.0 ** (1 - precision)
    with np.errstate(all="ignore"):
        values = np.ldexp(mantissas[: len(exponents)], exponents).astype(DTYPE[code])
        others = np.ldexp(mantissas[len(exponents) :], exponents).astype(DTYPE[code])
        n, d = (x.ravel() for x in np.meshgrid(values, others))
        # float32: a float64 quotient, rounded again, is right in the normal range (53 >= 2 * 24 + 2); the rest goes by fractions.
        wide = n.astype(np.float64) / d.astype(np.float64)
        wanted = wide.astype(DTYPE[code])
        got = divide(n, d)
    assert got.dtype == DTYPE[code]
    if code == "f32":
        hard = np.flatnonzero((np.abs(wide) < 2.0**-125) & (np.abs(wide) > 2.0**-151))
        for i in hard[:: len(hard) // 1000]:
            assert same(got[i], quotient(float(n[i]), float(d[i]), code))
        easy = np.abs(wide) >= 2.0**-125
        assert (got[easy] == wanted[easy]).all() and easy.sum() > 30_000
        assert (np.abs(got[np.abs(wide) < 2.0**-151]) == 0).all()
    else:
        assert (got == wanted).all()


@pytest.mark.parametrize("code", ["f32", "f64"])
def test_division_of_the_edges_by_each_other(code: str) -> None:
    divide = divide_f32 if code == "f32" else divide_f64
    n, d = (x.ravel() for x in np.meshgrid(*[np.array(edges(code), DTYPE[code])] * 2))
    for result, x, y in zip(divide(n, d), n, d, strict=True):
        assert same(result, quotient(float(x), float(y), code)), (x, y, result)


@pytest.mark.parametrize("code", ["f32", "f64"])
def test_scaling(code: str) -> None:
    """Powers and masks of the manual's cases."""
    precision, lowest, highest = SHAPE[code]
    power, near, tiny = (64, 96, 23) if code == "f32" else (128, 768, 52)
    up, down = 2.0**power, 2.0**-power
    smallest = 2.0 ** (lowest + precision - 1)
    big = 2.0**highest
    cases = [  # numerator, denominator: scales of numerator and denominator, mask
        (3.0, 2.0, 1.0, 1.0, False),
        (2.0 ** (near - 1), 1.5, 1.0, 1.0, False),
        (2.0**near, 1.5, 1.0, up, True),
        (smallest * 2.0 ** (tiny + 4), smallest / 4, up, up, False),
        (2.0**40, big, down, down, False),
        (2.0 ** (-precision), big, 1.0, down, True),
        (smallest * 2.0 ** (tiny + 1), 2.0 ** (tiny + 2), up, 1.0, True),
        (smallest * 2.0 ** (tiny - 1), 2.0 ** (tiny - 3), up, up, False),
        (smallest * 2.0**tiny, 2.0 ** (tiny - 3), 1.0, 1.0, False),
    ]
    for n, d, scale_n, scale_d, mask in cases:
        for name, x, scale in (("numerator", n, scale_n), ("denominator", d, scale_d)):
            value, got = call(f"v_div_scale_{code}", *(np.array([[s]], DTYPE[code]) for s in (x, d, n)))
            assert (value[0, 0], bool(got[0, 0])) == (x * scale, mask), (name, n, d)
    for n, d in ((0.0, 1.0), (1.0, 0.0)):
        value, got = call(f"v_div_scale_{code}", *(np.array([[s]], DTYPE[code]) for s in (n, d, n)))
        assert math.isnan(value[0, 0]) and not got[0, 0]


def test_scaling_flushes_denormals_by_mode() -> None:
    scale = VECTOR["v_div_scale_f32"].bind(Mode(denormals_f32=0))
    d = np.array([[2.0**-130]], np.float32)
    value, mask = scale(d, d, np.float32([[1]]))
    assert math.isnan(value[0, 0]) and not mask[0, 0]  # a denominator of zero


@pytest.mark.parametrize("code", ["f32", "f64"])
def test_fmas_scales_toward_the_quotient(code: str) -> None:
    power = 64 if code == "f32" else 128
    one, two, half = (np.array([[x]], DTYPE[code]) for x in (1.0, 2.0, 0.5))
    on, off = np.array([[True]]), np.array([[False]])
    fmas = f"v_div_fmas_{code}"
    assert call(fmas, one, one, two, off) == 3
    assert call(fmas, one, one, two, on) == 3 * 2.0**power
    assert call(fmas, one, one, half, on) == 1.5 * 2.0**-power
    assert call(fmas, one, one, one, on) == 2.0 * 2.0**-power  # an exponent of the bias itself scales down


@pytest.mark.parametrize("code", ["f16", "f32", "f64"])
def test_fixup(code: str) -> None:
    @given(numbers(code), numbers(code), numbers(code))
    def check(q: float, d: float, n: float) -> None:
        got = call(f"v_div_fixup_{code}", *(np.array([[x]], DTYPE[code]) for x in (q, d, n)))[0, 0]
        special = quotient(n, d, code)
        bound = {"f16": 10**6, "f32": 150, "f64": 1075}[code]
        if not all(map(math.isfinite, (n, d))) or n == 0 or d == 0:
            assert same(got, special)
        elif field(n, code) - field(d, code) < -bound:
            assert same(got, math.copysign(0.0, special))
        elif math.isnan(q) and code != "f16":  # of an overflowed quotient, refined
            assert same(got, math.copysign(math.inf, special))
        elif not math.isnan(q):
            assert same(got, math.copysign(q, special))

    check()


def field(x: float, code: str) -> int:
    """The biased exponent field: 0 for denormals."""
    precision, lowest, highest = SHAPE[code]
    return max(0, math.frexp(x)[1] - 1 + highest) if abs(x) >= 2.0 ** (lowest + precision - 1) else 0
