"""SALU instructions. Functions take and return arrays [waves], and return (result, scc); scc None: the instruction leaves it alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from iq.emulator.alu import integer
from iq.emulator.alu.compare import COMPARE
from iq.emulator.alu.integer import add_carry, field_mask, left, popcount, right, sub_borrow, wide, with_names
from iq.emulator.alu.types import SCALAR_TYPES, Array, Function, Mode, Op
from iq.emulator.alu.vector import VECTOR

u32, u64 = np.uint32, np.uint64
i32, i64 = np.int32, np.int64


def _nonzero(result: Array) -> tuple[Array, Array]:
    """SCC says whether the result is not zero."""
    return result, result != 0


def _tests(function: Function) -> Function:
    """SCC says whether the function's result is not zero."""
    return lambda *sources: _nonzero(function(*sources))


def _leaves(function: Function) -> Function:
    """SCC stays."""
    return lambda *sources: (function(*sources), None)


def _sets(function: Function) -> Function:
    """Nothing but SCC."""
    return lambda *sources: (None, function(*sources))


def _wrapped(row: Op, around: Callable[[Function], Function], result: str, sources: tuple[str, ...]) -> Op:
    """A VALU row as a scalar one."""

    def under(mode: Mode) -> Function:
        return around(row.bind(mode))

    return replace(row, result=result, sources=sources, function=under, moded=True, saturating=None, keeps=False)


def _signed(exact: Array) -> tuple[Array, Array]:
    """A sum in i64 as i32; SCC says that it overflows."""
    result = exact.astype(i32)
    return result, result != exact


def _shifted_add(count: int) -> Function:
    def add(a: Array, b: Array) -> tuple[Array, Array]:
        total = (a.astype(u64) << u64(count)) + b
        return total.astype(u32), total >> u64(32) != 0

    return add


def _bfe(code: str) -> Function:
    """A field: offset in bits 4:0 (64-bit: 5:0) of the second source, width in bits 22:16."""
    dtype = SCALAR_TYPES[code]
    size = dtype.itemsize * 8
    unsigned = np.dtype(f"u{dtype.itemsize}").type

    def extract(x: Array, field: Array) -> Array:
        offset = (field & u32(size - 1)).astype(unsigned)
        width = ((field >> u32(16)) & u32(127)).astype(unsigned)
        bits = x.view(unsigned) >> offset
        unused = unsigned(size) - np.clip(width, unsigned(1), unsigned(size))
        moved = (bits << unused).view(dtype) >> unused.view(f"i{dtype.itemsize}").astype(dtype)
        result: Array = np.where(width == 0, dtype.type(0), moved)
        return result

    return extract


def _bitset(code: str, value: bool) -> Function:
    unit = SCALAR_TYPES[code].type

    def assign(at: Array, old: Array) -> Array:
        bit = left(np.ones(old.shape, unit), at)
        return old | bit if value else old & ~bit

    return assign


def _bit(x: Array, at: Array) -> Array:
    bit: Array = right(x, at) & x.dtype.type(1) != 0
    return bit


def _leading_zeros64(x: Array) -> Array:
    high, low = (x >> u64(32)).astype(u32), x.astype(u32)
    below = np.where(low == 0, -1, integer.leading_zeros(low) + 32)
    return np.where(high != 0, integer.leading_zeros(high), below).astype(i32)


def _trailing_zeros64(x: Array) -> Array:
    lowest = x & (u64(0) - x)
    return np.where(x == 0, -1, 63 - _leading_zeros64(lowest)).astype(i32)


def _reverse64(x: Array) -> Array:
    high, low = (x >> u64(32)).astype(u32), x.astype(u32)
    return (integer.reverse_bits(low).astype(u64) << u64(32)) | integer.reverse_bits(high)


def _whole_quads(x: Array) -> Array:
    """All four bits of each quad in which one is set."""
    unit = x.dtype.type
    ones = unit(int("1" * (x.dtype.itemsize * 2), 16))
    any_of_quad = (x | x >> unit(1) | x >> unit(2) | x >> unit(3)) & ones
    quads: Array = any_of_quad * unit(15)
    return quads


