"""The K-quants: super-blocks of 256 weights, whose sub-blocks have quantized scales (and mins) of their own."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from iq.formats.base import Format
from iq.formats.packing import FOUR, LOW, Bytes, Floats, columns, f16_bytes, f16_values, pack_nibbles, unpack_nibbles
from iq.formats.scale_search import GROUP_MAX_EPS, make_qkx2_quants, make_qp_quants, make_qx_quants, nearest_int, sum_in_order

# Where in a byte of q6_K the high bits of the four quarters of 128 weights lie.
_HIGH_BITS = np.array([[0], [2], [4], [6]], np.uint8)


class SixBitScales(Format):
    """What q4_K and q5_K share: f16 d, f16 dmin, 12 bytes of 8 scales and 8 mins of 6 bits, then the quants of 8 sub-blocks of 32.

    A weight is d * scale * quant - dmin * min.

    top: the largest quant. search: rmin, rdelta and nstep of make_qkx2_quants, where there is no imatrix.
    """

    block_size = 256
    mins = True
    sub_block, interleave = 32, 64
    f16_fields = (0, 2)

    top: ClassVar[int]
    search: ClassVar[tuple[float, float, int]]

    @classmethod
    def pack_quants(cls, quants: Bytes) -> Bytes:
        """u8[n, 256], in the weights' order -> the bytes of a block after its scales."""
        raise NotImplementedError

    @classmethod
    def unpack_quants(cls, packed: Bytes) -> Bytes:
        """The reverse of pack_quants."""
        raise NotImplementedError

    @classmethod
    def quantize_blocks(cls, blocks: Floats, weights: Floats | None) -> Bytes:
        """Without weights quantize_row_q<n>_K_ref, with weights quantize_row_q<n>_K_impl."""
        x = columns(blocks, 32)
        squares = x * x
        if weights is None:
            w = np.sqrt(sum_in_order(squares) / np.float32(32)) + np.abs(x)
            scales, mins, quants = make_qkx2_quants(x, w, cls.top, *cls.search)
            d, scales6 = _round_scales(scales.reshape(-1, 8))
            dmin, mins6 = _round_scales(mins.reshape(-1, 8))
        else:
            sigma2 = np.float32(2) * sum_in_order(columns(blocks * blocks, 256)) / np.float32(256)
            w = columns(weights, 32) * np.sqrt(np.repeat(sigma2, 8) + squares)
            scales, mins, quants = make_qkx2_quants(x, w, cls.top, -0.9, 0.05, 36)
            sum_w = columns(sum_in_order(w), 8)
            d, scales6 = make_qp_quants(columns(scales, 8), 63, sum_w)
            dmin, mins6 = make_qp_quants(columns(mins, 8), 63, sum_w)
            scales6, mins6 = scales6.T, mins6.T
        header = np.hstack([f16_bytes(d), f16_bytes(dmin), cls.pack_scales(scales6, mins6)])

        # The quants once more, with the scales as stored; a sub-block whose scale was rounded to 0 keeps those of the search.
        scale, offset = (stored.ravel() for stored in cls.scales_and_mins(header))
        quants = np.where(scale == 0, quants, np.clip(nearest_int((x + offset) / scale), 0, cls.top))
        return np.hstack([header, cls.pack_quants(quants.astype(np.uint8).T.reshape(-1, 256))])

    @classmethod
    def dequantize_blocks(cls, packed: Bytes) -> Floats:
        scales, mins = cls.scales_and_mins(packed)
        weights = cls.unpack_quants(packed[:, 16:]).reshape(-1, 8, 32).astype(np.float32)
        weights *= scales[:, :, None]
        weights -= mins[:, :, None]
        return weights.reshape(-1, 256)

    @classmethod
    def scales_and_mins(cls, packed: Bytes) -> tuple[Floats, Floats]:
        """The scales and mins of blocks, of which only the first 16 bytes matter: two f32[n, 8]."""
        first, second, rest = packed[:, 4:8], packed[:, 8:12], packed[:, 12:16]
        scales = np.hstack([first & 63, rest & 15 | first >> 6 << 4])
        mins = np.hstack([second & 63, rest >> 4 | second >> 6 << 4])
        return f16_values(packed[:, :2]) * scales, f16_values(packed[:, 2:4]) * mins

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


def _round_scales(scales: Floats) -> tuple[Floats, Bytes]:
    """f32[n, 8] -> the factor d f32[n] and 6-bit integers u8[n, 8]: scales ~ d * integers."""
    top = np.where(scales > 0, scales, np.float32(0)).max(axis=1)
    inverse = np.where(top > 0, np.float32(63) / top, np.float32(0))
    return top / np.float32(63), np.minimum(nearest_int(inverse[:, None] * scales).astype(np.uint8), 63)


