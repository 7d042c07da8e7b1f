"""The GGML block formats: one small class each, with names, sizes and the numpy reference to quantize and dequantize.

Ids and sizes come from the `gguf` package; q8_1 is the exception (36 bytes in ggml's C, 40 in gguf-py). What the kernels need to know of a
format (how its integers are centred, how its weights fall into units and spans) is declared beside it; templates/formats/<name>.mlir.j2
holds the functions that load and decode a block on a device.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import gguf
import numpy as np
from numpy.typing import ArrayLike, NDArray

from iq.errors import DtypeError, FormatError, ShapeError
from iq.quant_search import GROUP_MAX_EPS, Floats, make_qkx2_quants, make_qp_quants, make_qx_quants, nearest_int, sum_in_order

Bytes = NDArray[np.uint8]

# Weights that one thread takes at a time. Measured: with fewer, threads spend their time handing the interpreter lock to each other.
CHUNK = 262144

FORMATS: dict[str, type[Format]] = {}


class Format:
    """A way of storing weights. Subclasses register themselves under their name.

    A quantized weight is  scale * (quant - zero) - min,  where scale (and min, if the format has mins) is shared by a span.

    name: ggml's name in lower case.
    type: ggml's id.
    block_size, type_size: weights and bytes of a block, as ggml counts them.
    quantized: whether the weights are integers with scales, so that integer dot products apply.
    activations: whether kernels only ever write it, for the other side of a product.
    zero: what to subtract from a stored quant; signed: whether the stored quant is an int8 rather than a uint8.
    mins: whether spans have a min.
    unit: weights one lane takes at a time in a matvec; span: consecutive weights of a unit that share scale and min.
    group: GGML blocks that kernels take together (8 for plain elements, whose GGML block is one element).
    """

    name: ClassVar[str]
    type: ClassVar[gguf.GGMLQuantizationType]
    block_size: ClassVar[int]
    type_size: ClassVar[int]
    quantized: ClassVar[bool] = True
    activations: ClassVar[bool] = False
    zero: ClassVar[int] = 0
    signed: ClassVar[bool] = False
    mins: ClassVar[bool] = False
    sub_block: ClassVar[int]
    interleave: ClassVar[int] = 1
    group: ClassVar[int] = 1
    kind: ClassVar[str] = "weights"

    def __init_subclass__(cls, type: gguf.GGMLQuantizationType, type_size: int | None = None) -> None:
        cls.type = type
        cls.name = type.name.lower()
        block_size, size = gguf.GGML_QUANT_SIZES[type]
        cls.block_size, cls.type_size = block_size, type_size or size
        FORMATS[cls.name] = cls

    # Derived, for the templates.
    @classmethod
    def kernel_block_weights(cls) -> int:
        """Weights in what a kernel takes as a block."""
        return cls.block_size * cls.group

    @classmethod
    def kernel_block_bytes(cls) -> int:
        """Bytes of what a kernel takes as a block."""
        return cls.type_size * cls.group

    @classmethod
    def row_bytes(cls, k: int) -> int:
        """Bytes of a row of k weights. Raises ShapeError unless k is a multiple of the block size."""
        if k < 0 or k % cls.block_size:
            raise ShapeError(f"{cls.name} stores rows in blocks of {cls.block_size} weights; a row of {k} is no multiple of that: pad it")
        return k // cls.block_size * cls.type_size

    # The numpy reference. What is here serves the formats that gguf-py covers; the others override it.
    @classmethod
    def quantize_blocks(cls, blocks: Floats, weights: Floats | None) -> Bytes:
        """Quantize f32[n, block_size] to uint8[n, type_size], to the same bytes as ggml_quantize_chunk.

        weights: f32[n, block_size] from `importance`, or None. Formats for which ggml ignores an imatrix ignore it too.
        """
        # One long row: gguf-py loops in Python over groups of 16 rows.
        return gguf.quants.quantize(blocks.reshape(1, -1), cls.type).view(np.uint8).reshape(-1, cls.type_size)

    @classmethod
    def dequantize_blocks(cls, packed: Bytes) -> Floats:
        """Dequantize uint8[n, type_size] to f32[n, block_size], bit for bit as ggml does."""
        return gguf.quants.dequantize(packed.reshape(1, -1), cls.type).reshape(-1, cls.block_size)

    @classmethod
    def importance(cls, rows: Floats, imatrix: Floats) -> Floats:
        """What quantize_blocks takes as weights, for f32[rows, k] and an imatrix f32[k]: f32[rows, k]. q4_0's depend on the whole row."""
        return np.broadcast_to(imatrix, rows.shape)


