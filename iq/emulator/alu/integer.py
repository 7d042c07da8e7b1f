"""VALU instructions on integers and bits, 16, 32 and 64 wide, and moves."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from iq.emulator.alu.types import SCALAR_TYPES, Array, Function, Op

u8, u16, u32, u64 = np.uint8, np.uint16, np.uint32, np.uint64
i8, i16, i32, i64 = np.int8, np.int16, np.int32, np.int64


def wide(x: Array) -> Array:
    """As int64, in which sums and products of 32-bit integers are exact (products of two u32 as u64)."""
    return x.astype(i64)


def saturated(code: str, function: Function) -> Function:
    """A function computed in int64 and clamped to the range of an integer type (the clamp bit)."""
    info = np.iinfo(SCALAR_TYPES[code])
    return lambda *sources: np.clip(function(*map(wide, sources)), info.min, info.max).astype(SCALAR_TYPES[code])


def clamping(code: str, function: Function) -> Op:
    """A row that wraps around, or saturates under clamp."""
    # v_add_i16 and v_sub_i16 are VOP3 with op_sel.
    return Op(code, (code, code), function, saturating=saturated(code, function), keeps=code == "i16")


def low24(x: Array) -> Array:
    """Bits 23:0, unsigned."""
    return x & u32(0xFFFFFF)


def signed24(x: Array) -> Array:
    """Bits 23:0, signed."""
    return (x << i32(8)) >> i32(8)


def mul_hi_u32(a: Array, b: Array) -> Array:
    """The upper half of the 64-bit product."""
    return ((a.astype(u64) * b) >> u64(32)).astype(u32)


def mul_hi_i32(a: Array, b: Array) -> Array:
    """The upper half of the signed 64-bit product."""
    return ((wide(a) * b) >> i64(32)).astype(i32)


def left(x: Array, count: Array) -> Array:
    """Shift left by the count's low bits (5 for 32-bit values, 4 for 16, 6 for 64)."""
    unit = x.dtype.type
    shifted: Array = x << (count.astype(x.dtype) & unit(x.dtype.itemsize * 8 - 1))
    return shifted


def right(x: Array, count: Array) -> Array:
    """Shift right by the count's low bits; arithmetically for signed types."""
    unit = x.dtype.type
    shifted: Array = x >> (count.astype(x.dtype) & unit(x.dtype.itemsize * 8 - 1))
    return shifted


def bfe_u32(x: Array, offset: Array, width: Array) -> Array:
    """`width` bits from bit `offset`; nothing for width 0."""
    ones = (u32(1) << (width & u32(31))) - u32(1)
    field: Array = (x >> (offset & u32(31))) & ones
    return field


def bfe_i32(x: Array, offset: Array, width: Array) -> Array:
    """`width` bits from bit `offset`, sign extended from the last."""
    width = width & u32(31)
    shift = (u32(32) - width) & u32(31)
    field = bfe_u32(x.view(u32), offset, width)
    return np.where(width == 0, i32(0), (field << shift).view(i32) >> shift.view(i32))


def perm(high: Array, low: Array, selector: Array) -> Array:
    """Each byte of the selector names a byte of the result: 0-3 of `low`, 4-7 of `high`, 8-11 the sign of the bytes 1, 3, 5, 7,
    12 zero, 13 and above 0xFF (RDNA3 ISA, V_PERM_B32)."""
    if selector.size and (selector == selector.flat[0]).all():
        return _perm_constant(high, low, int(selector.flat[0]))
    high, low, selector = (np.ascontiguousarray(x) for x in np.broadcast_arrays(high, low, selector))
    data = np.concatenate([x[..., None].view(u8) for x in (low, high)], axis=-1)
    signs = (data[..., 1::2] >> u8(7)) * u8(255)
    constants = np.broadcast_to(np.array([0, 255], u8), (*data.shape[:-1], 2))
    chosen = np.minimum(selector[..., None].view(u8), u8(13)).astype(np.intp)
    result: Array = np.take_along_axis(np.concatenate([data, signs, constants], axis=-1), chosen, axis=-1).view(u32)[..., 0]
    return result