class Q4_K(SixBitScales):
    """The scales, then 128 bytes of two quants each: in each 64 weights, weight i low and weight i + 32 high."""

    name, type = "q4_k", 12
    quantizer, imatrix = "q4_k", "used"
    type_size = 144
    top, search = 15, (-1.0, 0.1, 20)

    @classmethod
    def pack_quants(cls, quants: Bytes) -> Bytes:
        return pack_nibbles(quants, 32)

    @classmethod
    def unpack_quants(cls, packed: Bytes) -> Bytes:
        return unpack_nibbles(packed, 32)


class Q5_K(SixBitScales):
    """The scales, 32 bytes of fifth bits (weight i of sub-block j: bit j of byte i), then 128 bytes of four bits as in q4_K."""

    name, type = "q5_k", 13
    quantizer, imatrix = "q5_k", "used"
    type_size = 176
    top, search = 31, (-0.5, 0.1, 15)

    @classmethod
    def pack_scales(cls, scales: Bytes, mins: Bytes) -> Bytes:
        """Those that make_qp_quants wrapped are limited, which quantize_row_q4_K_impl leaves out."""
        return super().pack_scales(np.minimum(scales, 63), np.minimum(mins, 63))

    @classmethod
    def pack_quants(cls, quants: Bytes) -> Bytes:
        fifth = np.packbits((quants >> 4).reshape(-1, 8, 32), axis=1, bitorder="little")
        return np.hstack([fifth.reshape(-1, 32), pack_nibbles(quants & LOW, 32)])

    @classmethod
    def unpack_quants(cls, packed: Bytes) -> Bytes:
        fifth = np.unpackbits(packed[:, None, :32], axis=1, bitorder="little")
        return unpack_nibbles(packed[:, 32:], 32) | fifth.reshape(-1, 256) << FOUR


class Q6_K(Format):
    """128 bytes of low halves, 64 bytes of high bits, 16 int8 scales, f16 d: d * scale * (quant - 32).

    In each 128 weights, weight i lies low and weight i + 64 high in one byte of the halves, and weights i, i + 32, i + 64, i + 96 have
    their high bits in one byte.
    """

    name, type = "q6_k", 14
    quantizer, imatrix = "q6_k", "used"
    block_size, type_size = 256, 210
    zero = 32
    sub_block, interleave = 16, 128
    f16_fields = (208,)

    @classmethod
    def quantize_blocks(cls, blocks: Floats, weights: Floats | None) -> Bytes:
        """quantize_row_q6_K_ref; with weights quantize_row_q6_K_impl, which differs in nothing else."""
        x = columns(blocks, 16)
        scales, quants = make_qx_quants(x, 32, None if weights is None else columns(weights, 16))
        scales = scales.reshape(-1, 16)
        size = np.fmax(np.abs(scales), np.float32(0))  # a scale that overflowed to NaN loses every comparison in C
        top = np.take_along_axis(scales, size.argmax(axis=1, keepdims=True), axis=1)
        inverse = np.float32(-128) / top
        d = f16_bytes(np.float32(1) / inverse)
        scales8 = np.minimum(nearest_int(inverse * scales), 127).astype(np.int8)

        # The quants once more, with the scales as stored; a sub-block whose scale was rounded to 0 keeps those of the search.
        scale = (f16_values(d) * scales8).ravel()
        quants = np.where(scale == 0, quants, np.clip(nearest_int(x / scale), -32, 31) + 32)
        stored = quants.astype(np.uint8).T.reshape(-1, 256)
        quarters = stored.reshape(-1, 2, 4, 32)
        high = np.bitwise_or.reduce(quarters >> 4 << _HIGH_BITS, axis=2)
        packed = np.hstack([pack_nibbles(stored & LOW, 64), high.reshape(-1, 64), scales8.view(np.uint8), d])
        packed[size.max(axis=1) < GROUP_MAX_EPS] = 0
        return packed

    @classmethod
    def dequantize_blocks(cls, packed: Bytes) -> Floats:
        low, high, scales, d = np.hsplit(packed, [128, 192, 208])
        quants = unpack_nibbles(low, 64)
        quants |= (high.reshape(-1, 2, 1, 32) >> _HIGH_BITS << 4 & 48).reshape(-1, 256)
        weights = (quants.view(np.int8) - np.int8(32)).reshape(-1, 16, 16).astype(np.float32)
        weights *= (f16_values(d) * scales.view(np.int8).astype(np.float32))[:, :, None]
        return weights.reshape(-1, 256)
