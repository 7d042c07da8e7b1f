"""Integer and bit instructions of the emulator's vector ALU, against Python integers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from alu_numbers import M32, apply, cases, clip, holds, integers, leading, leading_signs, limits, trailing, wrap
from hypothesis import given
from hypothesis import strategies as st

from iq.emulator.alu import VECTOR
from iq.emulator.alu.types import dtype

pytestmark = pytest.mark.usefixtures("quiet")


def s24(x: int) -> int:
    return wrap(x & 0xFFFFFF, "i32") - (1 << 24 if x & 0x800000 else 0)


def bfe(x: int, offset: int, width: int) -> int:
    return ((x & M32) >> (offset & 31)) & ((1 << (width & 31)) - 1)


def bfe_signed(x: int, offset: int, width: int) -> int:
    field, width = bfe(x, offset, width), width & 31
    return field - (1 << width) if width and field >> (width - 1) & 1 else field


def perm(high: int, low: int, selector: int) -> int:
    data = (high << 32 | low).to_bytes(8, "little")
    out = []
    for s in selector.to_bytes(4, "little"):
        if s >= 13:
            out.append(255)
        elif s == 12:
            out.append(0)
        elif s >= 8:
            out.append(255 if data[(1, 3, 5, 7)[s - 8]] & 128 else 0)
        else:
            out.append(data[s])
    return int.from_bytes(bytes(out), "little")


def sad(bits: int) -> Callable[[int, int, int], int]:
    return lambda a, b, c: c + sum(abs((a >> k & (1 << bits) - 1) - (b >> k & (1 << bits) - 1)) for k in range(0, 32, bits))


def bytes_of_halves(x: int) -> int:
    low, high = (min(max(wrap(h, "i16"), 0), 255) for h in (x & 0xFFFF, x >> 16))
    return low | high << 8


ARITHMETIC: dict[str, Callable[..., int]] = {
    "v_add": lambda a, b: a + b,
    "v_sub": lambda a, b: a - b,
    "v_subrev": lambda a, b: b - a,
}
WRAPPING: dict[str, Callable[..., int]] = {
    **{
        name: lambda a: a
        for name in ("v_mov_b16", "v_mov_b32", "v_mov_b64", "v_accvgpr_read_b32", "v_accvgpr_write_b32", "v_accvgpr_mov_b32")
    },
    "v_cndmask_b32": lambda a, b, mask: b if mask else a,
    "v_cndmask_b16": lambda a, b, mask: b if mask else a,
    **{f"v_not_b{n}": lambda a: ~a for n in (16, 32)},
    **{f"v_and_b{n}": lambda a, b: a & b for n in (16, 32)},
    **{f"v_or_b{n}": lambda a, b: a | b for n in (16, 32)},
    **{f"v_xor_b{n}": lambda a, b: a ^ b for n in (16, 32)},
    "v_xnor_b32": lambda a, b: ~(a ^ b),
    "v_or3_b32": lambda a, b, c: a | b | c,
    "v_xor3_b32": lambda a, b, c: a ^ b ^ c,
    "v_and_or_b32": lambda a, b, c: a & b | c,
    "v_bfi_b32": lambda a, b, c: a & b | ~a & c,
    "v_lshlrev_b16": lambda n, x: x << (n & 15),
    "v_lshrrev_b16": lambda n, x: x >> (n & 15),
    "v_ashrrev_i16": lambda n, x: x >> (n & 15),
    "v_lshlrev_b32": lambda n, x: x << (n & 31),
    "v_lshrrev_b32": lambda n, x: x >> (n & 31),
    "v_ashrrev_i32": lambda n, x: x >> (n & 31),
    "v_lshlrev_b64": lambda n, x: x << (n & 63),
    "v_lshrrev_b64": lambda n, x: x >> (n & 63),
    "v_ashrrev_i64": lambda n, x: x >> (n & 63),
    "v_lshl_or_b32": lambda a, b, c: a << (b & 31) | c,
    "v_lshl_add_u32": lambda a, b, c: (a << (b & 31)) + c,
    "v_add_lshl_u32": lambda a, b, c: (a + b & M32) << (c & 31),
    "v_xad_u32": lambda a, b, c: (a ^ b) + c,
    "v_add3_u32": lambda a, b, c: a + b + c,
    "v_lshl_add_u64": lambda a, b, c: (a << (b & 7)) + c,
    "v_bfe_u32": bfe,
    "v_bfe_i32": bfe_signed,
    "v_bfm_b32": lambda width, offset: ((1 << (width & 31)) - 1) << (offset & 31),
    "v_bfrev_b32": lambda x: int(f"{x:032b}"[::-1], 2),
    "v_bcnt_u32_b32": lambda a, b: a.bit_count() + b,
    **dict.fromkeys(("v_ffbh_u32", "v_clz_i32_u32"), leading),
    **dict.fromkeys(("v_ffbh_i32", "v_cls_i32"), leading_signs),
    **dict.fromkeys(("v_ffbl_b32", "v_ctz_i32_b32"), trailing),
    "v_perm_b32": perm,
    "v_alignbit_b32": lambda a, b, c: (a << 32 | b) >> (c & 31),
    "v_alignbyte_b32": lambda a, b, c: (a << 32 | b) >> 8 * (c & 3),
    "v_pack_b32_f16": lambda a, b: a | b << 16,
    "v_sat_pk_u8_i16": bytes_of_halves,
    "v_ashr_pk_i8_i32": lambda a, b, n: (clip(a >> (n & 31), "i8") & 255) | (clip(b >> (n & 31), "i8") & 255) << 8,
    "v_ashr_pk_u8_i32": lambda a, b, n: clip(a >> (n & 31), "u8") | clip(b >> (n & 31), "u8") << 8,
    "v_mul_lo_u16": lambda a, b: a * b,
    **{f"v_mul_lo_{t}32": lambda a, b: a * b for t in "ui"},
    "v_mul_hi_u32": lambda a, b: a * b >> 32,
    "v_mul_hi_i32": lambda a, b: a * b >> 32,
    "v_mul_u32_u24": lambda a, b: (a & 0xFFFFFF) * (b & 0xFFFFFF),
    "v_mul_i32_i24": lambda a, b: s24(a) * s24(b),
    "v_mul_hi_u32_u24": lambda a, b: (a & 0xFFFFFF) * (b & 0xFFFFFF) >> 32,
    "v_mul_hi_i32_i24": lambda a, b: s24(a) * s24(b) >> 32,
    "v_mad_u32_u16": lambda a, b, c: a * b + c,
    "v_mad_i32_i16": lambda a, b, c: a * b + c,
}
SATURATING: dict[str, Callable[..., int]] = {
    **{
        f"{name}{nc}_{t}{n}": f for name, f in ARITHMETIC.items() if "rev" not in name for nc in ("", "_nc") for t in "ui" for n in (16, 32)
    },
    **dict.fromkeys(("v_subrev_u16", "v_subrev_u32", "v_subrev_nc_u32"), ARITHMETIC["v_subrev"]),
    "v_mad_u32_u24": lambda a, b, c: (a & 0xFFFFFF) * (b & 0xFFFFFF) + c,
    "v_mad_i32_i24": lambda a, b, c: s24(a) * s24(b) + c,
    "v_mad_u16": lambda a, b, c: a * b + c,
    "v_mad_i16": lambda a, b, c: a * b + c,
    "v_sad_u8": sad(8),
    "v_sad_u16": sad(16),
    "v_sad_u32": sad(32),
}
for _t in ("u16", "i16", "u32", "i32"):
    WRAPPING |= {
        f"v_min_{_t}": min,
        f"v_max_{_t}": max,
        f"v_min3_{_t}": min,
        f"v_max3_{_t}": max,
        f"v_med3_{_t}": lambda *x: sorted(x)[1],
        f"v_maxmin_{_t}": lambda a, b, c: min(max(a, b), c),
        f"v_minmax_{_t}": lambda a, b, c: max(min(a, b), c),
    }


@pytest.mark.parametrize("name", WRAPPING)
def test_integers_wrap(name: str) -> None:
    holds(VECTOR, name, WRAPPING[name])


@pytest.mark.parametrize("name", SATURATING)
def test_integers_wrap_or_saturate(name: str) -> None:
    holds(VECTOR, name, SATURATING[name], saturated=True)


@given(integers("u32"), integers("u32"), integers("u32"), st.integers(0, 255), st.integers(0, 31))
def test_bitop3_is_a_truth_table(a: int, b: int, c: int, table: int, at: int) -> None:
    got = VECTOR["v_bitop3_b32"].function(*(np.array([[x]], np.uint32) for x in (a, b, c)), table)
    row = (a >> at & 1) << 2 | (b >> at & 1) << 1 | (c >> at & 1)
    assert int(got[0, 0]) >> at & 1 == table >> row & 1
    half = VECTOR["v_bitop3_b16"].function(*(np.array([[x & 0xFFFF]], np.uint16) for x in (a, b, c)), table)
    assert half.dtype == np.uint16 and int(half[0, 0]) == int(got[0, 0]) & 0xFFFF


@given(integers("u32"), integers("u32"), st.integers(0, 63))
def test_mbcnt_counts_lower_lanes(mask: int, start: int, lane: int) -> None:
    for name, first in (("v_mbcnt_lo_u32_b32", 0), ("v_mbcnt_hi_u32_b32", 32)):
        got = VECTOR[name].function(*(np.array([[x]], np.uint32) for x in (mask, start, lane)))
        count = sum(mask >> k & 1 for k in range(32) if k + first < lane)
        assert int(got[0, 0]) == (start + count) & M32 and got.dtype == np.uint32


CARRIES: dict[str, tuple[str, Callable[..., int]]] = {
    **{f"v_add_{co}u32": ("u32", lambda a, b, c=0: a + b + c) for co in ("co_", "co_ci_")},
    "v_addc_co_u32": ("u32", lambda a, b, c: a + b + c),
    **{f"v_sub_{co}u32": ("u32", lambda a, b, c=0: a - b - c) for co in ("co_", "co_ci_")},
    "v_subb_co_u32": ("u32", lambda a, b, c: a - b - c),
    **{f"v_subrev_{co}u32": ("u32", lambda a, b, c=0: b - a - c) for co in ("co_", "co_ci_")},
    "v_subbrev_co_u32": ("u32", lambda a, b, c: b - a - c),
    "v_mad_u64_u32": ("u64", lambda a, b, c: a * b + c),
    "v_mad_co_u64_u32": ("u64", lambda a, b, c: a * b + c),
    "v_mad_i64_i32": ("i64", lambda a, b, c: a * b + c),
    "v_mad_co_i64_i32": ("i64", lambda a, b, c: a * b + c),
}


@pytest.mark.parametrize("name", CARRIES)
def test_carries(name: str) -> None:
    code, wanted = CARRIES[name]
    op = VECTOR[name]
    assert op.carries

    lanes = cases(op)
    value, carry = apply(op.function, op, lanes)
    assert value.dtype == dtype(code) and carry.dtype == bool
    for result, beyond, sources in zip(value.tolist(), carry.tolist(), lanes, strict=True):
        exact = wanted(*sources)
        assert result == wrap(exact, code), sources
        assert beyond == (exact < 0 if code == "i64" else not 0 <= exact <= limits(code)[1]), sources


# LLVM, AMDGPU: GCNSubtarget::zeroesHigh16BitsOfDest.
ZEROES_HIGH_HALF_ON_GFX9 = """
    cvt_f16_f32 cvt_f16_u16 cvt_f16_i16 rcp_f16 rsq_f16 sqrt_f16 log_f16 exp_f16 sin_f16 cos_f16 floor_f16 ceil_f16 trunc_f16 rndne_f16
    fract_f16 frexp_mant_f16 frexp_exp_i16_f16 ldexp_f16 lshlrev_b16 lshrrev_b16 ashrrev_i16 add_u16 sub_u16 subrev_u16 mul_lo_u16
    add_f16 sub_f16 subrev_f16 mul_f16 max_f16 min_f16 max_u16 min_u16 max_i16 min_i16
"""
KEEPS_HIGH_HALF_ON_GFX9 = """
    fma_f16 mad_f16 mac_f16 fmac_f16 madak_f16 madmk_f16 fmaak_f16 fmamk_f16 mad_u16 mad_i16 div_fixup_f16 add_i16 sub_i16
    min3_f16 max3_f16 med3_f16 min3_i16 max3_i16 med3_i16 min3_u16 max3_u16 med3_u16 cvt_u16_f16 cvt_i16_f16
"""


def test_which_half_results_leave_the_other_half_alone() -> None:
    assert [name for name in ZEROES_HIGH_HALF_ON_GFX9.split() if VECTOR[f"v_{name}"].keeps] == []
    assert [name for name in KEEPS_HIGH_HALF_ON_GFX9.split() if not VECTOR[f"v_{name}"].keeps] == []
