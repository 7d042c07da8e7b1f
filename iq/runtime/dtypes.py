"""The element types that buffers hold: their names, and what numpy calls them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from iq.errors import DtypeError


@dataclass(frozen=True)
class Dtype:
    """One element type.

    name: as kernels spell it ("f32").
    numpy: the numpy type its values cross as (bf16: ml_dtypes').
    """

    name: str
    numpy: np.dtype[Any]

    @property
    def itemsize(self) -> int:
        return int(self.numpy.itemsize)


DTYPES: dict[str, Dtype] = {
    d.name: d
    for d in (
        Dtype("f16", np.dtype(np.float16)),
        Dtype("f32", np.dtype(np.float32)),
        Dtype("f64", np.dtype(np.float64)),
        Dtype("bf16", np.dtype(ml_dtypes.bfloat16)),
        Dtype("u8", np.dtype(np.uint8)),
        Dtype("i8", np.dtype(np.int8)),
        Dtype("u32", np.dtype(np.uint32)),
        Dtype("i32", np.dtype(np.int32)),
        Dtype("i64", np.dtype(np.int64)),
    )
}

# numpy's names too: "f32" and "float32".
_BY_NAME = {str(dtype.numpy.name): dtype for dtype in DTYPES.values()} | DTYPES


def dtype_of(what: Any) -> Dtype:
    """The element type of a name ("f32", "float32"), a numpy type or a Dtype. Raises DtypeError for one that buffers do not hold."""
    if isinstance(what, Dtype):
        return what
    if isinstance(what, str) and what in _BY_NAME:
        return _BY_NAME[what]
    try:
        wanted = np.dtype(what)
    except TypeError:
        wanted = None
    for dtype in DTYPES.values():
        if wanted is not None and dtype.numpy == wanted:
            return dtype
    raise DtypeError(f"no buffer holds elements of type {what!r}; expected one of {', '.join(DTYPES)} (in the machine's byte order)")
