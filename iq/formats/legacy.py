"""Blocks of 32 weights with one scale: q4_0, q8_0, and q8_1 for activations."""

from __future__ import annotations

import numpy as np

from iq.formats.base import Format
from iq.formats.packing import Bytes, Floats, columns, f16_bytes, f16_values, pack_nibbles, unpack_nibbles
from iq.formats.scale_search import make_qx_quants


class Q4_0(Format):
    """f16 d, 16 bytes of two quants each (weight i low, weight i + 16 high): d * (quant - 8)."""

    name, type = "q4_0", 2
    quantizer, imatrix = "q4_0", "used"
    block_size, type_size = 32, 18
    zero = 8
    sub_block, interleave = 32, 32
    f16_fields = (0,)

    @classmethod
    def importance(cls, rows: Floats, imatrix: Floats) -> Floats:
        squares = rows * rows
        # cumsum adds in C's order, sum does not.
        sigma2 = np.cumsum(squares, axis=1)[:, -1:] / np.float32(rows.shape[1])
        return imatrix * np.sqrt(sigma2 + squares)

    @classmethod
    def quantize_blocks(cls, blocks: Floats, weights: Floats | None) -> Bytes:
        """Without weights quantize_row_q4_0_ref, with weights quantize_row_q4_0_impl."""
        if weights is None:
            largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1, keepdims=True), axis=1)
            scale = (largest + np.float32(0)) / np.float32(-8)  # + 0 turns -0 into 0, from which ggml starts its search
            quants = np.minimum((_times_inverse(blocks, scale) + np.float32(8.5)).astype(np.uint8), np.uint8(15))
        else:
            scale, found = make_qx_quants(columns(blocks, 32), 8, columns(weights, 32))
            quants = found.T.astype(np.uint8, order="C")
        return np.hstack([f16_bytes(scale), pack_nibbles(quants, 16)])

    @classmethod
    def dequantize_blocks(cls, packed: Bytes) -> Floats:
        quants = unpack_nibbles(packed[:, 2:], 16).view(np.int8) - np.int8(8)
        return f16_values(packed[:, :2]) * quants.astype(np.float32)


class Q8_0(Format):
    """f16 d, 32 int8: d * quant."""

    name, type = "q8_0", 8
    quantizer = "q8_0"
    block_size, type_size = 32, 34
    signed = True
    sub_block, interleave = 32, 1
    f16_fields = (0,)

    @classmethod
    def quantize_blocks(cls, blocks: Floats, weights: Floats | None) -> Bytes:
        """quantize_row_q8_0_ref."""
        scale = _q8_scale(blocks)
        return np.hstack([f16_bytes(scale), _q8_quants(blocks, scale)])

    @classmethod
    def dequantize_blocks(cls, packed: Bytes) -> Floats:
        return f16_values(packed[:, :2]) * packed[:, 2:].view(np.int8).astype(np.float32)


class Q8_1(Format):
    """f16 d, f16 s = d * sum of quants, 32 int8: d * quant. For activations: s is what a dot product multiplies a zero or a min with.

    36 bytes, as ggml's C has it; gguf-py's table says 40.
    """

    name, type = "q8_1", 9
    block_size, type_size = 32, 36
    kind = "activations"
    signed = True
    sub_block, interleave = 32, 1
    f16_fields = (0, 2)

    @classmethod
    def quantize_blocks(cls, blocks: Floats, weights: Floats | None) -> Bytes:
        """quantize_row_q8_1_ref: the d and quants of q8_0, and s from the d before it was rounded to f16."""
        scale = _q8_scale(blocks)
        quants = _q8_quants(blocks, scale)
        total = quants.view(np.int8).sum(axis=1, keepdims=True, dtype=np.int32).astype(np.float32)
        return np.hstack([f16_bytes(scale), f16_bytes(total * scale), quants])

    @classmethod
    def dequantize_blocks(cls, packed: Bytes) -> Floats:
        """d * quant in float32; ggml has no function for it."""
        return f16_values(packed[:, :2]) * packed[:, 4:].view(np.int8).astype(np.float32)


def _q8_scale(blocks: Floats) -> Floats:
    scale: Floats = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    return scale


def _q8_quants(blocks: Floats, scale: Floats) -> Bytes:
    """f32[n, 32] by its scales f32[n, 1], rounded half away from zero as C's roundf: int8 as u8[n, 32]."""
    quants = _times_inverse(blocks, scale)
    whole = np.trunc(quants)
    quants -= whole
    quants *= np.float32(2)
    whole += np.trunc(quants, out=quants)
    return whole.astype(np.int8).view(np.uint8)


def _times_inverse(blocks: Floats, scale: Floats) -> Floats:
    """blocks times 1 / scale, or times 0 where the scale is 0."""
    return blocks * np.where(scale != 0, np.float32(1) / scale, np.float32(0))
