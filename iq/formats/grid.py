"""The I-quants of one to three bits: super-blocks of 256 weights, 4 or 8 of which at a time are an entry of a grid."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from iq.formats import grids
from iq.formats.base import Format
from iq.formats.packing import Bytes, Floats, f16_bytes, f16_values, unpack_nibbles

# Small numbers of any integer type: of entries, signs (a bit each), scales.
Ints = NDArray[np.integer]


class TernaryGrid(Format):
    """What iq1_s and iq1_m share: grid entries of -1, 0 and 1, to all of which 1/8 is added, or taken from them.

    In eighths that makes integers: the quant is 8 * (entry + 1), and 2 more where 1/8 is added, so that 9 is zero. A weight is
    d * (2 s + 1) * (entry + or - 1/8).
    """

    block_size = 256
    zero = 9

    @classmethod
    def tables(cls) -> dict[str, NDArray[np.int32]]:
        return {"grid": (8 * grids.IQ1.numbers).view(np.int32)}

    @classmethod
    def unpack(cls, packed: Bytes) -> tuple[Ints, Ints, Floats]:
        """Blocks u8[n, type_size] -> numbers of entries [n, 32], whether 1/8 is taken from each [n, 32], scales f32[n, 256 / sub_block]."""
        raise NotImplementedError

    @classmethod
    def dequantize_blocks(cls, packed: Bytes) -> Floats:
        entries, less, scales = cls.unpack(packed)
        weights = grids.IQ1.values[entries] + np.where(less, np.float32(-0.125), np.float32(0.125))[:, :, None]
        return (weights.reshape(-1, 256 // cls.sub_block, cls.sub_block) * scales[:, :, None]).reshape(-1, 256)


class IQ1_S(TernaryGrid):
    """f16 d; 32 low bytes of entries; for each 32 weights a word of 16 bits: three top bits of four entries, 3 bits s, and whether 1/8 is
    taken from the 32 weights."""

    name, type = "iq1_s", 19
    type_size = 50
    sub_block = 32
    f16_fields = (0,)

    @classmethod
    def unpack(cls, packed: Bytes) -> tuple[Ints, Ints, Floats]:
        d, low, high = np.hsplit(packed, [2, 34])
        words = np.ascontiguousarray(high).view("<u2")
        top = (words[:, :, None] >> np.array([0, 3, 6, 9], np.uint16) & 7).reshape(-1, 32)
        scales: Floats = f16_values(d) * _odd(words >> 12 & 7)
        return low + 256 * top.astype(np.intp), np.repeat(words >> 15, 4, axis=1), scales


class IQ1_M(TernaryGrid):
    """32 low bytes of entries; 32 nibbles: three top bits of an entry, and whether 1/8 is taken from its weights; 4 words of 16 bits: four
    times 3 bits s, and a nibble of f16 d, the lowest first."""

    name, type = "iq1_m", 29
    type_size = 56
    sub_block = 16

    @classmethod
    def unpack(cls, packed: Bytes) -> tuple[Ints, Ints, Floats]:
        low, high, last = np.hsplit(packed, [32, 48])
        nibbles = unpack_nibbles(high, 1)
        words = np.ascontiguousarray(last).view("<u2")
        d = np.bitwise_or.reduce(words >> 12 << np.array([0, 4, 8, 12], np.uint16), axis=1, keepdims=True)
        s = (words[:, :, None] >> np.array([0, 3, 6, 9], np.uint16) & 7).reshape(-1, 16)
        scales: Floats = f16_values(d.view(np.uint8)) * _odd(s)
        return low + 256 * (nibbles & 7).astype(np.intp), nibbles >> 3, scales

    @classmethod
    def set_scales(cls, packed: Bytes, scales: Floats, mins: Floats) -> None:
        d = f16_bytes(scales)
        packed[:, 49::2] = packed[:, 49::2] & 15 | unpack_nibbles(d, 1) << 4


def _odd(scales: Ints) -> Floats:
    """2 s + 1."""
    return (2 * scales + 1).astype(np.float32)


class SignedGrid(Format):
    """What those with signs share: f16 d first; a weight is d * scale * what the grid has, with its sign.

    grid: the magnitudes. Scales are (s + 1/2) / 4 or the like, of 4 bits s, so that d * scale * magnitude is exact in float32.
    """

    block_size = 256
    signed = True
    f16_fields = (0,)

    grid: ClassVar[grids.Grid]

    @classmethod
    def tables(cls) -> dict[str, NDArray[np.int32]]:
        return {"grid": cls.grid.values.view(np.int32)}

    @classmethod
    def unpack(cls, packed: Bytes) -> tuple[Ints, Bytes, Floats]:
        """Blocks u8[n, type_size] -> numbers of entries [n, 256 / width], signs u8[n, 32], a bit a weight, scales f32[n, 256 / sub_block].

        Scales are those of sub-blocks without d.
        """
        raise NotImplementedError

    @classmethod
    def dequantize_blocks(cls, packed: Bytes) -> Floats:
        entries, signs, scales = cls.unpack(packed)
        weights = cls.grid.values[entries].astype(np.float32).reshape(-1, 256)
        np.negative(weights, out=weights, where=np.unpackbits(signs, axis=1, bitorder="little").view(np.bool_))
        sub_blocks = weights.reshape(-1, 256 // cls.sub_block, cls.sub_block)
        sub_blocks *= (f16_values(packed[:, :2]) * scales)[:, :, None]
        return weights


class IQ2_XXS(SignedGrid):
    """f16 d; for each 32 weights four bytes, the numbers of entries, and a word: four times 7 signs, of which the lowest are the first
    weights', and 4 bits s. Of 8 signs an even number are set. The scale is (s + 1/2) / 4."""

    name, type = "iq2_xxs", 16
    type_size = 66
    sub_block = 32
    grid = grids.IQ2_XXS

    @classmethod
    def unpack(cls, packed: Bytes) -> tuple[Ints, Bytes, Floats]:
        groups = np.ascontiguousarray(packed[:, 2:]).view("<u4").reshape(-1, 8, 2)
        signs, scales = _unpack_signs_and_scale(np.ascontiguousarray(groups[:, :, 1]))
        return packed[:, 2:].reshape(-1, 8, 8)[:, :, :4].reshape(-1, 32).astype(np.intp), signs, scales / np.float32(4)


