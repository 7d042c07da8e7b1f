"""Formats whose nibbles are the numbers of 16 int8 in a codebook."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from iq.formats.base import Format
from iq.formats.packing import (
    FOUR,
    LOW,
    Bytes,
    Floats,
    columns,
    f16_bytes,
    f16_values,
    pack_nibbles,
    pack_pairs,
    unpack_nibbles,
    unpack_pairs,
)
from iq.formats.scale_search import GROUP_MAX_EPS, importances, largest, largest_scales, nearest_int, sum_in_order, times_inverse

# ggml's kvalues_iq4nl.
_NON_LINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_NON_LINEAR_VALUES = np.array(_NON_LINEAR, np.float32)
# The nibble whose value is nearest to a number of h / 2 or more, below (h + 1) / 2: by h, 0 to 255 and -256 to -1. What is halfway between
# two values is a multiple of 1 / 2, and goes to the upper one.
_HALFWAY = (_NON_LINEAR_VALUES[1:] + _NON_LINEAR_VALUES[:-1]) / 2
_NEAREST: Bytes = np.searchsorted(_HALFWAY, np.r_[:256, -256:0] / 2, side="right").astype(np.uint8)


def best_index_int8(x: Floats) -> Bytes:
    """ggml's: the nibbles whose values in iq4_nl's codebook are nearest to x, the last one for NaN. f32 of any shape -> u8."""
    halves = x * np.float32(2)
    np.floor(halves, out=halves)
    np.fmin(halves, np.float32(255), out=halves)
    np.fmax(halves, np.float32(-256), out=halves)
    nibbles: Bytes = _NEAREST[halves.astype(np.int16)]
    return nibbles


def _search_scales(x: Floats, weights: Floats) -> Floats:
    """The search of quantize_row_iq4_nl_impl (with its ntry of 7): f32[members, groups] each -> scales f32[groups], x ~ scale * value."""
    top = largest(x, axis=0)[0]
    first = np.float32(_NON_LINEAR[0])

    def sums(inverse: Floats) -> tuple[Floats, Floats]:
        values = _NON_LINEAR_VALUES[best_index_int8(inverse * x)]
        weighted = weights * values
        return sum_in_order(weighted * x), sum_in_order(weighted * values)

    sum_qx, sum_q2 = sums(np.float32(1) / (-top / first))
    scale = np.where(sum_q2 > 0, sum_qx / sum_q2, np.float32(0))
    best = scale * sum_qx
    for step in range(-7, 8):
        sum_qx, sum_q2 = sums((np.float32(step) + first) / top)
        better = (sum_q2 > 0) & (sum_qx * sum_qx > best * sum_q2)
        scale = np.where(better, sum_qx / sum_q2, scale)
        best = np.where(better, scale * sum_qx, best)
    scale[np.abs(top) < GROUP_MAX_EPS] = 0
    return scale


def _search_weights(x: Floats, blocks: Floats, weights: Floats | None) -> Floats:
    """How much each weight of blocks f32[n, k] counts in the search, as columns of 32, as x has them. weights: importances, or None."""
    if weights is None:
        return x * x
    size = blocks.shape[1]
    # Not scaled_variance: ggml divides before it multiplies here, so that only the sum itself overflows.
    variance = sum_in_order(columns(blocks * blocks, size)) * np.float32(2 / size)
    return importances(x, columns(weights, 32), variance)


class IQ4_NL(Format):
    """f16 d, 16 bytes of two nibbles each, as in q4_0: d * codebook[nibble]."""

    name, type = "iq4_nl", 20
    quantizer = "iq4_nl"
    block_size, type_size = 32, 18
    signed = True
    sub_block, interleave = 32, 32
    f16_fields = (0,)
    codebook = _NON_LINEAR
    imatrix = "used"

    @classmethod
    def quantize_blocks(cls, blocks: Floats, weights: Floats | None) -> Bytes:
        """quantize_iq4_nl."""
        x = columns(blocks, 32)
        scales = _search_scales(x, _search_weights(x, blocks, weights))
        nibbles = best_index_int8(times_inverse(x, scales))
        return np.hstack([f16_bytes(scales), pack_nibbles(nibbles.T, 16)])

    @classmethod
    def set_blocks(cls, blocks: Floats) -> Bytes:
        """quantize_row_iq4_nl_ref: nibbles for the scale that makes the largest weight -127, then the best scale for these nibbles.

        The nibbles of a block of zeros, which ggml leaves as they come, are those nearest to 0.
        """
        x = columns(blocks, 32)
        top = largest(x, axis=0)[0]
        zeros = np.abs(top) < GROUP_MAX_EPS
        nibbles = best_index_int8(np.where(zeros, np.float32(0), np.float32(1) / (top / _NON_LINEAR_VALUES[0])) * x)
        values = _NON_LINEAR_VALUES[nibbles]
        weighted = x * x * values
        sum_qx, sum_q2 = sum_in_order(weighted * x), sum_in_order(weighted * values)
        scales = np.where(~zeros & (sum_q2 > 0), sum_qx / sum_q2, np.float32(0))
        return np.hstack([f16_bytes(scales), pack_nibbles(nibbles.T, 16)])

    @classmethod
    def dequantize_blocks(cls, packed: Bytes) -> Floats:
        return f16_values(packed[:, :2]) * _NON_LINEAR_VALUES[unpack_nibbles(packed[:, 2:], 16)]


class IQ4_XS(Format):
    """f16 d, 16 bits with the upper two of eight scales of 6 bits, 4 bytes with their lower four, then iq4_nl's nibbles of 8 sub-blocks.

    A weight is d * (scale - 32) * codebook[nibble].
    """

    name, type = "iq4_xs", 23
    quantizer = "iq4_xs"
    block_size, type_size = 256, 136
    signed = True
    sub_block, interleave = 32, 32
    f16_fields = (0,)
    codebook = _NON_LINEAR
    imatrix = "used"

    @classmethod
    def quantize_blocks(cls, blocks: Floats, weights: Floats | None) -> Bytes:
        """quantize_iq4_xs."""
        x = columns(blocks, 32)
        scales = _search_scales(x, _search_weights(x, blocks, weights)).reshape(-1, 8)
        top, size = largest_scales(scales)
        top[size == 0] = 0
        d = -top / np.float32(32)
        scales6 = np.clip(nearest_int(times_inverse(scales, d)), -32, 31)
        nibbles = best_index_int8(times_inverse(x, (d * scales6.astype(np.float32)).ravel()))
        stored = (scales6 + 32).astype(np.uint8)
        packed_nibbles = pack_nibbles(nibbles.T.reshape(-1, 256), 16)
        return np.hstack([f16_bytes(d), pack_pairs(stored >> FOUR, 1), pack_nibbles(stored & LOW, 1), packed_nibbles])

    @classmethod
    def dequantize_blocks(cls, packed: Bytes) -> Floats:
        d, upper, lower, nibbles = np.hsplit(packed, [2, 4, 8])
        scales6 = unpack_nibbles(lower, 1) | unpack_pairs(upper, 1) << FOUR
        scales = f16_values(d) * (scales6.view(np.int8) - np.int8(32)).astype(np.float32)
        values = _NON_LINEAR_VALUES[unpack_nibbles(nibbles, 16)].reshape(-1, 8, 32)
        return (scales[:, :, None] * values).reshape(-1, 256)


# The numbers of four bits, e2m1, doubled: ggml's kvalues_mxfp4. What has a sign bit is the negative of what has not.
_E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
_E2M1_VALUES = np.array(_E2M1, np.float32)


def best_index_mxfp4(x: Floats, scales: Floats) -> Bytes:
    """ggml's, of f32[n, k] and scales f32[n, 1]: the first nibble whose value times scale is nearest, as floats have it. u8[n, k]."""
    size = np.abs(x)
    best, nibbles = size, np.zeros(x.shape, np.uint8)
    for nibble in range(1, 8):
        error = np.abs(_E2M1_VALUES[nibble] * scales - size)
        better = error < best
        best, nibbles = np.where(better, error, best), np.where(better, np.uint8(nibble), nibbles)
    return np.where((x < 0) & (nibbles > 0), nibbles + np.uint8(8), nibbles)