class F32(Format, type=gguf.GGMLQuantizationType.F32):
    quantized = False
    group = 8
    kind = "plain"


class F16(Format, type=gguf.GGMLQuantizationType.F16):
    quantized = False
    group = 8
    kind = "plain"


class BF16(Format, type=gguf.GGMLQuantizationType.BF16):
    quantized = False
    group = 8
    kind = "plain"


class Q4_0(Format, type=gguf.GGMLQuantizationType.Q4_0):
    """f16 d, 16 bytes of two quants each (weight i low, weight i + 16 high): d * (quant - 8)."""

    zero = 8
    sub_block = interleave = 32

    @classmethod
    def importance(cls, rows: Floats, imatrix: Floats) -> Floats:
        squares = rows * rows
        # cumsum adds in C's order, sum does not.
        sigma2 = np.cumsum(squares, axis=1)[:, -1:] / np.float32(rows.shape[1])
        return imatrix * np.sqrt(sigma2 + squares)

    @classmethod
    def quantize_blocks(cls, blocks: Floats, weights: Floats | None) -> Bytes:
        """Without weights quantize_row_q4_0_ref (gguf-py's), with weights quantize_row_q4_0_impl."""
        if weights is None:
            # + 0 turns -0 into 0, because gguf-py takes the sign of a block of zeros from its first weight, and ggml does not.
            return super().quantize_blocks(blocks + np.float32(0), None)
        scale, quants = make_qx_quants(_columns(blocks, 32), 8, _columns(weights, 32))
        low, high = quants.astype(np.uint8).T.reshape(-1, 2, 16).swapaxes(0, 1)
        return np.hstack([_f16(scale), low | high << 4])


class Q8_0(Format, type=gguf.GGMLQuantizationType.Q8_0):
    """f16 d, 32 int8: d * quant."""

    signed = True
    sub_block = 32


class Q8_1(Format, type=gguf.GGMLQuantizationType.Q8_1, type_size=36):
    """f16 d, f16 s = d * sum of quants, 32 int8: d * quant. For activations: s is what a dot product multiplies a zero or a min with."""

    quantized = False
    activations = True
    kind = "activations"
    signed = True
    sub_block = 32

    @classmethod
    def quantize_blocks(cls, blocks: Floats, weights: Floats | None) -> Bytes:
        """quantize_row_q8_1_ref: the d and quants of q8_0, and s from the d before it was rounded to f16."""
        d, quants = np.hsplit(Q8_0.quantize_blocks(blocks, None), [2])
        total = quants.view(np.int8).sum(axis=1, dtype=np.int32).astype(np.float32)
        return np.hstack([d, _f16(total * (np.abs(blocks).max(axis=1) / np.float32(127))), quants])

    @classmethod
    def dequantize_blocks(cls, packed: Bytes) -> Floats:
        """d * quant in float32; ggml has no function for it."""
        d, _, quants = np.hsplit(packed, [2, 4])
        return d.copy().view(np.float16).astype(np.float32) * quants.view(np.int8).astype(np.float32)