def _quad_mask(x: Array) -> Array:
    """One bit for each quad in which one is set."""
    result = np.zeros_like(x)
    for quad in range(x.dtype.itemsize * 2):
        unit = x.dtype.type
        result |= ((x >> unit(4 * quad) & unit(15)) != 0).astype(x.dtype) << unit(quad)
    return result


def _half(x: Array, high: bool) -> Array:
    return x >> u32(16) if high else x & u32(0xFFFF)


def _pack(first: bool, second: bool) -> Op:
    """Halves of two registers, low or high each."""
    return Op("u32", ("u32", "u32"), _leaves(lambda a, b: _half(a, first) | _half(b, second) << u32(16)))


_LOGIC: Mapping[str, Function] = {
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "andn2": lambda a, b: a & ~b,
    "orn2": lambda a, b: a | ~b,
    "nand": lambda a, b: ~(a & b),
    "nor": lambda a, b: ~(a | b),
    "xnor": lambda a, b: ~(a ^ b),
}
_INTEGER_CONDITIONS = ("eq", "lg", "gt", "ge", "lt", "le")
_FLOAT_CONDITIONS = ("lt", "eq", "le", "gt", "lg", "ge", "o", "u", "nge", "nlg", "ngt", "nle", "neq", "nlt")


def _bits(size: int) -> dict[str, Op]:
    """Instructions on 32 or 64 bits."""
    u, i = f"u{size}", f"i{size}"
    clz, ctz, reverse = (
        (integer.leading_zeros, integer.trailing_zeros, integer.reverse_bits)
        if size == 32
        else (_leading_zeros64, _trailing_zeros64, _reverse64)
    )
    return {
        **{f"s_{name}_b{size}": Op(u, (u, u), _tests(function)) for name, function in _LOGIC.items()},
        f"s_mov_b{size}": Op(u, (u,), _leaves(lambda x: x)),
        f"s_cmov_b{size}": Op(u, (u, "scc", u), _leaves(lambda x, scc, old: np.where(scc, x, old)), tied=True),
        f"s_cselect_b{size}": Op(u, (u, u, "scc"), _leaves(lambda a, b, scc: np.where(scc, a, b))),
        f"s_not_b{size}": Op(u, (u,), _tests(np.invert)),
        f"s_wqm_b{size}": Op(u, (u,), _tests(_whole_quads)),
        f"s_quadmask_b{size}": Op(u, (u,), _tests(_quad_mask)),
        f"s_lshl_b{size}": Op(u, (u, "u32"), _tests(left)),
        f"s_lshr_b{size}": Op(u, (u, "u32"), _tests(right)),
        f"s_ashr_i{size}": Op(i, (i, "u32"), _tests(right)),
        f"s_bfe_u{size}": Op(u, (u, "u32"), _tests(_bfe(u))),
        f"s_bfe_i{size}": Op(i, (i, "u32"), _tests(_bfe(i))),
        f"s_bfm_b{size}": Op(u, ("u32", "u32"), _leaves(field_mask(u))),
        f"s_brev_b{size}": Op(u, (u,), _leaves(reverse)),
        f"s_bcnt0_i32_b{size}": Op("u32", (u,), _tests(lambda x: popcount(~x))),
        f"s_bcnt1_i32_b{size}": Op("u32", (u,), _tests(popcount)),
        f"s_ff0_i32_b{size}": Op("i32", (u,), _leaves(lambda x: ctz(~x))),
        f"s_ff1_i32_b{size}": Op("i32", (u,), _leaves(ctz)),
        f"s_flbit_i32_b{size}": Op("i32", (u,), _leaves(clz)),
        f"s_bitset0_b{size}": Op(u, ("u32", u), _leaves(_bitset(u, False)), tied=True),
        f"s_bitset1_b{size}": Op(u, ("u32", u), _leaves(_bitset(u, True)), tied=True),
        f"s_bitcmp0_b{size}": Op("none", (u, "u32"), _sets(lambda x, at: ~_bit(x, at))),
        f"s_bitcmp1_b{size}": Op("none", (u, "u32"), _sets(_bit)),
    }