class MXFP4(Format):
    """OCP's MX: the exponent e of a power of two, 16 bytes of two nibbles each, as in q4_0: 2^(e - 128) * codebook[nibble].

    Scales are denormal where e is 0 or 1. Products on a CPU take those for 0: a weight that has no others multiplies to zeros there.
    """

    name, type = "mxfp4", 39
    quantizer = "mxfp4"
    block_size, type_size = 32, 17
    signed = True
    sub_block, interleave = 32, 32
    denormal_scales = True
    codebook = _E2M1

    @classmethod
    def quantize_blocks(cls, blocks: Floats, weights: Floats | None) -> Bytes:
        """quantize_row_mxfp4_ref."""
        top = np.abs(blocks).max(axis=1, keepdims=True)
        # log2f rounds to float: it may round up to the next power of two. Below 2^-125 the exponent wraps, as a byte does in C.
        exponents = np.floor(np.log2(top.astype(np.float64)).astype(np.float32)).astype(np.int32) + 125
        stored = np.where(top > 0, exponents, 0).astype(np.uint8)
        return np.hstack([stored, pack_nibbles(best_index_mxfp4(blocks, _powers(stored)), 16)])

    @classmethod
    def dequantize_blocks(cls, packed: Bytes) -> Floats:
        return _powers(packed[:, :1]) * _E2M1_VALUES[unpack_nibbles(packed[:, 1:], 16)]

    @classmethod
    def finite(cls, packed: Bytes) -> NDArray[np.bool_]:
        """An e of 255 is a NaN in OCP's format. ggml reads it as 2^127, and its validation refuses it."""
        finite: NDArray[np.bool_] = packed[:, 0] != 255
        return finite

    @classmethod
    def set_scales(cls, packed: Bytes, scales: Floats, mins: Floats) -> None:
        """To the nearest power of two; there are no negative ones."""
        packed[:, 0] = np.clip(np.rint(np.log2(np.abs(scales))) + 128, 0, 254)