def _perm_constant(high: Array, low: Array, selector: int) -> Array:
    """The same for one selector of all lanes, as compilers use it."""
    result: Array = np.zeros(np.broadcast(high, low).shape, u32)
    for i, s in enumerate(selector.to_bytes(4, "little")):
        if s >= 13:
            result = result | u32(0xFF << 8 * i)
        elif s >= 8:
            word, bit = divmod(16 * (s - 8) + 15, 32)
            result = result | ((((high if word else low) >> u32(bit)) & u32(1)) * u32(0xFF << 8 * i) if s < 12 else u32(0))
        else:
            result = result | (((high if s >= 4 else low) >> u32(8 * (s & 3))) & u32(0xFF)) << u32(8 * i)
    return result


def align(high: Array, low: Array, count: Array) -> Array:
    """32 bits of {high, low} from bit `count`."""
    return (((high.astype(u64) << u64(32)) | low) >> count.astype(u64)).astype(u32)


def leading_zeros(x: Array) -> Array:
    """Zeros above the highest one; -1 where there is none."""
    exponent = np.frexp(x.astype(np.float64))[1]  # exact for 32 bits
    return np.where(x == 0, -1, 32 - exponent).astype(i32)


def leading_signs(x: Array) -> Array:
    """How many of the highest bits equal the sign bit, counted from the top; -1 for 0 and -1 (v_cls_i32)."""
    return leading_zeros(np.where(x < 0, ~x, x).view(u32))


def trailing_zeros(x: Array) -> Array:
    """Zeros below the lowest one; -1 where there is none."""
    lowest = x & (u32(0) - x)
    return np.where(x == 0, -1, 31 - leading_zeros(lowest)).astype(i32)


def reverse_bits(x: Array) -> Array:
    """Bit 0 becomes bit 31."""
    for shift, ones in ((1, 0x55555555), (2, 0x33333333), (4, 0x0F0F0F0F), (8, 0x00FF00FF)):
        x = ((x >> u32(shift)) & u32(ones)) | ((x & u32(ones)) << u32(shift))
    return (x >> u32(16)) | (x << u32(16))


def popcount(x: Array) -> Array:
    """How many ones."""
    count: Array = np.bitwise_count(x)
    return count.astype(u32)


def field_mask(code: str) -> Function:
    """So many ones, from a bit on."""
    unit = SCALAR_TYPES[code].type

    def mask(width: Array, offset: Array) -> Array:
        ones = left(np.ones(width.shape, unit), width) - unit(1)
        return left(ones, offset)

    return mask


def _lanes_below(mask: Array, value: Array, lane: Array, first: int) -> Array:
    """`value` and the ones of a mask word that belong to lower lanes; its bit 0 is lane `first`."""
    below = np.clip(lane.astype(i64) - first, 0, 32).astype(u64)
    return popcount(mask.astype(u64) & ((u64(1) << below) - u64(1))) + value


def bitop3(a: Array, b: Array, c: Array, table: int) -> Array:
    """Any function of three bits: bit (a << 2 | b << 1 | c) of the table."""
    result = np.zeros(np.broadcast(a, b, c).shape, a.dtype)
    for row in range(8):
        if table >> row & 1:
            result |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
    return result


def _sad(code: str, bits: int) -> Op:
    """The sum of absolute differences of unsigned elements, and a third source."""

    def sad(a: Array, b: Array, c: Array) -> Array:
        total = wide(c)
        for shift in range(0, 32, bits):
            ones = u32((1 << bits) - 1)
            total = total + np.abs(wide((a >> u32(shift)) & ones) - wide((b >> u32(shift)) & ones))
        return total

    return Op("u32", ("u32",) * 3, lambda *s: sad(*s).astype(u32), saturating=lambda *s: np.minimum(sad(*s), 2**32 - 1).astype(u32))


def median(a: Array, b: Array, c: Array) -> Array:
    """The middle of three."""
    return np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))


def add_carry(a: Array, b: Array, carry: Array | int = 0) -> tuple[Array, Array]:
    """A sum in u32, and whether it carries."""
    total: Array = wide(a) + b + carry
    return total.astype(u32), total >> i64(32) != 0


def sub_borrow(a: Array, b: Array, borrow: Array | int = 0) -> tuple[Array, Array]:
    """A difference in u32, and whether it borrows."""
    total: Array = wide(a) - b - borrow
    return total.astype(u32), total < 0


