"""Blocks of one or two bits a weight with one scale: the ternary tq1_0 and tq2_0, q1_0 and q2_0."""

from __future__ import annotations

import numpy as np

from iq.formats.base import Format
from iq.formats.packing import Bytes, Floats, columns, f16_bytes, f16_values, pack_bits, pack_pairs, unpack_bits, unpack_pairs
from iq.formats.scale_search import roundf, sum_in_order, times_inverse

# The parts of tq1_0: how many bytes, of how many digits each. Weight i of a part is digit i / bytes of byte i mod bytes.
_PARTS = ((32, 5), (16, 5), (4, 4))
_POWERS = np.array([[81], [27], [9], [3], [1]], np.uint8)


class TQ1_0(Format):
    """48 bytes of five ternary digits, 4 of four, f16 d: d * (digit - 1). A byte is a fraction: its first digit is 3 * byte / 256."""

    name, type = "tq1_0", 34
    block_size, type_size = 256, 54
    zero = 1
    sub_block, interleave = 16, 256
    f16_fields = (52,)
    quantizer = "tq1_0"

    @classmethod
    def quantize_blocks(cls, blocks: Floats, weights: Floats | None) -> Bytes:
        """quantize_row_tq1_0_ref."""
        scale, digits = _ternary(blocks, wild=1)  # C's lroundf makes LONG_MIN, whose int is 0
        packed, first = [], 0
        for count, each in _PARTS:
            part = digits[:, first : first + count * each].reshape(-1, each, count)
            numbers = (part * _POWERS[:each]).sum(axis=1, dtype=np.uint16)
            packed.append(((numbers * np.uint16(256) + np.uint16(242)) // np.uint16(243)).astype(np.uint8))
            first += count * each
        return np.hstack([*packed, f16_bytes(scale)])

    @classmethod
    def dequantize_blocks(cls, packed: Bytes) -> Floats:
        digits, first = [], 0
        for count, each in _PARTS:
            rest = packed[:, None, first : first + count] * _POWERS[-1 : -1 - each : -1]  # modulo 256: the digits before are gone
            digits.append((rest.astype(np.uint16) * np.uint16(3) >> np.uint16(8)).reshape(len(packed), -1))
            first += count
        return (np.hstack(digits).astype(np.float32) - np.float32(1)) * f16_values(packed[:, 52:])


class TQ2_0(Format):
    """64 bytes of four quants each, as in q2_K, f16 d: d * (quant - 1)."""

    name, type = "tq2_0", 35
    block_size, type_size = 256, 66
    zero = 1
    sub_block, interleave = 16, 128
    f16_fields = (64,)
    quantizer = "tq2_0"

    @classmethod
    def quantize_blocks(cls, blocks: Floats, weights: Floats | None) -> Bytes:
        """quantize_row_tq2_0_ref."""
        scale, quants = _ternary(blocks, wild=1)  # as in tq1_0
        return np.hstack([pack_pairs(quants, 32), f16_bytes(scale)])

    @classmethod
    def dequantize_blocks(cls, packed: Bytes) -> Floats:
        return (unpack_pairs(packed[:, :64], 32).astype(np.float32) - np.float32(1)) * f16_values(packed[:, 64:])


class Q1_0(Format):
    """f16 d, 128 bits: d or -d. As a quant a bit stands for 0 or 2."""

    name, type = "q1_0", 41
    block_size, type_size = 128, 18
    zero = 1
    sub_block, interleave = 32, 8
    f16_fields = (0,)
    quantizer = "q1_0"

    @classmethod
    def quantize_blocks(cls, blocks: Floats, weights: Floats | None) -> Bytes:
        """quantize_row_q1_0_ref: d is the mean magnitude."""
        scale = sum_in_order(columns(np.abs(blocks), 128)) / np.float32(128)
        return np.hstack([f16_bytes(scale), pack_bits((blocks >= 0).view(np.uint8), 1)])

    @classmethod
    def dequantize_blocks(cls, packed: Bytes) -> Floats:
        d = f16_values(packed[:, :2])
        return np.where(unpack_bits(packed[:, 2:], 1) == 1, d, -d)


class Q2_0(Format):
    """f16 d, 64 quants of 2 bits in the weights' order: d * (quant - 1)."""

    name, type = "q2_0", 42
    block_size, type_size = 64, 18
    zero = 1
    sub_block, interleave = 32, 4
    f16_fields = (0,)
    quantizer = "q2_0"

    @classmethod
    def quantize_blocks(cls, blocks: Floats, weights: Floats | None) -> Bytes:
        """quantize_row_q2_0_ref: d is the largest magnitude, so that it makes no use of quant 3."""
        scale, quants = _ternary(blocks, wild=0)  # C's cast makes INT_MIN
        return np.hstack([f16_bytes(scale), pack_pairs(quants, 1)])

    @classmethod
    def dequantize_blocks(cls, packed: Bytes) -> Floats:
        return (unpack_pairs(packed[:, 2:], 1).astype(np.float32) - np.float32(1)) * f16_values(packed[:, :2])


def _ternary(blocks: Floats, wild: int) -> tuple[Floats, Bytes]:
    """f32[n, k] -> the largest magnitudes f32[n, 1] and -1, 0, 1 as u8[n, k] 0, 1, 2. wild: what they become where 1 / scale overflows."""
    scale = np.abs(blocks).max(axis=1, keepdims=True)
    ratios = times_inverse(blocks, scale)
    return scale, np.where(np.isfinite(ratios), roundf(ratios) + np.float32(1), np.float32(wild)).astype(np.uint8)
