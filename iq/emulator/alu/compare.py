"""Comparisons: v_cmp_<condition>_<type> and v_cmp_class."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from iq.emulator.alu.floats import bits, floating
from iq.emulator.alu.types import Array, Function, Op


def _unordered(a: Array, b: Array) -> Array:
    return np.isnan(a) | np.isnan(b)


# The n... conditions are true where an operand is NaN.
_FLOAT_CONDITIONS: Mapping[str, Function] = {
    "f": lambda a, b: np.zeros(np.broadcast(a, b).shape, bool),
    "lt": np.less,
    "eq": np.equal,
    "le": np.less_equal,
    "gt": np.greater,
    "lg": lambda a, b: (a < b) | (a > b),
    "ge": np.greater_equal,
    "o": lambda a, b: ~_unordered(a, b),
    "u": _unordered,
    "nge": lambda a, b: ~(a >= b),
    "nlg": lambda a, b: ~((a < b) | (a > b)),
    "ngt": lambda a, b: ~(a > b),
    "nle": lambda a, b: ~(a <= b),
    "neq": lambda a, b: ~(a == b),
    "nlt": lambda a, b: ~(a < b),
    "tru": lambda a, b: np.ones(np.broadcast(a, b).shape, bool),
    "t": lambda a, b: np.ones(np.broadcast(a, b).shape, bool),
}
_INTEGER_CONDITIONS: Mapping[str, Function] = {
    "f": _FLOAT_CONDITIONS["f"],
    "lt": np.less,
    "eq": np.equal,
    "le": np.less_equal,
    "gt": np.greater,
    "ne": np.not_equal,
    "lg": np.not_equal,
    "ge": np.greater_equal,
    "t": _FLOAT_CONDITIONS["t"],
}
_MANTISSA = {2: 10, 4: 23, 8: 52}


def classify(x: Array, classes: Array) -> Array:
    """Whether x is of one of the classes whose bits are set: 0 signalling NaN, 1 quiet NaN, 2 -infinity, 3 -normal, 4 -denormal, 5 -0,
    6 +0, 7 +denormal, 8 +normal, 9 +infinity."""
    pattern = bits(x)
    unit = pattern.dtype.type
    width, size = _MANTISSA[x.dtype.itemsize], x.dtype.itemsize * 8
    negative = (pattern >> unit(size - 1)) != 0
    mantissa = pattern & unit((1 << width) - 1)
    quiet = (mantissa >> unit(width - 1)) != 0
    infinite_or_nan = (pattern << unit(1)) >> unit(width + 1) == unit((1 << (size - 1 - width)) - 1)
    tiny = (pattern << unit(1)) >> unit(width + 1) == 0
    positive = np.select([infinite_or_nan, ~tiny, mantissa != 0], [9, 8, 7], 6)
    number = np.where(negative, 11 - positive, positive)
    found = np.where(infinite_or_nan & (mantissa != 0), np.where(quiet, 1, 0), number).astype(np.uint32)
    member: Array = ((classes >> found) & np.uint32(1)) != 0
    return member


COMPARE: Mapping[str, Op] = {
    **{
        f"v_cmp_{name}_{code}": floating("mask", (code, code), function)
        for code in ("f16", "f32", "f64")
        for name, function in _FLOAT_CONDITIONS.items()
    },
    **{
        f"v_cmp_{name}_{code}": Op("mask", (code, code), function)
        for code in ("u16", "i16", "u32", "i32", "u64", "i64")
        for name, function in _INTEGER_CONDITIONS.items()
    },
    # Classes look at the bits: no flushing.
    **{f"v_cmp_class_{code}": Op("mask", (code, "u32"), classify) for code in ("f16", "f32", "f64")},
}