def _mad_u64_u32(a: Array, b: Array, c: Array) -> tuple[Array, Array]:
    total = a.astype(u64) * b + c
    return total, total < c


def _mad_i64_i32(a: Array, b: Array, c: Array) -> tuple[Array, Array]:
    product = wide(a) * b
    total = product + c
    # The 65-bit sum's top bit (RDNA3 ISA, V_MAD_I64_I32): the sign of the exact sum.
    overflow = ((product ^ total) & (c ^ total)) < 0
    return total, (total < 0) ^ overflow


def _carry(function: Function, carry_in: bool, reverse: bool = False) -> Op:
    ordered = (lambda a, b, *c: function(b, a, *c)) if reverse else function
    return Op("u32", ("u32", "u32", "mask") if carry_in else ("u32", "u32"), ordered, carries=True)


def _ashr_pk(low: int, high: int) -> Function:
    """Two values shifted right, saturated to 8 bits, and packed (gfx950 v_ashr_pk_i8_i32)."""

    def pack(a: Array, b: Array, count: Array) -> Array:
        first, second = (np.clip(right(x, count), low, high).astype(u32) & u32(255) for x in (a, b))
        return (first | (second << u32(8))).astype(u16)

    return pack


def _saturate_bytes(x: Array) -> Array:
    low, high = (np.clip(half.astype(u16).view(i16), 0, 255).astype(u16) for half in (x, x >> u32(16)))
    return low | (high << u16(8))


def _identity(x: Array) -> Array:
    return x


def _binary(code: str, function: Function) -> Op:
    return Op(code, (code, code), function)


def _ternary(code: str, function: Function) -> Op:
    return Op(code, (code, code, code), function, keeps=True)


_EXTREMES: dict[str, Op] = {}
for _code in ("u16", "i16", "u32", "i32"):
    _EXTREMES |= {
        f"v_max_{_code}": _binary(_code, np.maximum),
        f"v_min_{_code}": _binary(_code, np.minimum),
        f"v_max3_{_code}": _ternary(_code, lambda a, b, c: np.maximum(np.maximum(a, b), c)),
        f"v_min3_{_code}": _ternary(_code, lambda a, b, c: np.minimum(np.minimum(a, b), c)),
        f"v_med3_{_code}": _ternary(_code, median),
        f"v_maxmin_{_code}": _ternary(_code, lambda a, b, c: np.minimum(np.maximum(a, b), c)),
        f"v_minmax_{_code}": _ternary(_code, lambda a, b, c: np.maximum(np.minimum(a, b), c)),
    }

