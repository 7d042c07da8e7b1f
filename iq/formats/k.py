"""The K-quants: super-blocks of 256 weights, whose sub-blocks have quantized scales (and mins) of their own."""

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
    pack_pairs,
    unpack_bits,
    unpack_nibbles,
    unpack_pairs,
)
from iq.formats.scale_search import (
    GROUP_MAX_EPS,
    importances,
    largest,
    largest_scales,
    make_q3_quants,
    make_qkx2_quants,
    make_qp_quants,
    make_qx_quants,
    nearest_int,
    requantize,
    scaled_variance,
    sum_in_order,
)


class QuantizedMins(Format):
    """What q2_K, q4_K and q5_K share: f16 d, f16 dmin, for each sub-block an integer scale and min, then the quants.

    A weight is d * scale * quant - dmin * min.

    top, top_scale: the largest quant, the largest scale and min.
    search: rmin, rdelta, nstep and use_mad of make_qkx2_quants, where there is no imatrix.
    spread: where there is one, how many times the mean square of a block's weights counts in their importance.
    """

    block_size = 256
    mins = True
    imatrix = "used"

    top: ClassVar[int]
    top_scale: ClassVar[int]
    search: ClassVar[tuple[float, float, int, bool]]
    spread: ClassVar[int]

    @classmethod
    def pack(cls, d: Floats, dmin: Floats, scales: Bytes, mins: Bytes, quants: Bytes) -> Bytes:
        """Blocks of f32[n] twice, u8[n, sub-blocks] twice and u8[n, 256]: u8[n, type_size]."""
        raise NotImplementedError

    @classmethod
    def scales_and_mins(cls, packed: Bytes) -> tuple[Floats, Floats]:
        """The scales and mins of blocks as floats: two f32[n, sub-blocks]."""
        raise NotImplementedError

    @classmethod
    def unpack_quants(cls, packed: Bytes) -> Bytes:
        """The quants of blocks: u8[n, 256]."""
        raise NotImplementedError

    @classmethod
    def weights_of(cls, x: Floats) -> Floats:
        """How much each weight matters where there is no imatrix: f32[members, sub-blocks] of those."""
        raise NotImplementedError

    @classmethod
    def round_scales(cls, scales: Floats) -> tuple[Floats, Bytes]:
        """f32[n, sub-blocks] -> the factor d f32[n] and integers u8[n, sub-blocks]: scales ~ d * integers."""
        top = np.where(scales > 0, scales, np.float32(0)).max(axis=1)
        inverse = np.where(top > 0, np.float32(cls.top_scale) / top, np.float32(0))
        return top / np.float32(cls.top_scale), nearest_int(inverse[:, None] * scales).astype(np.uint8)

    @classmethod
    def quantize_blocks(cls, blocks: Floats, weights: Floats | None) -> Bytes:
        """Without weights quantize_row_q<n>_K_ref, with weights quantize_row_q<n>_K_impl."""
        x = columns(blocks, cls.sub_block)
        n = 256 // cls.sub_block
        if weights is None:
            rmin, rdelta, nstep, use_mad = cls.search
            scales, mins, quants = make_qkx2_quants(x, cls.weights_of(x), cls.top, rmin, rdelta, nstep, use_mad)
            d, int_scales = cls.round_scales(scales.reshape(-1, n))
            dmin, int_mins = cls.round_scales(mins.reshape(-1, n))
        else:
            w = importances(x, columns(weights, cls.sub_block), scaled_variance(blocks, cls.spread))
            scales, mins, quants = make_qkx2_quants(x, w, cls.top, -0.9, 0.05, 36)
            sum_w = columns(sum_in_order(w), n)
            d, int_scales = make_qp_quants(columns(scales, n), cls.top_scale, sum_w)
            dmin, int_mins = make_qp_quants(columns(mins, n), cls.top_scale, sum_w)
            int_scales, int_mins = int_scales.T, int_mins.T

        as_stored = cls.pack(d, dmin, int_scales, int_mins, np.zeros(blocks.shape, np.uint8))
        scale, offset = (stored.ravel() for stored in cls.scales_and_mins(as_stored))
        quants = requantize(x + offset, scale, quants, 0, cls.top)
        return cls.pack(d, dmin, int_scales, int_mins, quants.astype(np.uint8).T.reshape(-1, 256))

    @classmethod
    def dequantize_blocks(cls, packed: Bytes) -> Floats:
        scales, mins = cls.scales_and_mins(packed)
        weights = cls.unpack_quants(packed).reshape(*scales.shape, cls.sub_block).astype(np.float32)
        weights *= scales[:, :, None]
        weights -= mins[:, :, None]
        return weights.reshape(-1, 256)