def _powers(exponents: Bytes) -> Floats:
    """2^(e - 128), which is denormal for an e of 0 or 1: ggml_e8m0_to_fp32_half."""
    return np.ldexp(np.float32(1), exponents.astype(np.int32) - 128)


class NVFP4(Format):
    """Scales of four sub-blocks of 16, floats of a byte (ue4m3), then 8 bytes of nibbles each: scale / 2 * codebook[nibble].

    Weight i of a sub-block lies low and weight i + 8 high in one byte.
    """

    name, type = "nvfp4", 40
    quantizer = "nvfp4"
    block_size, type_size = 64, 36
    signed = True
    sub_block, interleave = 16, 16
    codebook = _E2M1

    @classmethod
    def quantize_blocks(cls, blocks: Floats, weights: Floats | None) -> Bytes:
        """quantize_row_nvfp4_ref."""
        x = blocks.reshape(-1, 16)
        scales = _ue4m3_bytes(np.abs(x).max(axis=1, keepdims=True) / np.float32(6))
        nibbles = best_index_mxfp4(x, _ue4m3_halves(scales))
        return np.hstack([scales.reshape(-1, 4), pack_nibbles(nibbles.reshape(-1, 64), 8)])

    @classmethod
    def dequantize_blocks(cls, packed: Bytes) -> Floats:
        values = _E2M1_VALUES[unpack_nibbles(packed[:, 4:], 8)].reshape(-1, 4, 16)
        return (_ue4m3_halves(packed[:, :4])[:, :, None] * values).reshape(-1, 64)

    @classmethod
    def set_scales(cls, packed: Bytes, scales: Floats, mins: Floats) -> None:
        """That of the first sub-block; the others have half, a quarter and an eighth of it. There are no negative ones."""
        packed[:, :4] = _ue4m3_bytes(np.abs(scales)[:, None] * np.array([2, 1, 0.5, 0.25], np.float32))


def _ue4m3_bytes(values: Floats) -> Bytes:
    """ggml_fp32_to_ue4m3, of values that are not negative: 4 bits of exponent, bias 7, and 3 of mantissa. 256 and more become 448."""
    denormal = np.minimum(values * np.float32(512) + np.float32(0.5), np.float32(7)).astype(np.uint8)
    normal = (np.minimum(values, np.float32(448)).view(np.int32) + 0x80000 >> 20) - (127 - 7 << 3)
    return np.where(values < np.float32(2**-6), denormal, np.where(normal < 15 << 3, normal, 0x7E)).astype(np.uint8)


def _ue4m3_halves(stored: Bytes) -> Floats:
    """Half of what a byte stands for; its top bit is not looked at, and what would be NaN is 0: ggml_ue4m3_to_fp32."""
    # As the middle bits of a float16, whose exponent has one bit more and a bias of 15.
    halves = ((stored & 0x7F).astype(np.uint16) << 7).view(np.float16).astype(np.float32) * np.float32(2**7)
    return np.where(stored == 0x7F, np.float32(0), halves)