_ARITHMETIC: Mapping[str, Op] = {
    "s_add_u32": Op("u32", ("u32", "u32"), add_carry),
    "s_sub_u32": Op("u32", ("u32", "u32"), sub_borrow),
    "s_addc_u32": Op("u32", ("u32", "u32", "scc"), add_carry),
    "s_subb_u32": Op("u32", ("u32", "u32", "scc"), sub_borrow),
    "s_add_i32": Op("i32", ("i32", "i32"), lambda a, b: _signed(wide(a) + b)),
    "s_sub_i32": Op("i32", ("i32", "i32"), lambda a, b: _signed(wide(a) - b)),
    "s_add_nc_u64": Op("u64", ("u64", "u64"), _leaves(lambda a, b: a + b)),
    "s_sub_nc_u64": Op("u64", ("u64", "u64"), _leaves(lambda a, b: a - b)),
    "s_mul_u64": Op("u64", ("u64", "u64"), _leaves(lambda a, b: a * b)),
    "s_mul_i32": Op("u32", ("u32", "u32"), _leaves(lambda a, b: a * b)),
    "s_mul_hi_u32": Op("u32", ("u32", "u32"), _leaves(integer.mul_hi_u32)),
    "s_mul_hi_i32": Op("i32", ("i32", "i32"), _leaves(integer.mul_hi_i32)),
    **{f"s_lshl{n}_add_u32": Op("u32", ("u32", "u32"), _shifted_add(n)) for n in (1, 2, 3, 4)},
    # SCC: the first source was taken.
    **{f"s_min_{code}": Op(code, (code, code), lambda a, b: (np.minimum(a, b), a < b)) for code in ("u32", "i32")},
    **{f"s_max_{code}": Op(code, (code, code), lambda a, b: (np.maximum(a, b), a >= b)) for code in ("u32", "i32")},
    "s_abs_i32": Op("i32", ("i32",), _tests(np.abs)),
    "s_absdiff_i32": Op("i32", ("i32", "i32"), _tests(lambda a, b: np.abs(wide(a) - b).astype(i32))),
    "s_sext_i32_i8": Op("i32", ("u32",), _leaves(lambda x: x.astype(np.int8).astype(i32))),
    "s_sext_i32_i16": Op("i32", ("u32",), _leaves(lambda x: x.astype(np.int16).astype(i32))),
    "s_flbit_i32": Op("i32", ("i32",), _leaves(integer.leading_signs)),
    "s_flbit_i32_i64": Op("i32", ("i64",), _leaves(lambda x: _leading_zeros64(np.where(x < 0, ~x, x).view(u64)))),
    "s_pack_ll_b32_b16": _pack(False, False),
    "s_pack_lh_b32_b16": _pack(False, True),
    "s_pack_hl_b32_b16": _pack(True, False),
    "s_pack_hh_b32_b16": _pack(True, True),
}

_IMMEDIATE: Mapping[str, Op] = {
    "s_movk_i32": Op("i32", ("simm16",), _leaves(lambda x: x)),
    "s_cmovk_i32": Op("i32", ("simm16", "scc", "i32"), _leaves(lambda x, scc, old: np.where(scc, x, old)), tied=True),
    "s_addk_i32": Op("i32", ("simm16", "i32"), lambda x, old: _signed(wide(old) + x), tied=True),
    "s_mulk_i32": Op("i32", ("simm16", "i32"), _leaves(lambda x, old: x * old), tied=True),
    **{
        f"s_cmpk_{name}_{code}": Op("none", (code, immediate), _sets(COMPARE[f"v_cmp_{name}_{code}"].function))
        for code, immediate in (("i32", "simm16"), ("u32", "uimm16"))
        for name in _INTEGER_CONDITIONS
    },
}

_COMPARE: Mapping[str, Op] = {
    **{
        f"s_cmp_{name}_{code}": Op("none", (code, code), _sets(COMPARE[f"v_cmp_{name}_{code}"].function))
        for code in ("u32", "i32", "u64")
        for name in (("eq", "lg") if code == "u64" else _INTEGER_CONDITIONS)
    },
    **{
        f"s_cmp_{name}_{code}": _wrapped(COMPARE[f"v_cmp_{name}_{code}"], _sets, "none", (code, code))
        for code in ("f32", "f16")
        for name in _FLOAT_CONDITIONS
    },
}

