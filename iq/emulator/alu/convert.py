"""Conversions: v_cvt_*. To integers they truncate and saturate, and NaN becomes 0 (RDNA3 ISA, V_CVT_I32_F32)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from iq.emulator.alu.floats import bits, floating
from iq.emulator.alu.types import SCALAR_TYPES, Array, Function, Op

u16, u32 = np.uint16, np.uint32


def to_integer(code: str, rounding: Function = np.trunc) -> Function:
    """To an integer type: rounded, saturated, NaN to 0."""
    to = SCALAR_TYPES[code]
    low, high = float(np.iinfo(to).min), float(np.iinfo(to).max)
    return lambda x: np.where(np.isnan(x), 0, np.clip(rounding(x.astype(np.float64)), low, high)).astype(np.int64).astype(to)


def to(code: str) -> Function:
    """To another type, rounded to nearest even where it is narrower."""
    dtype = SCALAR_TYPES[code]
    return lambda x: x.astype(dtype)


def half_toward_zero(x: NDArray[np.float32]) -> NDArray[np.float16]:
    """f32 to f16 rounded toward zero (v_cvt_pkrtz_f16_f32): finite values stay finite."""
    nearest: NDArray[np.float16] = x.astype(np.float16)
    beyond = np.abs(nearest.astype(np.float32)) > np.abs(x)  # an infinity that was none included
    return np.where(beyond, np.nextafter(nearest, np.float16(0)), nearest)


def pack(low: Array, high: Array) -> NDArray[np.uint32]:
    """Two 16-bit values as one register."""
    low, high = np.broadcast_arrays(low, high)
    packed: NDArray[np.uint32] = bits(low).astype(u32) | (bits(high).astype(u32) << u32(16))
    return packed


def packed(convert: Function) -> Function:
    """Convert two sources to 16 bits each and pack them."""
    return lambda a, b: pack(convert(a), convert(b))


def _pack_integers(code: str) -> Function:
    """Integers saturated to 16 bits, and packed."""
    info, unsigned = np.iinfo(SCALAR_TYPES[code]), np.uint16
    return packed(lambda x: np.clip(x, info.min, info.max).astype(SCALAR_TYPES[code]).view(unsigned))


def _pack_normalised(code: str) -> Function:
    """[-1, 1] or [0, 1] to all of a 16-bit integer's range, to nearest even (V_CVT_PKNORM_I16_F32)."""
    scale = float(np.iinfo(SCALAR_TYPES[code]).max)
    low = 0.0 if code.startswith("u") else -1.0
    convert = to_integer(code, np.rint)
    return packed(lambda x: convert(np.clip(x.astype(np.float64), low, 1.0) * scale).view(np.uint16))


def _ubyte(index: int) -> Op:
    return floating("f32", ("u32",), lambda x: ((x >> u32(8 * index)) & u32(255)).astype(np.float32))


def _pk_u8(x: Array, index: Array, old: Array) -> Array:
    """x as a byte, to nearest even, put into byte `index` of `old`."""
    shift = (index & u32(3)) * u32(8)
    byte = to_integer("u8", np.rint)(x).astype(u32)
    merged: Array = (old & ~(u32(255) << shift)) | (byte << shift)
    return merged


def bf16(x: Array) -> Array:
    """To bfloat16, to nearest even."""
    return x.astype(ml_dtypes.bfloat16)


def _floor_half(x: Array) -> Array:
    return np.floor(x + 0.5)


def _op(result: str, source: str, function: Function, **more: Any) -> Op:
    return floating(result, (source,), function, **more)


CONVERT: Mapping[str, Op] = {
    "v_cvt_f32_f16": _op("f32", "f16", to("f32")),
    "v_cvt_f16_f32": _op("f16", "f32", to("f16")),
    "v_cvt_f64_f32": _op("f64", "f32", to("f64")),
    "v_cvt_f32_f64": _op("f32", "f64", to("f32")),
    "v_cvt_f32_bf16": _op("f32", "bf16", to("f32")),
    "v_cvt_f16_u16": _op("f16", "u16", to("f16")),
    "v_cvt_f16_i16": _op("f16", "i16", to("f16")),
    "v_cvt_f32_i32": _op("f32", "i32", to("f32")),
    "v_cvt_f32_u32": _op("f32", "u32", to("f32")),
    "v_cvt_f64_i32": _op("f64", "i32", to("f64")),
    "v_cvt_f64_u32": _op("f64", "u32", to("f64")),
    "v_cvt_i16_f16": _op("i16", "f16", to_integer("i16"), keeps=True),
    "v_cvt_u16_f16": _op("u16", "f16", to_integer("u16"), keeps=True),
    "v_cvt_i32_f32": _op("i32", "f32", to_integer("i32")),
    "v_cvt_u32_f32": _op("u32", "f32", to_integer("u32")),
    "v_cvt_i32_f64": _op("i32", "f64", to_integer("i32")),
    "v_cvt_u32_f64": _op("u32", "f64", to_integer("u32")),
    "v_cvt_flr_i32_f32": _op("i32", "f32", to_integer("i32", np.floor)),
    "v_cvt_floor_i32_f32": _op("i32", "f32", to_integer("i32", np.floor)),
    "v_cvt_rpi_i32_f32": _op("i32", "f32", to_integer("i32", _floor_half)),
    "v_cvt_nearest_i32_f32": _op("i32", "f32", to_integer("i32", _floor_half)),
    **{f"v_cvt_f32_ubyte{i}": _ubyte(i) for i in range(4)},
    "v_cvt_i32_i16": _op("i32", "i16", to("i32")),
    "v_cvt_u32_u16": _op("u32", "u16", to("u32")),
    # The mode's rounding does not touch it; its denormal results are kept (LLVM's lowering of trunc toward zero relies on that).
    "v_cvt_pkrtz_f16_f32": Op("u32", ("f32", "f32"), packed(half_toward_zero)),
    "v_cvt_pk_rtz_f16_f32": Op("u32", ("f32", "f32"), packed(half_toward_zero)),
    "v_cvt_pk_f16_f32": floating("u32", ("f32", "f32"), packed(to("f16"))),
    "v_cvt_pk_bf16_f32": floating("u32", ("f32", "f32"), packed(bf16)),
    "v_cvt_pk_i16_f32": floating("u32", ("f32", "f32"), packed(lambda x: to_integer("i16")(x).view(u16))),
    "v_cvt_pk_u16_f32": floating("u32", ("f32", "f32"), packed(to_integer("u16"))),
    "v_cvt_pk_i16_i32": Op("u32", ("i32", "i32"), _pack_integers("i16")),
    "v_cvt_pk_u16_u32": Op("u32", ("u32", "u32"), _pack_integers("u16")),
    "v_cvt_pknorm_i16_f32": floating("u32", ("f32", "f32"), _pack_normalised("i16")),
    "v_cvt_pknorm_u16_f32": floating("u32", ("f32", "f32"), _pack_normalised("u16")),
    "v_cvt_pk_norm_i16_f32": floating("u32", ("f32", "f32"), _pack_normalised("i16")),
    "v_cvt_pk_norm_u16_f32": floating("u32", ("f32", "f32"), _pack_normalised("u16")),
    "v_cvt_pk_u8_f32": floating("u32", ("f32", "u32", "u32"), _pk_u8),
}
