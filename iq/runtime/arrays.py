"""Checks of arrays and shapes that cross from numpy to a device."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iq.errors import DtypeError, LayoutError, ShapeError

Array = NDArray[Any]
Bytes = NDArray[np.uint8]


def check_array(array: object, what: str) -> Array:
    """`array`, if it is a C-contiguous numpy array. Raises DtypeError for another type, LayoutError for another layout."""
    if not isinstance(array, np.ndarray):
        raise DtypeError(f"{what}: expected a numpy array, got {type(array).__name__}")
    if not array.flags.c_contiguous:
        raise LayoutError(
            f"{what}: an array of shape {array.shape} and strides {array.strides} is not C-contiguous; use np.ascontiguousarray"
        )
    return array


def bytes_of(array: Array) -> Bytes:
    """The bytes of a C-contiguous array, flat, without a copy."""
    return array.reshape(-1).view(np.uint8)


def check_shape(shape: int | Iterable[Any], what: str) -> tuple[int, ...]:
    """A shape as a tuple; a number alone is one axis. Raises ShapeError for anything but non-negative integers."""
    try:
        dims = tuple(operator.index(n) for n in (shape if isinstance(shape, Iterable) else (shape,)))
    except TypeError:
        dims = (-1,)
    if any(n < 0 for n in dims):
        raise ShapeError(f"{what}: {shape!r} is no shape; expected non-negative integers")
    return dims


def check_sizes(what: str, **sizes: int) -> None:
    """Raises ShapeError unless every size fits the 32 bits in which kernels take it."""
    for name, n in sizes.items():
        if n >= 2**31:
            raise ShapeError(f"{what}: {n} {name} are too many; kernels take at most {2**31 - 1}: split the tensor")