class IQ2_XS(SignedGrid):
    """f16 d; 32 words of 16 bits: the 9 of an entry, 7 signs as in iq2_xxs; 8 bytes of two s each. The scale is (s + 1/2) / 4."""

    name, type = "iq2_xs", 17
    type_size = 74
    sub_block = 16
    grid = grids.IQ2_XS

    @classmethod
    def unpack(cls, packed: Bytes) -> tuple[Ints, Bytes, Floats]:
        words = np.ascontiguousarray(packed[:, 2:66]).view("<u2")
        return (words & 511).astype(np.intp), _eighth_sign(words >> 9), _and_a_half(unpack_nibbles(packed[:, 66:], 1)) / np.float32(4)


class IQ2_S(SignedGrid):
    """f16 d; 32 low bytes of entries; 32 bytes of signs; 8 bytes of four top bits each, two an entry; 8 bytes of two s each.

    The scale is (s + 1/2) / 4.
    """

    name, type = "iq2_s", 22
    type_size = 82
    sub_block = 16
    grid = grids.IQ2_S

    @classmethod
    def unpack(cls, packed: Bytes) -> tuple[Ints, Bytes, Floats]:
        _, low, signs, high, scales = np.hsplit(packed, [2, 34, 66, 74])
        top = np.repeat(high, 4, axis=1) >> np.tile(np.array([0, 2, 4, 6], np.uint8), 8) & 3
        return low + 256 * top.astype(np.intp), signs, _and_a_half(unpack_nibbles(scales, 1)) / np.float32(4)


class IQ3_XXS(SignedGrid):
    """f16 d; 64 bytes, the numbers of entries of 4 weights; for each 32 weights the word of iq2_xxs. The scale is (s + 1/2) / 2."""

    name, type = "iq3_xxs", 18
    type_size = 98
    sub_block = 32
    grid = grids.IQ3_XXS

    @classmethod
    def unpack(cls, packed: Bytes) -> tuple[Ints, Bytes, Floats]:
        signs, scales = _unpack_signs_and_scale(np.ascontiguousarray(packed[:, 66:]).view("<u4"))
        return packed[:, 2:66].astype(np.intp), signs, scales / np.float32(2)


class IQ3_S(SignedGrid):
    """f16 d; 64 low bytes of entries of 4 weights; 8 bytes of their ninth bits; 32 bytes of signs; 4 bytes of two s each.

    The scale is 1 + 2 s.
    """

    name, type = "iq3_s", 21
    type_size = 110
    sub_block = 32
    grid = grids.IQ3_S

    @classmethod
    def unpack(cls, packed: Bytes) -> tuple[Ints, Bytes, Floats]:
        _, low, ninth, signs, scales = np.hsplit(packed, [2, 66, 74, 106])
        entries = low + 256 * np.unpackbits(ninth, axis=1, bitorder="little").astype(np.intp)
        return entries, signs, _and_a_half(unpack_nibbles(scales, 1)) * np.float32(2)


def _and_a_half(scales: Ints) -> Floats:
    """s + 1/2."""
    return scales.astype(np.float32) + np.float32(0.5)


def _unpack_signs_and_scale(words: Ints) -> tuple[Bytes, Floats]:
    """u32[n, 8] of four times 7 signs and 4 bits s -> signs u8[n, 32], and s + 1/2."""
    sevens = words[:, :, None] >> np.array([0, 7, 14, 21], np.uint32) & 127
    return _eighth_sign(sevens.reshape(-1, 32)), _and_a_half((words >> 28).astype(np.uint8))


def _eighth_sign(sevens: Ints) -> Bytes:
    """7 signs -> 8, of which an even number are set (ksigns_iq2xs)."""
    signs: Bytes = (sevens | (np.bitwise_count(sevens) & 1) << 7).astype(np.uint8)
    return signs
