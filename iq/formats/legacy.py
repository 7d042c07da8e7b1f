"""Blocks of 32 weights with one scale: q4_0 to q5_1, q8_0, and q8_1 for activations."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from iq.formats.base import Format
from iq.formats.packing import (
    FOUR,
    LOW,
    Bytes,
    Floats,
    columns,
    f16_bytes,
    f16_values,
    pack_bits,
    pack_nibbles,
    unpack_bits,
    unpack_nibbles,
)
from iq.formats.scale_search import largest, make_qkx2_quants, make_qx_quants, roundf, times_inverse


class FourOrFiveBits(Format):
    """What q4_0, q4_1, q5_0 and q5_1 share: floats, then of each weight the fifth bit (32 bits, where there are five) and four bits.

    Weight i has the low and weight i + 16 the high half of a byte.

    bits: of a quant.
    """

    block_size = 32
    sub_block, interleave = 32, 32
    imatrix = "used"

    bits: ClassVar[int]

    @classmethod
    def importance(cls, rows: Floats, imatrix: Floats) -> Floats:
        squares = rows * rows
        # cumsum adds in C's order, sum does not.
        sigma2 = np.cumsum(squares, axis=1)[:, -1:] / np.float32(rows.shape[1])
        return imatrix * np.sqrt(sigma2 + squares)

    @classmethod
    def pack_quants(cls, quants: Bytes) -> Bytes:
        """u8[n, 32] -> the bytes of a block after its floats."""
        nibbles = pack_nibbles(quants & LOW, 16)
        return np.hstack([pack_bits(quants >> FOUR, 1), nibbles]) if cls.bits == 5 else nibbles

    @classmethod
    def unpack_quants(cls, packed: Bytes) -> Bytes:
        """The quants of whole blocks: u8[n, type_size] -> u8[n, 32]."""
        quants = unpack_nibbles(packed[:, -16:], 16)
        return quants | unpack_bits(packed[:, -20:-16], 1) << FOUR if cls.bits == 5 else quants


class Centred(FourOrFiveBits):
    """f16 d, then the quants: d * (quant - zero)."""

    quantizer = "centred"
    f16_fields = (0,)

    @classmethod
    def quantize_blocks(cls, blocks: Floats, weights: Floats | None) -> Bytes:
        """Without weights quantize_row_q<n>_0_ref, with weights quantize_row_q<n>_0_impl."""
        if weights is None:
            # + 0 turns -0 into 0, from which ggml starts its search.
            scale = (largest(blocks, axis=1) + np.float32(0)) / np.float32(-cls.zero)
            shifted = times_inverse(blocks, scale) + np.float32(cls.zero + 0.5)
            quants = np.minimum(shifted.astype(np.uint8), np.uint8(2 * cls.zero - 1))
        else:
            scale, found = make_qx_quants(columns(blocks, 32), cls.zero, columns(weights, 32))
            quants = found.T.astype(np.uint8, order="C")
        return np.hstack([f16_bytes(scale), cls.pack_quants(quants)])

    @classmethod
    def dequantize_blocks(cls, packed: Bytes) -> Floats:
        quants = cls.unpack_quants(packed).view(np.int8) - np.int8(cls.zero)
        return f16_values(packed[:, :2]) * quants.astype(np.float32)


class WithMin(FourOrFiveBits):
    """f16 d, f16 m, then the quants: d * quant + m."""

    quantizer = "with_min"
    mins = True
    f16_fields = (0, 2)

    @classmethod
    def quantize_blocks(cls, blocks: Floats, weights: Floats | None) -> Bytes:
        """Without weights quantize_row_q<n>_1_ref, with weights quantize_row_q<n>_1_impl."""
        top = 2**cls.bits - 1
        if weights is None:
            # Of zeros of either sign the first counts, as in C; numpy's own min and max may take any.
            least = np.take_along_axis(blocks, blocks.argmin(axis=1, keepdims=True), axis=1)
            most = np.take_along_axis(blocks, blocks.argmax(axis=1, keepdims=True), axis=1)
            scale = (most - least) / np.float32(top)
            quants = np.minimum((times_inverse(blocks - least, scale) + np.float32(0.5)).astype(np.uint8), np.uint8(top))
        else:
            scale, low, found = make_qkx2_quants(columns(blocks, 32), columns(weights, 32), top, -0.9, 0.05, 36)
            least, quants = -low, found.T.astype(np.uint8, order="C")
        return np.hstack([f16_bytes(scale), f16_bytes(least), cls.pack_quants(quants)])

    @classmethod
    def dequantize_blocks(cls, packed: Bytes) -> Floats:
        return f16_values(packed[:, :2]) * cls.unpack_quants(packed).astype(np.float32) + f16_values(packed[:, 2:4])

    @classmethod
    def set_scales(cls, packed: Bytes, scales: Floats, mins: Floats) -> None:
        super().set_scales(packed, scales, -mins)


class Q4_0(Centred):
    name, type = "q4_0", 2
    type_size = 18
    bits, zero = 4, 8


class Q4_1(WithMin):
    name, type = "q4_1", 3
    type_size = 20
    bits = 4


class Q5_0(Centred):
    name, type = "q5_0", 6
    type_size = 22
    bits, zero = 5, 16


class Q5_1(WithMin):
    name, type = "q5_1", 7
    type_size = 24
    bits = 5


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
    """f32[n, 32] by its scales f32[n, 1]: int8 as u8[n, 32]."""
    return roundf(times_inverse(blocks, scale)).astype(np.int8).view(np.uint8)
