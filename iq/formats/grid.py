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


class GridFormat(Format):
    """What all of them share: f16 d, scales of few bits s, and numbers of entries. The scale of a sub-block is d * step * (2 s + 1)."""

    block_size = 256
    step: ClassVar[float]

    @classmethod
    def scales(cls, d: Floats, s: Ints) -> Floats:
        """f32[n, 1] and integers [n, 256 / sub_block] -> f32[n, 256 / sub_block]. Exact, as ggml's d * (s + 1/2) / 4 is."""
        scales: Floats = d * np.float32(cls.step) * (2 * s + 1).astype(np.float32)
        return scales


class TernaryGrid(GridFormat):
    """What iq1_s and iq1_m share: grid entries of -1, 0 and 1, to all of which 1/8 is added, or taken from them.

    In eighths that makes integers: the quant is 8 * (entry + 1), and 2 more where 1/8 is added, so that 9 is zero. A weight is
    d * (2 s + 1) * (entry + or - 1/8).
    """

    zero = 9
    step = 1 / 8

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
        weights = np.float32(8) * grids.IQ1.values[entries] + np.where(less, np.float32(-1), np.float32(1))[:, :, None]
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
        scales = cls.scales(f16_values(d), words >> 12 & 7)
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
        scales = cls.scales(f16_values(d.view(np.uint8)), s)
        return low + 256 * (nibbles & 7).astype(np.intp), nibbles >> 3, scales

    @classmethod
    def set_scales(cls, packed: Bytes, scales: Floats, mins: Floats) -> None:
        d = f16_bytes(scales)
        packed[:, 49::2] = packed[:, 49::2] & 15 | unpack_nibbles(d, 1) << 4


class SignedGrid(GridFormat):
    """What those of two and three bits share: f16 d first; magnitudes in the grid, and signs beside it. s has 4 bits.

    step: half of what ggml multiplies s + 1/2 with.
    """

    signed = True
    f16_fields = (0,)

    grid: ClassVar[grids.Grid]

    @classmethod
    def tables(cls) -> dict[str, NDArray[np.int32]]:
        return {"grid": cls.grid.values.view(np.int32)}

    @classmethod
    def unpack(cls, packed: Bytes) -> tuple[Ints, Bytes, Ints]:
        """Blocks u8[n, type_size] -> numbers of entries [n, 256 / width], signs u8[n, 32], a bit a weight, and s [n, 256 / sub_block]."""
        raise NotImplementedError

    @classmethod
    def dequantize_blocks(cls, packed: Bytes) -> Floats:
        entries, signs, s = cls.unpack(packed)
        weights = cls.grid.values[entries].astype(np.float32).reshape(-1, 256)
        np.negative(weights, out=weights, where=np.unpackbits(signs, axis=1, bitorder="little").view(np.bool_))
        sub_blocks = weights.reshape(-1, 256 // cls.sub_block, cls.sub_block)
        sub_blocks *= cls.scales(f16_values(packed[:, :2]), s)[:, :, None]
        return weights


class IQ2_XXS(SignedGrid):
    """f16 d; for each 32 weights four bytes, the numbers of entries, and a word: four times 7 signs, of which the lowest are the first
    weights', and 4 bits s. Of 8 signs an even number are set."""

    name, type = "iq2_xxs", 16
    type_size = 66
    sub_block = 32
    grid, step = grids.IQ2_XXS, 1 / 8

    @classmethod
    def unpack(cls, packed: Bytes) -> tuple[Ints, Bytes, Ints]:
        groups = np.ascontiguousarray(packed[:, 2:]).view("<u4").reshape(-1, 8, 2)
        signs, s = _unpack_signs_and_s(np.ascontiguousarray(groups[:, :, 1]))
        return packed[:, 2:].reshape(-1, 8, 8)[:, :, :4].reshape(-1, 32).astype(np.intp), signs, s


class IQ2_XS(SignedGrid):
    """f16 d; 32 words of 16 bits: the 9 of an entry, 7 signs as in iq2_xxs; 8 bytes of two s each."""

    name, type = "iq2_xs", 17
    type_size = 74
    sub_block = 16
    grid, step = grids.IQ2_XS, 1 / 8

    @classmethod
    def unpack(cls, packed: Bytes) -> tuple[Ints, Bytes, Ints]:
        words = np.ascontiguousarray(packed[:, 2:66]).view("<u2")
        return (words & 511).astype(np.intp), _eighth_sign(words >> 9), unpack_nibbles(packed[:, 66:], 1)


class IQ2_S(SignedGrid):
    """f16 d; 32 low bytes of entries; 32 bytes of signs; 8 bytes of four top bits each, two an entry; 8 bytes of two s each."""

    name, type = "iq2_s", 22
    type_size = 82
    sub_block = 16
    grid, step = grids.IQ2_S, 1 / 8

    @classmethod
    def unpack(cls, packed: Bytes) -> tuple[Ints, Bytes, Ints]:
        _, low, signs, high, scales = np.hsplit(packed, [2, 34, 66, 74])
        top = np.repeat(high, 4, axis=1) >> np.tile(np.array([0, 2, 4, 6], np.uint8), 8) & 3
        return low + 256 * top.astype(np.intp), signs, unpack_nibbles(scales, 1)


class IQ3_XXS(SignedGrid):
    """f16 d; 64 bytes, the numbers of entries of 4 weights; for each 32 weights the word of iq2_xxs."""

    name, type = "iq3_xxs", 18
    type_size = 98
    sub_block = 32
    grid, step = grids.IQ3_XXS, 1 / 4

    @classmethod
    def unpack(cls, packed: Bytes) -> tuple[Ints, Bytes, Ints]:
        signs, s = _unpack_signs_and_s(np.ascontiguousarray(packed[:, 66:]).view("<u4"))
        return packed[:, 2:66].astype(np.intp), signs, s


class IQ3_S(SignedGrid):
    """f16 d; 64 low bytes of entries of 4 weights; 8 bytes of their ninth bits; 32 bytes of signs; 4 bytes of two s each."""

    name, type = "iq3_s", 21
    type_size = 110
    sub_block = 32
    grid, step = grids.IQ3_S, 1

    @classmethod
    def unpack(cls, packed: Bytes) -> tuple[Ints, Bytes, Ints]:
        _, low, ninth, signs, scales = np.hsplit(packed, [2, 66, 74, 106])
        entries = low + 256 * np.unpackbits(ninth, axis=1, bitorder="little").astype(np.intp)
        return entries, signs, unpack_nibbles(scales, 1)


def _unpack_signs_and_s(words: Ints) -> tuple[Bytes, Bytes]:
    """u32[n, 8] of four times 7 signs and 4 bits s -> signs u8[n, 32] and s u8[n, 8]."""
    sevens = words[:, :, None] >> np.array([0, 7, 14, 21], np.uint32) & 127
    return _eighth_sign(sevens.reshape(-1, 32)), (words >> 28).astype(np.uint8)


def _eighth_sign(sevens: Ints) -> Bytes:
    """7 signs -> 8, of which an even number are set (ksigns_iq2xs)."""
    signs: Bytes = (sevens | (np.bitwise_count(sevens) & 1) << 7).astype(np.uint8)
    return signs
