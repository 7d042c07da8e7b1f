"""Scalar instructions of the emulator, against Python integers: result and SCC."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from alu_numbers import CONDITIONS, FLOAT_CONDITIONS, KEEP, M32, apply, cases, leading, leading_signs, trailing, wrap

from iq.emulator.alu import SAVEEXEC, SCALAR, VECTOR, Mode
from iq.emulator.alu.types import dtype, registers

pytestmark = pytest.mark.usefixtures("quiet")


# Scalar instructions: (result, scc).

LOGIC: dict[str, Callable[[int, int], int]] = {
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "andn2": lambda a, b: a & ~b,
    "and_not1": lambda a, b: a & ~b,
    "orn2": lambda a, b: a | ~b,
    "or_not1": lambda a, b: a | ~b,
    "nand": lambda a, b: ~(a & b),
    "nor": lambda a, b: ~(a | b),
    "xnor": lambda a, b: ~(a ^ b),
}


def scalar_bfe(x: int, f: int, bits: int, is_signed: bool) -> int:
    width = min(f >> 16 & 127, bits)
    field = ((x & (1 << bits) - 1) >> (f & bits - 1)) & (1 << width) - 1
    if is_signed and width and field >> (width - 1) & 1:
        field -= 1 << width
    return field


def quads(x: int, bits: int) -> int:
    return sum(15 << k for k in range(0, bits, 4) if x >> k & 15)


# Exact result, whether SCC is "not zero" (None: left alone).
TESTING: dict[str, Callable[..., int]] = {}
LEAVING: dict[str, Callable[..., int]] = {
    "s_mul_i32": lambda a, b: a * b,
    "s_mul_hi_u32": lambda a, b: a * b >> 32,
    "s_mul_hi_i32": lambda a, b: a * b >> 32,
    "s_mul_u64": lambda a, b: a * b,
    **{f"s_add_{nc}u64": lambda a, b: a + b for nc in ("", "nc_")},
    **{f"s_sub_{nc}u64": lambda a, b: a - b for nc in ("", "nc_")},
    "s_sext_i32_i8": lambda x: wrap(x, "i8"),
    "s_sext_i32_i16": lambda x: wrap(x, "i16"),
    **dict.fromkeys(("s_flbit_i32", "s_cls_i32"), leading_signs),
    **{name: lambda x: leading_signs(x, 64) for name in ("s_flbit_i32_i64", "s_cls_i32_i64")},
    **dict.fromkeys(("s_flbit_i32_b32", "s_clz_i32_u32"), leading),
    **{name: lambda x: leading(x, 64) for name in ("s_flbit_i32_b64", "s_clz_i32_u64")},
    **{f"s_{n}_i32_b{w}": trailing for n in ("ff1", "ctz") for w in (32, 64)},
    "s_pack_ll_b32_b16": lambda a, b: a & 0xFFFF | (b & 0xFFFF) << 16,
    "s_pack_lh_b32_b16": lambda a, b: a & 0xFFFF | (b >> 16) << 16,
    "s_pack_hl_b32_b16": lambda a, b: a >> 16 | (b & 0xFFFF) << 16,
    "s_pack_hh_b32_b16": lambda a, b: a >> 16 | (b >> 16) << 16,
    "s_movk_i32": lambda x: x,
    "s_cmovk_i32": lambda x, scc, old: x if scc else old,
    "s_mulk_i32": lambda x, old: x * old,
}
for _w in (32, 64):
    TESTING |= {f"s_{name}_b{_w}": f for name, f in LOGIC.items()}
    TESTING |= {
        f"s_not_b{_w}": lambda x: ~x,
        f"s_wqm_b{_w}": lambda x, w=_w: quads(x, w),
        f"s_quadmask_b{_w}": lambda x, w=_w: sum(1 << k // 4 for k in range(0, w, 4) if x >> k & 15),
        f"s_lshl_b{_w}": lambda x, n, w=_w: x << (n & w - 1),
        f"s_lshr_b{_w}": lambda x, n, w=_w: x >> (n & w - 1),
        f"s_ashr_i{_w}": lambda x, n, w=_w: x >> (n & w - 1),
        f"s_bfe_u{_w}": lambda x, f, w=_w: scalar_bfe(x, f, w, False),
        f"s_bfe_i{_w}": lambda x, f, w=_w: scalar_bfe(x, f, w, True),
        f"s_bcnt0_i32_b{_w}": lambda x, w=_w: w - x.bit_count(),
        f"s_bcnt1_i32_b{_w}": lambda x: x.bit_count(),
    }
    LEAVING |= {
        f"s_mov_b{_w}": lambda x: x,
        f"s_cmov_b{_w}": lambda x, scc, old: x if scc else old,
        f"s_cselect_b{_w}": lambda a, b, scc: a if scc else b,
        f"s_bfm_b{_w}": lambda n, at, w=_w: ((1 << (n & w - 1)) - 1) << (at & w - 1),
        f"s_brev_b{_w}": lambda x, w=_w: int(f"{x:0{w}b}"[::-1], 2),
        f"s_ff0_i32_b{_w}": lambda x, w=_w: trailing(~x & (1 << w) - 1),
        f"s_bitset0_b{_w}": lambda at, old, w=_w: old & ~(1 << (at & w - 1)),
        f"s_bitset1_b{_w}": lambda at, old, w=_w: old | 1 << (at & w - 1),
    }
TESTING |= {"s_abs_i32": abs, "s_absdiff_i32": lambda a, b: abs(a - b)}


def overflows(exact: int) -> bool:
    return not -(2**31) <= exact < 2**31


# Exact result and SCC.
SETTING: dict[str, tuple[Callable[..., int], Callable[..., bool]]] = {
    **{f"s_add_{co}u32": (lambda a, b: a + b, lambda a, b: a + b > M32) for co in ("", "co_")},
    **{f"s_sub_{co}u32": (lambda a, b: a - b, lambda a, b: a < b) for co in ("", "co_")},
    **{n: (lambda a, b, c: a + b + c, lambda a, b, c: a + b + c > M32) for n in ("s_addc_u32", "s_add_co_ci_u32")},
    **{n: (lambda a, b, c: a - b - c, lambda a, b, c: a < b + c) for n in ("s_subb_u32", "s_sub_co_ci_u32")},
    **{f"s_add_{co}i32": (lambda a, b: a + b, lambda a, b: overflows(a + b)) for co in ("", "co_")},
    **{f"s_sub_{co}i32": (lambda a, b: a - b, lambda a, b: overflows(a - b)) for co in ("", "co_")},
    **{f"s_addk_{co}i32": (lambda a, b: a + b, lambda a, b: overflows(a + b)) for co in ("", "co_")},
    **{
        f"s_lshl{n}_add_u32": (lambda a, b, n=n: (a << n) + b, lambda a, b, n=n: (a << n) + b > M32)  # type: ignore[misc]
        for n in (1, 2, 3, 4)
    },
    **{f"s_min_{t}32": (min, lambda a, b: a < b) for t in "ui"},
    **{f"s_max_{t}32": (max, lambda a, b: a >= b) for t in "ui"},
}
DECIDING: dict[str, Callable[..., bool]] = {
    **{f"s_cmp_{n}_{t}32": CONDITIONS["ne" if n == "lg" else n] for n in ("eq", "lg", "gt", "ge", "lt", "le") for t in "ui"},
    **{f"s_cmpk_{n}_{t}32": CONDITIONS["ne" if n == "lg" else n] for n in ("eq", "lg", "gt", "ge", "lt", "le") for t in "ui"},
    "s_cmp_eq_u64": lambda a, b: a == b,
    "s_cmp_lg_u64": lambda a, b: a != b,
    **{f"s_bitcmp{v}_b{w}": lambda x, at, v=v, w=w: (x >> (at & w - 1) & 1) == v for v in (0, 1) for w in (32, 64)},
    **{f"s_cmp_{n}_{t}": f for t in ("f16", "f32") for n, f in FLOAT_CONDITIONS.items() if n not in ("f", "t", "tru")},
}


@pytest.mark.parametrize("name", [*TESTING, *LEAVING, *SETTING])
def test_scalar_arithmetic(name: str) -> None:
    op = SCALAR[name]
    tied = ("s_cmov", "s_bitset", "s_addk", "s_mulk")
    assert op.tied == name.startswith(tied)

    lanes = cases(op)
    value, scc = apply(op.bind(KEEP), op, lanes)
    assert value.dtype == dtype(op.result)
    assert (scc is None) == (name in LEAVING)
    for i, sources in enumerate(lanes):
        wanted = SETTING[name][0] if name in SETTING else {**TESTING, **LEAVING}[name]
        result = wrap(wanted(*sources), op.result)
        assert int(value[i]) == result, (name, sources)
        if scc is not None:
            assert bool(scc[i]) == (SETTING[name][1](*sources) if name in SETTING else result != 0), (name, sources)


@pytest.mark.parametrize("name", DECIDING)
def test_scalar_comparisons(name: str) -> None:
    op = SCALAR[name]
    assert op.result == "none"

    lanes = cases(op)
    value, scc = apply(op.bind(KEEP), op, lanes)
    assert value is None and scc.dtype == bool
    for decided, sources in zip(scc.tolist(), lanes, strict=True):
        assert decided == DECIDING[name](*sources), (name, sources)


SCALAR_FLOATS = [name for name in SCALAR if name.startswith("v_s_") or SCALAR[name].result[0] == "f" or "_cvt_" in name]


@pytest.mark.parametrize("name", [n for n in SCALAR_FLOATS if n != "s_cvt_hi_f32_f16"])
def test_scalar_floats_are_the_vector_instructions(name: str) -> None:
    op, vector = SCALAR[name], VECTOR[name.replace("v_s_", "v_").replace("s_", "v_", 1) if name[0] == "s" else name.replace("v_s_", "v_")]
    assert (op.result, op.sources, op.tied) == (vector.result, vector.sources, vector.tied)
    values = ([1.5, -2.25, 0.0, 1e-41], [3.0, 0.5, -7.0, 2.0], [0.125, 100.0, -0.0, 1.0])
    sources = [np.array(x, dtype(code)) for x, code in zip(values, op.sources, strict=False)] if op.sources[0][0] == "f" else None
    if sources is None:
        sources = [np.array([1, 2**31 - 1, 7, 0]).astype(dtype(op.sources[0]))]
    for mode in (KEEP, Mode(denormals_f32=0)):
        value, scc = op.bind(mode)(*sources)
        assert scc is None
        np.testing.assert_array_equal(value, vector.bind(mode)(*sources))


def test_scalar_conversion_of_the_high_half() -> None:
    value, scc = SCALAR["s_cvt_hi_f32_f16"].function(np.array([0x3C00_0000, 0xC100_7FFF], np.uint32))
    assert value.tolist() == [1.0, -2.5] and value.dtype == np.float32 and scc is None


def test_every_scalar_row_is_tested() -> None:
    assert set(SCALAR) == {*TESTING, *LEAVING, *SETTING, *DECIDING, *SCALAR_FLOATS}


SAVES: dict[str, Callable[[int, int], int]] = {
    **{f"{name}_saveexec": f for name, f in LOGIC.items()},
    **{f"{name}_saveexec": lambda s, e: ~s & e for name in ("andn1", "and_not0")},
    **{f"{name}_saveexec": lambda s, e: ~s | e for name in ("orn1", "or_not0")},
    **{f"{name}_wrexec": lambda s, e: ~s & e for name in ("andn1", "and_not0")},
    **{f"{name}_wrexec": lambda s, e: s & ~e for name in ("andn2", "and_not1")},
}


def test_saveexec() -> None:
    assert set(SAVEEXEC) == {f"s_{name}_b{w}" for name in SAVES for w in (32, 64)}
    for name, bits in itertools.product(SAVES, (32, 64)):
        op = SAVEEXEC[f"s_{name}_b{bits}"]

        for s, e in ((0b1100, 0b1010), (0, 0), ((1 << bits) - 1, 1), (1 << (bits - 1), (1 << bits) - 1), (5, 5)):
            value, scc = op.function(*(np.array([x], dtype(f"u{bits}")) for x in (s, e)))
            wanted = SAVES[name](s, e) & (1 << bits) - 1
            assert (int(value[0]), bool(scc[0])) == (wanted, wanted != 0) and registers(op.result) == bits // 32