class Q2_K(QuantizedMins):
    """16 bytes of a scale (low) and a min (high) of 4 bits each, 64 bytes of quants, f16 d, f16 dmin.

    In each 128 weights, weights i, i + 32, i + 64, i + 96 lie in one byte.
    """

    name, type = "q2_k", 10
    quantizer = "q2_k"
    type_size = 84
    sub_block, interleave = 16, 128
    f16_fields = (80, 82)
    top, top_scale = 3, 15
    search, spread = (-0.5, 0.1, 15, True), 1

    @classmethod
    def pack(cls, d: Floats, dmin: Floats, scales: Bytes, mins: Bytes, quants: Bytes) -> Bytes:
        return np.hstack([scales | mins << FOUR, pack_pairs(quants, 32), f16_bytes(d), f16_bytes(dmin)])

    @classmethod
    def scales_and_mins(cls, packed: Bytes) -> tuple[Floats, Floats]:
        return f16_values(packed[:, 80:82]) * (packed[:, :16] & LOW), f16_values(packed[:, 82:]) * (packed[:, :16] >> FOUR)

    @classmethod
    def unpack_quants(cls, packed: Bytes) -> Bytes:
        return unpack_pairs(packed[:, 16:80], 32)

    @classmethod
    def weights_of(cls, x: Floats) -> Floats:
        return np.abs(x)


class Q3_K(Format):
    """32 bytes of third bits, 64 bytes of two bits as in q2_K, 16 scales of 6 bits, f16 d: d * (scale - 32) * (quant - 4).

    Bit s of byte i of the third bits belongs to weight 32 s + i. Scale j has its low four bits in a half of byte j mod 8 of 12, its top two
    in a quarter of byte 8 + j mod 4.
    """

    name, type = "q3_k", 11
    quantizer = "q3_k"
    block_size, type_size = 256, 110
    zero = 4
    sub_block, interleave = 16, 128
    f16_fields = (108,)
    imatrix = "used"

    @classmethod
    def quantize_blocks(cls, blocks: Floats, weights: Floats | None) -> Bytes:
        """Without weights quantize_row_q3_K_ref, with weights quantize_row_q3_K_impl."""
        x = columns(blocks, 16)
        if weights is None:
            scales, quants = make_q3_quants(x, 4)
            scales = scales.reshape(-1, 16)
            top, size = largest_scales(scales)
            inverse = np.float32(-32) / top
            some = size > 0
            d = np.where(some, np.float32(1) / inverse, np.float32(0))
            scales6 = np.where(some, np.clip(nearest_int(inverse * scales).astype(np.int8), -32, 31) + 32, 0)
        else:
            w = importances(x, columns(weights, 16), scaled_variance(blocks, 2))
            scales, quants = make_qx_quants(x, 4, w)
            d, found = make_qx_quants(columns(scales, 16), 32, columns(sum_in_order(w), 16))
            scales6 = found.T
        tail = np.hstack([cls.pack_scales(scales6.astype(np.uint8)), f16_bytes(d)])
        quants = requantize(x, cls.scales_of(tail).ravel(), quants, -4, 3)
        stored = quants.astype(np.uint8).T.reshape(-1, 256)
        return np.hstack([pack_bits(stored >> np.uint8(2), 32), pack_pairs(stored & np.uint8(3), 32), tail])

    @classmethod
    def dequantize_blocks(cls, packed: Bytes) -> Floats:
        quants = unpack_pairs(packed[:, 32:96], 32) | unpack_bits(packed[:, :32], 32) << np.uint8(2)
        weights = (quants.view(np.int8) - np.int8(4)).reshape(-1, 16, 16).astype(np.float32)
        weights *= cls.scales_of(packed[:, 96:])[:, :, None]
        return weights.reshape(-1, 256)

    @classmethod
    def pack_scales(cls, scales: Bytes) -> Bytes:
        """6-bit u8[n, 16] -> u8[n, 12]."""
        return np.hstack([pack_nibbles(scales & LOW, 8), pack_pairs(scales >> FOUR, 4)])

    @classmethod
    def scales_of(cls, tail: Bytes) -> Floats:
        """The scales of blocks, of which these are the last 14 bytes: f32[n, 16]."""
        scales6 = unpack_nibbles(tail[:, :8], 8) | unpack_pairs(tail[:, 8:12], 4) << FOUR
        return f16_values(tail[:, 12:]) * (scales6.view(np.int8) - np.int8(32)).astype(np.float32)