# Scalar floats, of gfx11.5 and gfx12: the vector instructions of the same names; v_s_*, too, take and write SGPRs.
_FLOAT_NAMES = ["add", "sub", "mul", "min", "max", "min_num", "max_num", "minimum", "maximum", "fmac", "ceil", "floor", "trunc", "rndne"]
_FLOAT_VECTOR = {
    **{f"s_{name}_{code}": f"v_{name}_{code}" for code in ("f32", "f16") for name in _FLOAT_NAMES},
    **{f"s_{name}_f32": f"v_{name}_f32" for name in ("fmaak", "fmamk", "cvt_i32", "cvt_u32", "cvt_f16")},
    **{f"s_{name}": f"v_{name}" for name in ("cvt_f32_i32", "cvt_f32_u32", "cvt_f32_f16", "cvt_pk_rtz_f16_f32")},
    **{f"v_s_{name}_{code}": f"v_{name}_{code}" for code in ("f32", "f16") for name in ("exp", "log", "rcp", "rsq", "sqrt")},
}
_FLOAT: Mapping[str, Op] = {
    **{name: _wrapped(VECTOR[old], _leaves, VECTOR[old].result, VECTOR[old].sources) for name, old in _FLOAT_VECTOR.items()},
    "s_cvt_hi_f32_f16": Op("f32", ("u32",), _leaves(lambda x: (x >> u32(16)).astype(np.uint16).view(np.float16).astype(np.float32))),
}

_RENAMED: Mapping[str, str] = {
    "s_add_co_u32": "s_add_u32",
    "s_sub_co_u32": "s_sub_u32",
    "s_add_co_ci_u32": "s_addc_u32",
    "s_sub_co_ci_u32": "s_subb_u32",
    "s_add_co_i32": "s_add_i32",
    "s_sub_co_i32": "s_sub_i32",
    "s_add_u64": "s_add_nc_u64",
    "s_sub_u64": "s_sub_nc_u64",
    "s_addk_co_i32": "s_addk_i32",
    "s_cls_i32": "s_flbit_i32",
    "s_cls_i32_i64": "s_flbit_i32_i64",
    "s_clz_i32_u32": "s_flbit_i32_b32",
    "s_clz_i32_u64": "s_flbit_i32_b64",
    "s_ctz_i32_b32": "s_ff1_i32_b32",
    "s_ctz_i32_b64": "s_ff1_i32_b64",
    **{f"s_{new}_b{size}": f"s_{old}_b{size}" for size in (32, 64) for new, old in (("and_not1", "andn2"), ("or_not1", "orn2"))},
}

SCALAR: Mapping[str, Op] = with_names({**_bits(32), **_bits(64), **_ARITHMETIC, **_IMMEDIATE, **_COMPARE, **_FLOAT}, _RENAMED)

# function(source, exec). The n2, not1 forms invert EXEC, the n1, not0 forms the source.
_SAVEEXEC: Mapping[str, Function] = {
    **{f"{name}_saveexec": function for name, function in _LOGIC.items()},
    "andn1_saveexec": lambda source, exec_: ~source & exec_,
    "orn1_saveexec": lambda source, exec_: ~source | exec_,
    "andn1_wrexec": lambda source, exec_: ~source & exec_,
    "andn2_wrexec": lambda source, exec_: source & ~exec_,
}
_SAVEEXEC_RENAMED = (("andn1", "and_not0"), ("andn2", "and_not1"), ("orn1", "or_not0"), ("orn2", "or_not1"))

SAVEEXEC: Mapping[str, Op] = {
    f"s_{name}_b{size}": Op(f"u{size}", (f"u{size}", f"u{size}"), _tests(function))
    for size in (32, 64)
    for old, function in _SAVEEXEC.items()
    for name in (old, *(old.replace(a, b) for a, b in _SAVEEXEC_RENAMED if old.startswith(a)))
}
