"""VALU instructions: the float ones here, and all the rooms' rows as one table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from iq.emulator.alu import floats
from iq.emulator.alu.convert import CONVERT
from iq.emulator.alu.division import DIVISION
from iq.emulator.alu.floats import always_flushed, approximate, floating, fma_of
from iq.emulator.alu.integer import INTEGER, with_names
from iq.emulator.alu.types import SCALAR_TYPES, Array, Function, Op


def _rows(code: str) -> dict[str, Op]:
    """The instructions that f16, f32 and f64 all have, or two of them."""
    dtype: type[np.floating[Any]] = SCALAR_TYPES[code].type
    fma = fma_of(code)

    def op(count: int, function: Function, **more: Any) -> Op:
        return floating(code, (code,) * count, function, **more)

    def function_of_one(function: Function) -> Op:
        near = approximate(function, dtype)
        return op(1, always_flushed(near) if code == "f32" else near)

    rows = {
        "add": op(2, lambda a, b: a + b),
        "sub": op(2, lambda a, b: a - b),
        "subrev": op(2, lambda a, b: b - a),
        "mul": op(2, lambda a, b: a * b),
        "fma": op(3, fma, keeps=True),
        "fmac": op(3, fma, keeps=True, tied=True),
        "fmaak": op(3, fma, keeps=True),
        "fmamk": op(3, fma, keeps=True),
        "floor": op(1, np.floor),
        "ceil": op(1, np.ceil),
        "trunc": op(1, np.trunc),
        "rndne": op(1, np.rint),
        "fract": op(1, floats.fract),
        "frexp_mant": op(1, floats.frexp_mantissa),
        "rcp": function_of_one(lambda x: 1 / x),
        "rsq": function_of_one(lambda x: 1 / np.sqrt(x)),
        "sqrt": function_of_one(np.sqrt),
        "exp": function_of_one(np.exp2),
        "log": function_of_one(np.log2),
        "sin": op(1, approximate(floats.sine, dtype)),
        "cos": op(1, approximate(floats.cosine, dtype)),
    }
    low, high = floats.minimum_number, floats.maximum_number
    for suffix in ("", "_num"):
        rows |= {
            f"min{suffix}": op(2, low),
            f"max{suffix}": op(2, high),
            f"min3{suffix}": op(3, lambda a, b, c: low(low(a, b), c), keeps=True),
            f"max3{suffix}": op(3, lambda a, b, c: high(high(a, b), c), keeps=True),
            f"med3{suffix}": op(3, floats.median_number, keeps=True),
            f"minmax{suffix}": op(3, lambda a, b, c: high(low(a, b), c)),
            f"maxmin{suffix}": op(3, lambda a, b, c: low(high(a, b), c)),
        }
    low_nan, high_nan = floats.minimum, floats.maximum
    rows |= {
        "minimum": op(2, low_nan),
        "maximum": op(2, high_nan),
        "minimum3": op(3, lambda a, b, c: low_nan(low_nan(a, b), c), keeps=True),
        "maximum3": op(3, lambda a, b, c: high_nan(high_nan(a, b), c), keeps=True),
        "minimummaximum": op(3, lambda a, b, c: high_nan(low_nan(a, b), c)),
        "maximumminimum": op(3, lambda a, b, c: low_nan(high_nan(a, b), c)),
    }
    # No such instructions in double precision.
    if code == "f64":
        absent = {"sub", "subrev", "fmaak", "fmamk", "exp", "log", "sin", "cos"}
        rows = {name: row for name, row in rows.items() if name not in absent and "3" not in name and not name.startswith(("minm", "maxm"))}
        rows |= {name: op(2, f) for name, f in (("minimum", low_nan), ("maximum", high_nan))}
    return {f"v_{name}_{code}": row for name, row in rows.items()}


def _mad(code: str) -> dict[str, Op]:
    """Multiply and add with two roundings; in f32 denormals are flushed whatever the mode (GCN3 ISA, V_MAD_F32)."""

    def mad(a: Array, b: Array, c: Array) -> Array:
        return a * b + c

    def twice_flushed(a: Array, b: Array, c: Array) -> Array:
        a, b, c = map(floats.flush, (a, b, c))
        return floats.flush(floats.flush(a * b) + c)

    function = twice_flushed if code == "f32" else mad
    row = floating(code, (code,) * 3, function, keeps=True)
    tied = floating(code, (code,) * 3, function, keeps=True, tied=True)
    return {f"v_mad_{code}": row, f"v_mac_{code}": tied, f"v_madak_{code}": row, f"v_madmk_{code}": row}


def _mix(result: str, half: str = "") -> Op:
    """fma of f32 or converted f16 sources. An f16 result is f32_to_f16(fma(...)), rounded twice (RDNA3 ISA, V_FMA_MIXLO_F16).

    LLVM relies on that: it selects these for an fptrunc of an fma that carries no fast-math flag.
    """
    if result == "f32":
        return floating("f32", ("mix",) * 3, floats.fma32)
    return floating("f16", ("mix",) * 3, lambda a, b, c: floats.fma32(a, b, c).astype(np.float16), half=half)


_LDEXP: Mapping[str, Op] = {
    "v_ldexp_f16": floating("f16", ("f16", "i16"), floats.ldexp),
    "v_ldexp_f32": floating("f32", ("f32", "i32"), floats.ldexp),
    "v_ldexp_f64": floating("f64", ("f64", "i32"), floats.ldexp),
    "v_frexp_exp_i16_f16": floating("i16", ("f16",), lambda x: floats.frexp_exponent(x, np.int16)),
    "v_frexp_exp_i32_f32": floating("i32", ("f32",), lambda x: floats.frexp_exponent(x, np.int32)),
    "v_frexp_exp_i32_f64": floating("i32", ("f64",), lambda x: floats.frexp_exponent(x, np.int32)),
}

_OTHER: Mapping[str, Op] = {
    "v_mul_legacy_f32": floating("f32", ("f32", "f32"), floats.multiply_legacy),
    "v_fma_mix_f32": _mix("f32"),
    "v_fma_mixlo_f16": _mix("f16", "low"),
    "v_fma_mixhi_f16": _mix("f16", "high"),
    "v_mad_mix_f32": _mix("f32"),
    "v_mad_mixlo_f16": _mix("f16", "low"),
    "v_mad_mixhi_f16": _mix("f16", "high"),
}

_RENAMED: Mapping[str, str] = {
    "v_rcp_iflag_f32": "v_rcp_f32",
    "v_mul_dx9_zero_f32": "v_mul_legacy_f32",
}

VECTOR: Mapping[str, Op] = {
    **INTEGER,
    **CONVERT,
    **DIVISION,
    **with_names({**_rows("f16"), **_rows("f32"), **_rows("f64"), **_mad("f16"), **_mad("f32"), **_LDEXP, **_OTHER}, _RENAMED),
}
