"""Arrays quantized to GGML blocks and back, on a thread per processor: the numpy reference."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import ArrayLike

from iq.errors import DtypeError, FormatError, ShapeError
from iq.formats.base import Format, Named, format_of
from iq.formats.packing import Bytes, Floats

# Weights that one thread takes at a time. Measured: with fewer, threads spend their time handing the interpreter lock to each other.
CHUNK = 262144


def quantize(array: ArrayLike, fmt: str | Named, imatrix: ArrayLike | None = None) -> Bytes:
    """Quantize float32, float16 or float64 [..., K] to GGML blocks, uint8[..., row_bytes(K)], byte for byte as ggml_quantize_chunk.

    imatrix: float [K], how much each column matters. One serves all rows; F32, F16, BF16, q8_0 and q8_1 make no use of it, as in ggml.
    Work is spread over a thread per processor.

    Raises FormatError for an unknown format, for weights that are NaN or infinite as float32 (unless the format is a plain float; ggml
    refuses them too) and for such an imatrix, for a format that requires an imatrix if there is none, and for weights on which ggml aborts
    (iq1 to iq3, beyond 1e18 or so); DtypeError for other element types; ShapeError if there is no last dimension, if it is no multiple of
    the block, or if the imatrix does not match it.
    """
    form, given, columns = checked(array, fmt, imatrix)
    k = given.shape[-1]
    out = np.empty((*given.shape[:-1], form.row_bytes(k)), np.uint8)
    if not given.size:
        return out

    # Whole rows only where a row's importances need them, so that one long vector is spread over threads like many rows.
    rows = given.reshape(-1, form.block_size if columns is None else k)
    packed = out.reshape(len(rows), -1)

    def work(part: slice) -> None:
        weights = None if columns is None else form.importance(rows[part], columns).reshape(-1, form.block_size)
        blocks = form.quantize_blocks(rows[part].reshape(-1, form.block_size), weights)
        packed[part] = blocks.reshape(packed[part].shape)

    _in_chunks(work, *rows.shape)
    return out


def checked(array: ArrayLike, fmt: str | Named, imatrix: ArrayLike | None) -> tuple[type[Format], Floats, Floats | None]:
    """What `quantize` is given, as its format, weights and importances, contiguous float32. Raises as it does."""
    form = format_of(fmt)
    given = _floats(array, "array")
    if given.ndim == 0:
        raise ShapeError(f"a 0-d array has no rows to quantize to {form.name}; give it at least one dimension")
    k = given.shape[-1]
    form.row_bytes(k)  # raises unless rows are whole blocks
    columns: Floats | None = None
    if imatrix is not None:
        columns = _floats(imatrix, "imatrix")
        if columns.shape != (k,):
            raise ShapeError(f"the imatrix has shape {columns.shape}; rows of {k} weights need ({k},)")
        _require_finite(columns, "imatrix", form)
    if form.block_size > 1:
        _require_finite(given, "array", form)
    if imatrix is None and form.imatrix == "required":
        raise FormatError(
            f"{form.name} cannot be quantized without an imatrix, in ggml as here: give imatrix=, how much each of the {k} columns matters "
            "(from llama-imatrix, or the mean squares of activations)"
        )
    return form, given, columns


def dequantize(packed: ArrayLike, fmt: str | Named) -> Floats:
    """Dequantize GGML blocks, uint8[..., row bytes], to float32[..., K], bit for bit as ggml does, on a thread per processor.

    Raises FormatError for an unknown format, DtypeError if `packed` is not uint8, ShapeError if there is no last dimension or it is no
    multiple of the bytes of a block.
    """
    form = format_of(fmt)
    given = np.asarray(packed)
    if given.dtype != np.uint8:
        raise DtypeError(f"packed {form.name} weights are uint8, not {given.dtype}; view them as uint8")
    if given.ndim == 0 or given.shape[-1] % form.type_size:
        raise ShapeError(f"{form.name} rows are blocks of {form.type_size} bytes; shape {given.shape} does not end in a multiple of that")
    out = np.empty((*given.shape[:-1], given.shape[-1] // form.type_size * form.block_size), np.float32)
    blocks, weights = np.ascontiguousarray(given).reshape(-1, form.type_size), out.reshape(-1, form.block_size)

    def work(part: slice) -> None:
        weights[part] = form.dequantize_blocks(blocks[part])

    _in_chunks(work, *weights.shape)
    return out


def _floats(array: ArrayLike, what: str) -> Floats:
    """Any of the accepted float arrays, as contiguous float32."""
    given = np.asarray(array)
    if given.dtype.type not in (np.float16, np.float32, np.float64):
        raise DtypeError(f"the {what} must be float32, float16 or float64, not {given.dtype}; convert with .astype(np.float32)")
    with np.errstate(over="ignore"):  # float64 beyond float32's range becomes infinite, which _require_finite reports
        return np.asarray(given, np.float32, order="C")


def _require_finite(array: Floats, what: str, form: type[Format]) -> None:
    finite = np.isfinite(array)
    if not finite.all():
        first = np.unravel_index(finite.argmin(), array.shape)
        count = array.size - np.count_nonzero(finite)
        index = ", ".join(str(i) for i in first)
        raise FormatError(
            f"{form.name} cannot be made from NaN or infinity (as float32): {count} of the {array.size} values of the {what} are; "
            f"the first is [{index}] = {array[first]}"
        )


def _in_chunks(work: Callable[[slice], None], rows: int, width: int) -> None:
    """Call work on slices of the rows, CHUNK weights or so at a time, from a thread per processor (numpy releases the GIL)."""
    step = max(1, CHUNK // width)
    parts = [slice(start, start + step) for start in range(0, rows, step)]

    def quietly(part: slice) -> None:
        with np.errstate(all="ignore"):  # a setting of the thread, so not set by the caller
            work(part)

    if len(parts) <= 1:
        for part in parts:
            quietly(part)
        return
    with ThreadPoolExecutor(min(len(parts), os.cpu_count() or 1)) as pool:
        for _ in pool.map(quietly, parts):
            pass