_BITS: Mapping[str, Op] = {
    "v_mov_b16": Op("u16", ("u16",), _identity),
    "v_mov_b32": Op("u32", ("u32",), _identity),
    "v_mov_b64": Op("u64", ("u64",), _identity),
    "v_accvgpr_read_b32": Op("u32", ("u32",), _identity),
    "v_accvgpr_write_b32": Op("u32", ("u32",), _identity),
    "v_accvgpr_mov_b32": Op("u32", ("u32",), _identity),
    "v_cndmask_b32": Op("u32", ("u32", "u32", "mask"), lambda a, b, mask: np.where(mask, b, a)),
    "v_cndmask_b16": Op("u16", ("u16", "u16", "mask"), lambda a, b, mask: np.where(mask, b, a)),
    "v_not_b16": Op("u16", ("u16",), np.invert),
    "v_not_b32": Op("u32", ("u32",), np.invert),
    **{
        f"v_{name}_b{bits}": _binary(f"u{bits}", function)
        for bits in (16, 32)
        for name, function in (("and", np.bitwise_and), ("or", np.bitwise_or), ("xor", np.bitwise_xor))
    },
    "v_xnor_b32": _binary("u32", lambda a, b: ~(a ^ b)),
    "v_or3_b32": _ternary("u32", lambda a, b, c: a | b | c),
    "v_xor3_b32": _ternary("u32", lambda a, b, c: a ^ b ^ c),
    "v_and_or_b32": _ternary("u32", lambda a, b, c: (a & b) | c),
    "v_bfi_b32": _ternary("u32", lambda mask, b, c: (mask & b) | (~mask & c)),
    "v_bitop3_b32": Op("u32", ("u32", "u32", "u32", "bitop3"), bitop3),
    "v_bitop3_b16": Op("u16", ("u16", "u16", "u16", "bitop3"), bitop3),
    "v_lshlrev_b16": _binary("u16", lambda count, x: left(x, count)),
    "v_lshrrev_b16": _binary("u16", lambda count, x: right(x, count)),
    "v_ashrrev_i16": Op("i16", ("u16", "i16"), lambda count, x: right(x, count)),
    "v_lshlrev_b32": _binary("u32", lambda count, x: left(x, count)),
    "v_lshrrev_b32": _binary("u32", lambda count, x: right(x, count)),
    "v_ashrrev_i32": Op("i32", ("u32", "i32"), lambda count, x: right(x, count)),
    "v_lshlrev_b64": Op("u64", ("u32", "u64"), lambda count, x: left(x, count)),
    "v_lshrrev_b64": Op("u64", ("u32", "u64"), lambda count, x: right(x, count)),
    "v_ashrrev_i64": Op("i64", ("u32", "i64"), lambda count, x: right(x, count)),
    "v_lshl_or_b32": _ternary("u32", lambda a, b, c: left(a, b) | c),
    "v_lshl_add_u32": _ternary("u32", lambda a, b, c: left(a, b) + c),
    "v_add_lshl_u32": _ternary("u32", lambda a, b, c: left(a + b, c)),
    "v_xad_u32": _ternary("u32", lambda a, b, c: (a ^ b) + c),
    # The shift is at most 4 (CDNA3 ISA, V_LSHL_ADD_U64).
    "v_lshl_add_u64": Op("u64", ("u64", "u32", "u64"), lambda a, b, c: (a << (b & u32(7)).astype(u64)) + c),
    "v_bfe_u32": _ternary("u32", bfe_u32),
    "v_bfe_i32": Op("i32", ("i32", "u32", "u32"), bfe_i32),
    "v_bfm_b32": _binary("u32", field_mask("u32")),
    "v_bfrev_b32": Op("u32", ("u32",), reverse_bits),
    "v_bcnt_u32_b32": _binary("u32", lambda a, b: popcount(a) + b),
    "v_ffbh_u32": Op("i32", ("u32",), leading_zeros),
    "v_ffbh_i32": Op("i32", ("i32",), leading_signs),
    "v_ffbl_b32": Op("i32", ("u32",), trailing_zeros),
    "v_mbcnt_lo_u32_b32": Op("u32", ("u32", "u32", "lane"), lambda mask, value, lane: _lanes_below(mask, value, lane, 0)),
    "v_mbcnt_hi_u32_b32": Op("u32", ("u32", "u32", "lane"), lambda mask, value, lane: _lanes_below(mask, value, lane, 32)),
    "v_perm_b32": _ternary("u32", perm),
    "v_alignbit_b32": _ternary("u32", lambda a, b, c: align(a, b, c & u32(31))),
    "v_alignbyte_b32": _ternary("u32", lambda a, b, c: align(a, b, (c & u32(3)) * u32(8))),
    "v_pack_b32_f16": Op("u32", ("u16", "u16"), lambda low, high: low.astype(u32) | (high.astype(u32) << u32(16))),
    "v_sad_u8": _sad("u32", 8),
    "v_sad_u16": _sad("u32", 16),
    "v_sad_u32": _sad("u32", 32),
    "v_sat_pk_u8_i16": Op("u16", ("u32",), _saturate_bytes),
    "v_ashr_pk_i8_i32": Op("u16", ("i32", "i32", "u32"), _ashr_pk(-128, 127), keeps=True),
    "v_ashr_pk_u8_i32": Op("u16", ("i32", "i32", "u32"), _ashr_pk(0, 255), keeps=True),
}