class SixBitScales(QuantizedMins):
    """What q4_K and q5_K share: f16 d, f16 dmin, 12 bytes of 8 scales and 8 mins of 6 bits, then the quants of 8 sub-blocks of 32."""

    sub_block, interleave = 32, 64
    f16_fields = (0, 2)
    top_scale, spread = 63, 2

    @classmethod
    def pack_quants(cls, quants: Bytes) -> Bytes:
        """u8[n, 256], in the weights' order -> the bytes of a block after its scales."""
        raise NotImplementedError

    @classmethod
    def pack(cls, d: Floats, dmin: Floats, scales: Bytes, mins: Bytes, quants: Bytes) -> Bytes:
        return np.hstack([f16_bytes(d), f16_bytes(dmin), cls.pack_scales(scales, mins), cls.pack_quants(quants)])

    @classmethod
    def pack_scales(cls, scales: Bytes, mins: Bytes) -> Bytes:
        """6-bit u8[n, 8] each -> u8[n, 12]: four scales, four mins, then nibbles of the others, whose top bits lie above the first."""
        return np.hstack(
            [
                scales[:, :4] | scales[:, 4:] >> 4 << 6,
                mins[:, :4] | mins[:, 4:] >> 4 << 6,
                scales[:, 4:] & 15 | mins[:, 4:] << 4,
            ]
        )

    @classmethod
    def scales_and_mins(cls, packed: Bytes) -> tuple[Floats, Floats]:
        first, second, rest = packed[:, 4:8], packed[:, 8:12], packed[:, 12:16]
        scales = np.hstack([first & 63, rest & 15 | first >> 6 << 4])
        mins = np.hstack([second & 63, rest >> 4 | second >> 6 << 4])
        return f16_values(packed[:, :2]) * scales, f16_values(packed[:, 2:4]) * mins

    @classmethod
    def weights_of(cls, x: Floats) -> Floats:
        weights: Floats = np.sqrt(sum_in_order(x * x) / np.float32(32)) + np.abs(x)
        return weights

    @classmethod
    def round_scales(cls, scales: Floats) -> tuple[Floats, Bytes]:
        d, integers = super().round_scales(scales)
        return d, np.minimum(integers, 63)


class Q4_K(SixBitScales):
    """The scales, then 128 bytes of two quants each: in each 64 weights, weight i low and weight i + 32 high."""

    name, type = "q4_k", 12
    quantizer = "q4_k"
    type_size = 144
    top, search = 15, (-1.0, 0.1, 20, False)

    @classmethod
    def pack_quants(cls, quants: Bytes) -> Bytes:
        return pack_nibbles(quants, 32)

    @classmethod
    def unpack_quants(cls, packed: Bytes) -> Bytes:
        return unpack_nibbles(packed[:, 16:], 32)