class Q4_K(Format, type=gguf.GGMLQuantizationType.Q4_K):
    """f16 d, f16 dmin, 12 bytes of 8 scales and 8 mins of 6 bits, 128 bytes of two quants each (span 2i low, span 2i + 1 high).

    d * scale * quant - dmin * min.
    """

    mins = True
    sub_block, interleave = 32, 64

    @classmethod
    def quantize_blocks(cls, blocks: Floats, weights: Floats | None) -> Bytes:
        """Without weights quantize_row_q4_K_ref, with weights quantize_row_q4_K_impl."""
        x = _columns(blocks, 32)
        squares = x * x
        if weights is None:
            w = np.sqrt(sum_in_order(squares) / np.float32(32)) + np.abs(x)
            scales, mins, quants = make_qkx2_quants(x, w, 15, -1.0, 0.1, 20)
            d, scales6 = cls._round_scales(scales.reshape(-1, 8))
            dmin, mins6 = cls._round_scales(mins.reshape(-1, 8))
        else:
            sigma2 = np.float32(2) * sum_in_order(_columns(blocks * blocks, 256)) / np.float32(256)
            w = _columns(weights, 32) * np.sqrt(np.repeat(sigma2, 8) + squares)
            scales, mins, quants = make_qkx2_quants(x, w, 15, -0.9, 0.05, 36)
            sum_w = _columns(sum_in_order(w), 8)
            d, scales6 = make_qp_quants(_columns(scales, 8), 63, sum_w)
            dmin, mins6 = make_qp_quants(_columns(mins, 8), 63, sum_w)
            scales6, mins6 = scales6.T, mins6.T
        header = np.hstack([_f16(d), _f16(dmin), cls._pack_scales(scales6, mins6)])

        # The quants once more, with the scales as stored; a span whose scale was rounded to 0 keeps those of the search.
        stored_d, stored_m = (half.astype(np.float32)[:, None] for half in header[:, :4].copy().view(np.float16).T)
        stored_scales, stored_mins = gguf.quants.Q4_K.get_scale_min(header[:, 4:])
        scale, offset = (stored_d * stored_scales).ravel(), (stored_m * stored_mins).ravel()
        quants = np.where(scale == 0, quants, np.clip(nearest_int((x + offset) / scale), 0, 15))
        spans = quants.astype(np.uint8).T.reshape(-1, 4, 2, 32)
        return np.hstack([header, (spans[:, :, 0] | spans[:, :, 1] << 4).reshape(-1, 128)])

    @staticmethod
    def _round_scales(scales: Floats) -> tuple[Floats, Bytes]:
        """f32[n, 8] -> the factor d f32[n] and 6-bit integers u8[n, 8]: scales ~ d * integers."""
        top = np.where(scales > 0, scales, np.float32(0)).max(axis=1)
        inverse = np.where(top > 0, np.float32(63) / top, np.float32(0))
        return top / np.float32(63), np.minimum(nearest_int(inverse[:, None] * scales).astype(np.uint8), 63)

    @staticmethod
    def _pack_scales(scales: Bytes, mins: Bytes) -> Bytes:
        """6-bit u8[n, 8] each -> u8[n, 12]: four scales, four mins, then nibbles of the others, whose top bits lie above the first."""
        return np.hstack(
            [
                scales[:, :4] | scales[:, 4:] >> 4 << 6,
                mins[:, :4] | mins[:, 4:] >> 4 << 6,
                scales[:, 4:] & 15 | mins[:, 4:] << 4,
            ]
        )