_ARITHMETIC: Mapping[str, Op] = {
    **{f"v_add_{code}": clamping(code, lambda a, b: a + b) for code in ("u16", "i16", "u32", "i32")},
    **{f"v_sub_{code}": clamping(code, lambda a, b: a - b) for code in ("u16", "i16", "u32", "i32")},
    **{f"v_subrev_{code}": clamping(code, lambda a, b: b - a) for code in ("u16", "u32")},
    "v_add3_u32": _ternary("u32", lambda a, b, c: a + b + c),
    "v_add_co_u32": _carry(add_carry, False),
    "v_sub_co_u32": _carry(sub_borrow, False),
    "v_subrev_co_u32": _carry(sub_borrow, False, reverse=True),
    "v_addc_co_u32": _carry(add_carry, True),
    "v_subb_co_u32": _carry(sub_borrow, True),
    "v_subbrev_co_u32": _carry(sub_borrow, True, reverse=True),
    "v_mul_lo_u16": _binary("u16", lambda a, b: a * b),
    "v_mul_lo_u32": _binary("u32", lambda a, b: a * b),
    "v_mul_hi_u32": _binary("u32", mul_hi_u32),
    "v_mul_hi_i32": _binary("i32", mul_hi_i32),
    "v_mul_u32_u24": _binary("u32", lambda a, b: low24(a) * low24(b)),
    "v_mul_i32_i24": _binary("i32", lambda a, b: signed24(a) * signed24(b)),
    "v_mul_hi_u32_u24": _binary("u32", lambda a, b: mul_hi_u32(low24(a), low24(b))),
    "v_mul_hi_i32_i24": _binary("i32", lambda a, b: mul_hi_i32(signed24(a), signed24(b))),
    "v_mad_u32_u24": Op(
        "u32",
        ("u32",) * 3,
        lambda a, b, c: low24(a) * low24(b) + c,
        saturating=lambda a, b, c: np.minimum(wide(low24(a)) * low24(b) + c, 2**32 - 1).astype(u32),
    ),
    "v_mad_i32_i24": Op(
        "i32",
        ("i32",) * 3,
        lambda a, b, c: signed24(a) * signed24(b) + c,
        saturating=lambda a, b, c: np.clip(wide(signed24(a)) * signed24(b) + c, -(2**31), 2**31 - 1).astype(i32),
    ),
    "v_mad_u16": Op("u16", ("u16",) * 3, lambda a, b, c: a * b + c, saturating=saturated("u16", lambda a, b, c: a * b + c), keeps=True),
    "v_mad_i16": Op("i16", ("i16",) * 3, lambda a, b, c: a * b + c, saturating=saturated("i16", lambda a, b, c: a * b + c), keeps=True),
    "v_mad_u32_u16": Op("u32", ("u16", "u16", "u32"), lambda a, b, c: a.astype(u32) * b + c),
    "v_mad_i32_i16": Op("i32", ("i16", "i16", "i32"), lambda a, b, c: a.astype(i32) * b + c),
    "v_mad_u64_u32": Op("u64", ("u32", "u32", "u64"), _mad_u64_u32, carries=True),
    "v_mad_i64_i32": Op("i64", ("i32", "i32", "i64"), _mad_i64_i32, carries=True),
}

# gfx10, gfx11 and gfx12 renamed; newest names last.
_RENAMED: Mapping[str, str] = {
    "v_add_nc_u16": "v_add_u16",
    "v_add_nc_i16": "v_add_i16",
    "v_add_nc_u32": "v_add_u32",
    "v_add_nc_i32": "v_add_i32",
    "v_sub_nc_u16": "v_sub_u16",
    "v_sub_nc_i16": "v_sub_i16",
    "v_sub_nc_u32": "v_sub_u32",
    "v_sub_nc_i32": "v_sub_i32",
    "v_subrev_nc_u32": "v_subrev_u32",
    "v_add_co_ci_u32": "v_addc_co_u32",
    "v_sub_co_ci_u32": "v_subb_co_u32",
    "v_subrev_co_ci_u32": "v_subbrev_co_u32",
    "v_mul_lo_i32": "v_mul_lo_u32",
    "v_clz_i32_u32": "v_ffbh_u32",
    "v_cls_i32": "v_ffbh_i32",
    "v_ctz_i32_b32": "v_ffbl_b32",
    "v_mad_co_u64_u32": "v_mad_u64_u32",
    "v_mad_co_i64_i32": "v_mad_i64_i32",
}


def with_names(table: Mapping[str, Op], names: Mapping[str, str]) -> dict[str, Op]:
    """A table and the other names of its rows."""
    return {**table, **{new: table[old] for new, old in names.items()}}


INTEGER: Mapping[str, Op] = with_names({**_BITS, **_ARITHMETIC, **_EXTREMES}, _RENAMED)
