"""VOP3P: packed arithmetic, element by element, and dot products of whole registers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from iq.emulator.alu import floats
from iq.emulator.alu.floats import floating
from iq.emulator.alu.integer import left, right, saturated
from iq.emulator.alu.types import SCALAR_TYPES, Array, Function, Op


def _packed_float(code: str) -> dict[str, Op]:
    low, high, low_nan, high_nan = floats.minimum_number, floats.maximum_number, floats.minimum, floats.maximum
    functions: Mapping[str, tuple[int, Function]] = {
        "add": (2, lambda a, b: a + b),
        "mul": (2, lambda a, b: a * b),
        "fma": (3, floats.fma_of(code)),
        "min": (2, low),
        "max": (2, high),
        "min_num": (2, low),
        "max_num": (2, high),
        "minimum": (2, low_nan),
        "maximum": (2, high_nan),
        "minimum3": (3, lambda a, b, c: low_nan(low_nan(a, b), c)),
        "maximum3": (3, lambda a, b, c: high_nan(high_nan(a, b), c)),
    }
    names = functions if code == "f16" else ("add", "mul", "fma")  # f32 has no others
    return {f"v_pk_{name}_{code}": floating(code, (code,) * functions[name][0], functions[name][1]) for name in names}


def _packed_integer(code: str) -> dict[str, Op]:
    def op(count: int, function: Function, clamps: bool = True) -> Op:
        return Op(code, (code,) * count, function, saturating=saturated(code, function) if clamps else None)

    return {
        f"v_pk_add_{code}": op(2, lambda a, b: a + b),
        f"v_pk_sub_{code}": op(2, lambda a, b: a - b),
        f"v_pk_mad_{code}": op(3, lambda a, b, c: a * b + c),
        f"v_pk_max_{code}": op(2, np.maximum, clamps=False),
        f"v_pk_min_{code}": op(2, np.minimum, clamps=False),
    }


PACKED: Mapping[str, Op] = {
    **_packed_float("f16"),
    **_packed_float("f32"),
    **_packed_integer("u16"),
    **_packed_integer("i16"),
    "v_pk_fmac_f16": floating("f16", ("f16",) * 3, floats.fma16, tied=True),
    "v_pk_mul_lo_u16": Op("u16", ("u16", "u16"), lambda a, b: a * b),
    "v_pk_lshlrev_b16": Op("u16", ("u16", "u16"), lambda count, x: left(x, count)),
    "v_pk_lshrrev_b16": Op("u16", ("u16", "u16"), lambda count, x: right(x, count)),
    "v_pk_ashrrev_i16": Op("i16", ("u16", "i16"), lambda count, x: right(x, count)),
}


def _dot_float(a: Array, b: Array, c: Array) -> Array:
    """c + a0 b0 + a1 b1, each step rounded to f32 (approximate: the manuals leave inner rounding and denormals open)."""
    x, y = a.astype(np.float32), b.astype(np.float32)
    if a.dtype == np.float16:  # whose products are exact in f32
        products = x * y
        total: Array = c + products[..., 0]
        for i in range(1, a.shape[-1]):
            total = total + products[..., i]
        return total
    total = c
    for i in range(a.shape[-1]):  # those of bf16 may leave its range
        total = floats.fma32(x[..., i], y[..., i], total)
    return total


def _dot_narrow(code: str) -> Function:
    """The same with a 16-bit sum, rounded once from float64 (approximate: the manuals leave the inner rounding open)."""

    def dot(a: Array, b: Array, c: Array) -> Array:
        exact: Array = (a.astype(np.float64) * b.astype(np.float64)).sum(axis=-1)
        return (exact + c.astype(np.float64)).astype(SCALAR_TYPES[code])

    return dot


def _sum_of_products(a: Array, b: Array) -> Array:
    """In 32 bits, which hold it for all but 16-bit elements; those wrap around, as the result does."""
    if a.dtype.itemsize == 2:
        return a[..., 0].astype(np.int32) * b[..., 0] + a[..., 1].astype(np.int32) * b[..., 1]
    # Products of bytes fit in 16 bits. Two at a time, as words: numpy is several times faster on arrays without gaps.
    signed = "i" in (a.dtype.kind, b.dtype.kind)
    narrow, wide = (np.int16, np.int32) if signed else (np.uint16, np.uint32)
    products = np.ascontiguousarray(a.astype(narrow) * b.astype(narrow)).view(wide)
    pairs = (products >> 16) + products.astype(narrow)
    total: Array = pairs[..., 0]
    for i in range(1, pairs.shape[-1]):
        total = total + pairs[..., i]
    return total


def _exact_sum(a: Array, b: Array, c: Array) -> Array:
    products: Array = (a.astype(np.int64) * b.astype(np.int64)).sum(axis=-1)
    return products + c


def _dot_integer(result: str, code: str, tied: bool = False) -> Op:
    """The sum of products, wrapped around, or under clamp saturated at the end."""
    dtype = SCALAR_TYPES[result]
    info = np.iinfo(dtype)
    return Op(
        result,
        (code, code, result),
        lambda a, b, c: _sum_of_products(a, b).view(dtype) + c,
        saturating=lambda a, b, c: np.clip(_exact_sum(a, b, c), info.min, info.max).astype(dtype),
        tied=tied,
    )


def _dot2(result: str, code: str, tied: bool = False) -> Op:
    function = _dot_float if result == "f32" else _dot_narrow(result)
    return Op(result, (code, code, result), function, tied=tied)


DOT: Mapping[str, Op] = {
    "v_dot2_f32_f16": _dot2("f32", "f16x2"),
    "v_dot2_f32_bf16": _dot2("f32", "bf16x2"),
    "v_dot2_f16_f16": _dot2("f16", "f16x2"),
    "v_dot2_bf16_bf16": _dot2("bf16", "bf16x2"),
    "v_dot2c_f32_f16": _dot2("f32", "f16x2", tied=True),
    "v_dot2acc_f32_f16": _dot2("f32", "f16x2", tied=True),
    "v_dot2c_f32_bf16": _dot2("f32", "bf16x2", tied=True),
    "v_dot2acc_f32_bf16": _dot2("f32", "bf16x2", tied=True),
    "v_dot2_i32_i16": _dot_integer("i32", "i16x2"),
    "v_dot2_u32_u16": _dot_integer("u32", "u16x2"),
    "v_dot2c_i32_i16": _dot_integer("i32", "i16x2", tied=True),
    "v_dot4_i32_i8": _dot_integer("i32", "i8x4"),
    "v_dot4_u32_u8": _dot_integer("u32", "u8x4"),
    "v_dot4c_i32_i8": _dot_integer("i32", "i8x4", tied=True),
    "v_dot4_i32_iu8": _dot_integer("i32", "iu8x4"),
    "v_dot8_i32_i4": _dot_integer("i32", "i4x8"),
    "v_dot8_u32_u4": _dot_integer("u32", "u4x8"),
    "v_dot8c_i32_i4": _dot_integer("i32", "i4x8", tied=True),
    "v_dot8_i32_iu4": _dot_integer("i32", "iu4x8"),
}