class Q6_K(Format, type=gguf.GGMLQuantizationType.Q6_K):
    """128 bytes of low halves, 64 bytes of high bits, 16 int8 scales, f16 d: d * scale * (quant - 32)."""

    zero = 32
    sub_block, interleave = 16, 128

    @classmethod
    def quantize_blocks(cls, blocks: Floats, weights: Floats | None) -> Bytes:
        """quantize_row_q6_K_ref; with weights quantize_row_q6_K_impl, which differs in nothing else."""
        x = _columns(blocks, 16)
        scales, quants = make_qx_quants(x, 32, None if weights is None else _columns(weights, 16))
        scales = scales.reshape(-1, 16)
        size = np.fmax(np.abs(scales), np.float32(0))  # a scale that overflowed to NaN loses every comparison in C
        top = np.take_along_axis(scales, size.argmax(axis=1, keepdims=True), axis=1)
        inverse = np.float32(-128) / top
        d = _f16(np.float32(1) / inverse)
        scales8 = np.minimum(nearest_int(inverse * scales), 127).astype(np.int8)

        # The quants once more, with the scales as stored; a span whose scale was rounded to 0 keeps those of the search.
        scale = (d.view(np.float16).astype(np.float32) * scales8).ravel()
        quants = np.where(scale == 0, quants, np.clip(nearest_int(x / scale), -32, 31) + 32)
        spans = quants.astype(np.uint8).T.reshape(-1, 2, 4, 32)
        low = spans[:, :, :2] & 15 | spans[:, :, 2:] << 4
        high = np.bitwise_or.reduce(spans >> 4 << np.array([0, 2, 4, 6], np.uint8)[:, None], axis=2)
        packed = np.hstack([low.reshape(-1, 128), high.reshape(-1, 64), scales8.view(np.uint8), d])
        packed[size.max(axis=1) < GROUP_MAX_EPS] = 0
        return packed


def format_of(name: str | gguf.GGMLQuantizationType) -> type[Format]:
    """The format of that name: ggml's in either case ("q4_k", "Q4_K"), candle's ("q4k"), or gguf-py's enum. Raises FormatError."""
    if isinstance(name, (str, gguf.GGMLQuantizationType)):
        key = name.lower() if isinstance(name, str) else name.name.lower()
        for form in FORMATS.values():
            if key in (form.name, form.name.replace("_k", "k")):
                return form
    raise FormatError(f"unknown format {name!r}; known are {', '.join(FORMATS)}")


def quantize(array: ArrayLike, fmt: str | gguf.GGMLQuantizationType, imatrix: ArrayLike | None = None) -> Bytes:
    """Quantize float32, float16 or float64 [..., K] to GGML blocks, uint8[..., row_bytes(K)], byte for byte as ggml_quantize_chunk.

    imatrix: float [K], how much each column matters. One serves all rows; F32, F16, BF16, q8_0 and q8_1 make no use of it, as in ggml.
    Work is spread over a thread per processor.

    Raises FormatError for an unknown format, for weights that are NaN or infinite as float32 (unless the format is a plain float; ggml
    refuses them too) and for such an imatrix; DtypeError for other element types; ShapeError if there is no last dimension, if it is no
    multiple of the block, or if the imatrix does not match it.
    """
    form = format_of(fmt)
    given = _floats(array, "array")
    if given.ndim == 0:
        raise ShapeError(f"a 0-d array has no rows to quantize to {form.name}; give it at least one dimension")
    k = given.shape[-1]
    out = np.empty((*given.shape[:-1], form.row_bytes(k)), np.uint8)
    columns: Floats | None = None
    if imatrix is not None:
        columns = _floats(imatrix, "imatrix")
        if columns.shape != (k,):
            raise ShapeError(f"the imatrix has shape {columns.shape}; rows of {k} weights need ({k},)")
        _require_finite(columns, "imatrix", form)
    if form.block_size > 1:
        _require_finite(given, "array", form)
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


def dequantize(packed: ArrayLike, fmt: str | gguf.GGMLQuantizationType) -> Floats:
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


def _columns(values: Floats, members: int) -> Floats:
    """Consecutive groups of `members` values as columns, contiguous: f32[members, groups]."""
    return np.ascontiguousarray(values.reshape(-1, members).T)


def _f16(values: Floats) -> Bytes:
    """f32[n] -> the bytes of its float16, u8[n, 2]."""
    return values.astype(np.float16).reshape(-1, 1).view(np.uint8)