class Q5_K(SixBitScales):
    """The scales, 32 bytes of fifth bits (weight i of sub-block j: bit j of byte i), then 128 bytes of four bits as in q4_K."""

    name, type = "q5_k", 13
    quantizer = "q5_k"
    type_size = 176
    top, search = 31, (-0.5, 0.1, 15, False)

    @classmethod
    def pack_scales(cls, scales: Bytes, mins: Bytes) -> Bytes:
        """Those that make_qp_quants wrapped are limited, which quantize_row_q4_K_impl leaves out."""
        return super().pack_scales(np.minimum(scales, 63), np.minimum(mins, 63))

    @classmethod
    def pack_quants(cls, quants: Bytes) -> Bytes:
        return np.hstack([pack_bits(quants >> FOUR, 32), pack_nibbles(quants & LOW, 32)])

    @classmethod
    def unpack_quants(cls, packed: Bytes) -> Bytes:
        return unpack_nibbles(packed[:, 48:], 32) | unpack_bits(packed[:, 16:48], 32) << FOUR


class Q6_K(Format):
    """128 bytes of low halves, 64 bytes of high bits, 16 int8 scales, f16 d: d * scale * (quant - 32).

    In each 128 weights, weight i lies low and weight i + 64 high in one byte of the halves, and weights i, i + 32, i + 64, i + 96 have
    their high bits in one byte.
    """

    name, type = "q6_k", 14
    quantizer = "q6_k"
    block_size, type_size = 256, 210
    zero = 32
    sub_block, interleave = 16, 128
    f16_fields = (208,)
    imatrix = "used"

    @classmethod
    def quantize_blocks(cls, blocks: Floats, weights: Floats | None) -> Bytes:
        """quantize_row_q6_K_ref; with weights quantize_row_q6_K_impl, which differs in nothing else."""
        x = columns(blocks, 16)
        scales, quants = make_qx_quants(x, 32, None if weights is None else columns(weights, 16))
        scales = scales.reshape(-1, 16)
        top, size = largest_scales(scales)
        inverse = np.float32(-128) / top
        d = f16_bytes(np.float32(1) / inverse)
        scales8 = np.minimum(nearest_int(inverse * scales), 127).astype(np.int8)
        quants = requantize(x, (f16_values(d) * scales8).ravel(), quants, -32, 31)
        stored = quants.astype(np.uint8).T.reshape(-1, 256)
        packed = np.hstack([pack_nibbles(stored & LOW, 64), pack_pairs(stored >> FOUR, 32), scales8.view(np.uint8), d])
        packed[size[:, 0] < GROUP_MAX_EPS] = 0
        return packed

    @classmethod
    def dequantize_blocks(cls, packed: Bytes) -> Floats:
        low, high, scales, d = np.hsplit(packed, [128, 192, 208])
        quants = unpack_nibbles(low, 64) | unpack_pairs(high, 32) << FOUR
        weights = (quants.view(np.int8) - np.int8(32)).reshape(-1, 16, 16).astype(np.float32)
        weights *= (f16_values(d) * scales.view(np.int8).astype(np.float32))[:, :, None]
        return weights.reshape(-1, 256)


class Q8_K(Format):
    """f32 d, 256 int8, the sums of each 16 of them as int16: d * quant. For activations that CPUs multiply K-quants with."""

    name, type = "q8_k", 15
    block_size, type_size = 256, 292
    kind = "activations"
    signed = True
    sub_block, interleave = 32, 1

    @classmethod
    def quantize_blocks(cls, blocks: Floats, weights: Floats | None) -> Bytes:
        """quantize_row_q8_K_ref; of a block of zeros ggml leaves the sums as they are, which are 0 here."""
        top = largest(blocks, axis=1)
        inverse = np.float32(-127) / top
        quants = np.minimum(nearest_int(inverse * blocks), 127).astype(np.int8)
        sums = quants.reshape(-1, 16, 16).sum(axis=2, dtype=np.int16)
        packed = np.hstack([(np.float32(1) / inverse).view(np.uint8), quants.view(np.uint8), sums.view(np.uint8)])
        packed[top[:, 0] == 0] = 0
        return packed

    @classmethod
    def dequantize_blocks(cls, packed: Bytes) -> Floats:
        return np.ascontiguousarray(packed[:, :4]).view(np.float32) * packed[:, 4:260].view(np.int8).astype(np.float32)

    @classmethod
    def set_scales(cls, packed: Bytes, scales: Floats, mins: Floats) -> None:
        packed[:, :4] = scales.astype(np.float32).reshape(-1, 1).view(np.uint8)
