"""The I-quants of one to three bits: super-blocks of 256 weights, 4 or 8 of which at a time are an entry of a grid."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from iq.formats import grids
from iq.formats.base import Format
from iq.formats.grid_search import SignedSearch
from iq.formats.packing import (
    Bytes,
    Floats,
    f16_bytes,
    f16_values,
    pack_bits,
    pack_nibbles,
    pack_pairs,
    unpack_bits,
    unpack_nibbles,
    unpack_pairs,
)
from iq.formats.ternary_search import search_iq1_m, search_iq1_s

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
        """8 * (entry + 1), which is 0, 8 or 16, of weight i in bits 3 and 4 of byte i, and of weight i + 4 in the two above them."""
        first, second = np.hsplit(grids.IQ1.numbers, 2)
        return {"grid": (first << 3 | second << 5).view(np.int32)}

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
    imatrix = "required"

    @classmethod
    def quantize_blocks(cls, blocks: Floats, weights: Floats | None) -> Bytes:
        d, entries, less, s = search_iq1_s(blocks, weights)
        words = _pack_threes(entries >> 8) | s.astype(np.uint16) << 12 | less.astype(np.uint16) << 15
        return np.hstack([f16_bytes(d), entries.astype(np.uint8), words.view(np.uint8)])

    @classmethod
    def unpack(cls, packed: Bytes) -> tuple[Ints, Ints, Floats]:
        d, low, high = np.hsplit(packed, [2, 34])
        words = np.ascontiguousarray(high).view("<u2")
        scales = cls.scales(f16_values(d), words >> 12 & 7)
        return low + 256 * _unpack_threes(words).astype(np.intp), np.repeat(words >> 15, 4, axis=1), scales


class IQ1_M(TernaryGrid):
    """32 low bytes of entries; 32 nibbles: three top bits of an entry, and whether 1/8 is taken from its weights; 4 words of 16 bits: four
    times 3 bits s, and a nibble of f16 d, the lowest first."""

    name, type = "iq1_m", 29
    type_size = 56
    sub_block = 16
    imatrix = "used"

    @classmethod
    def quantize_blocks(cls, blocks: Floats, weights: Floats | None) -> Bytes:
        d, entries, less, s = search_iq1_m(blocks, weights)
        nibbles = (entries >> 8 | less.astype(np.int32) << 3).astype(np.uint8)
        packed = np.hstack([entries.astype(np.uint8), pack_nibbles(nibbles, 1), _pack_threes(s).view(np.uint8)])
        cls.set_scales(packed, d, d)
        return packed

    @classmethod
    def unpack(cls, packed: Bytes) -> tuple[Ints, Ints, Floats]:
        low, high, last = np.hsplit(packed, [32, 48])
        nibbles = unpack_nibbles(high, 1)
        words = np.ascontiguousarray(last).view("<u2")
        d = np.bitwise_or.reduce(words >> 12 << np.array([0, 4, 8, 12], np.uint16), axis=1, keepdims=True)
        scales = cls.scales(f16_values(d.view(np.uint8)), _unpack_threes(words))
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
    search: ClassVar[SignedSearch]

    @classmethod
    def tables(cls) -> dict[str, NDArray[np.int32]]:
        return {"grid": cls.grid.values.view(np.int32)}

    @classmethod
    def unpack(cls, packed: Bytes) -> tuple[Ints, Bytes, Ints]:
        """Blocks u8[n, type_size] -> numbers of entries [n, 256 / width], signs u8[n, 32], a bit a weight, and s [n, 256 / sub_block]."""
        raise NotImplementedError

    @classmethod
    def pack(cls, entries: Ints, signs: Bytes, s: Bytes) -> Bytes:
        """The reverse of unpack: the bytes of blocks after their d."""
        raise NotImplementedError

    @classmethod
    def quantize_blocks(cls, blocks: Floats, weights: Floats | None) -> Bytes:
        d, entries, signs, s = cls.search.of_blocks(blocks, weights)
        return np.hstack([f16_bytes(d), cls.pack(entries, signs, s)])

    @classmethod
    def dequantize_blocks(cls, packed: Bytes) -> Floats:
        entries, signs, s = cls.unpack(packed)
        weights = cls.grid.values[entries].astype(np.float32).reshape(-1, 256)
        np.negative(weights, out=weights, where=unpack_bits(signs, 1).view(np.bool_))
        sub_blocks = weights.reshape(-1, 256 // cls.sub_block, cls.sub_block)
        sub_blocks *= cls.scales(f16_values(packed[:, :2]), s)[:, :, None]
        return weights


class IQ2_XXS(SignedGrid):
    """f16 d; for each 32 weights four bytes, the numbers of entries, and a word: four times 7 signs, of which the lowest are the first
    weights', and 4 bits s. Of 8 signs an even number are set."""

    name, type = "iq2_xxs", 16
    type_size = 66
    sub_block = 32
    imatrix = "required"
    grid, step = grids.IQ2_XXS, 1 / 8
    search = SignedSearch(
        grid, sub_block, distances=2, steps=6, step=0.1, variance=1, redo="all", fitted=True, even=True, smallest=1e-15, clears=True
    )

    @classmethod
    def unpack(cls, packed: Bytes) -> tuple[Ints, Bytes, Ints]:
        groups = np.ascontiguousarray(packed[:, 2:]).view("<u4").reshape(-1, 8, 2)
        signs, s = _unpack_signs_and_s(np.ascontiguousarray(groups[:, :, 1]))
        return packed[:, 2:].reshape(-1, 8, 8)[:, :, :4].reshape(-1, 32).astype(np.intp), signs, s

    @classmethod
    def pack(cls, entries: Ints, signs: Bytes, s: Bytes) -> Bytes:
        words = _pack_signs_and_s(signs, s).view(np.uint8)
        return np.dstack([entries.astype(np.uint8).reshape(-1, 8, 4), words.reshape(-1, 8, 4)]).reshape(-1, 64)


class IQ2_XS(SignedGrid):
    """f16 d; 32 words of 16 bits: the 9 of an entry, 7 signs as in iq2_xxs; 8 bytes of two s each."""

    name, type = "iq2_xs", 17
    type_size = 74
    sub_block = 16
    imatrix = "required"
    grid, step = grids.IQ2_XS, 1 / 8
    search = SignedSearch(grid, sub_block, distances=2, steps=9, step=0.1, variance=1, redo="off", even=True, smallest=1e-15, clears=True)

    @classmethod
    def unpack(cls, packed: Bytes) -> tuple[Ints, Bytes, Ints]:
        words = np.ascontiguousarray(packed[:, 2:66]).view("<u2")
        return (words & 511).astype(np.intp), _eighth_sign(words >> 9), unpack_nibbles(packed[:, 66:], 1)

    @classmethod
    def pack(cls, entries: Ints, signs: Bytes, s: Bytes) -> Bytes:
        words = (entries | (signs & 127).astype(np.int32) << 9).astype("<u2")
        return np.hstack([words.view(np.uint8), pack_nibbles(s, 1)])


class IQ2_S(SignedGrid):
    """f16 d; 32 low bytes of entries; 32 bytes of signs; 8 bytes of four top bits each, two an entry; 8 bytes of two s each."""

    name, type = "iq2_s", 22
    type_size = 82
    sub_block = 16
    imatrix = "used"
    grid, step = grids.IQ2_S, 1 / 8
    search = SignedSearch(grid, sub_block, distances=1, steps=9, step=0.1, variance=2, redo="off", floor=0.25, fudge=0.9875)

    @classmethod
    def unpack(cls, packed: Bytes) -> tuple[Ints, Bytes, Ints]:
        _, low, signs, high, scales = np.hsplit(packed, [2, 34, 66, 74])
        return low + 256 * unpack_pairs(high, 1).astype(np.intp), signs, unpack_nibbles(scales, 1)

    @classmethod
    def pack(cls, entries: Ints, signs: Bytes, s: Bytes) -> Bytes:
        top = pack_pairs((entries >> 8).astype(np.uint8), 1)
        return np.hstack([entries.astype(np.uint8), signs, top, pack_nibbles(s, 1)])


class IQ3_XXS(SignedGrid):
    """f16 d; 64 bytes, the numbers of entries of 4 weights; for each 32 weights the word of iq2_xxs."""

    name, type = "iq3_xxs", 18
    type_size = 98
    sub_block = 32
    imatrix = "used"
    grid, step = grids.IQ3_XXS, 1 / 4
    search = SignedSearch(grid, sub_block, distances=2, steps=15, step=0.2, variance=2, redo="off", even=True, fudge=1.0125, clears=True)

    @classmethod
    def unpack(cls, packed: Bytes) -> tuple[Ints, Bytes, Ints]:
        signs, s = _unpack_signs_and_s(np.ascontiguousarray(packed[:, 66:]).view("<u4"))
        return packed[:, 2:66].astype(np.intp), signs, s

    @classmethod
    def pack(cls, entries: Ints, signs: Bytes, s: Bytes) -> Bytes:
        return np.hstack([entries.astype(np.uint8), _pack_signs_and_s(signs, s).view(np.uint8)])


class IQ3_S(SignedGrid):
    """f16 d; 64 low bytes of entries of 4 weights; 8 bytes of their ninth bits; 32 bytes of signs; 4 bytes of two s each."""

    name, type = "iq3_s", 21
    type_size = 110
    sub_block = 32
    imatrix = "used"
    grid, step = grids.IQ3_S, 1
    search = SignedSearch(grid, sub_block, distances=3, steps=9, step=0.2, variance=2, redo="any", smallest=1e-45, fudge=1.033)

    @classmethod
    def unpack(cls, packed: Bytes) -> tuple[Ints, Bytes, Ints]:
        _, low, ninth, signs, scales = np.hsplit(packed, [2, 66, 74, 106])
        return low + 256 * unpack_bits(ninth, 1).astype(np.intp), signs, unpack_nibbles(scales, 1)

    @classmethod
    def pack(cls, entries: Ints, signs: Bytes, s: Bytes) -> Bytes:
        ninth = pack_bits((entries >> 8).astype(np.uint8), 1)
        return np.hstack([entries.astype(np.uint8), ninth, signs, pack_nibbles(s, 1)])

    @classmethod
    def quantize_blocks(cls, blocks: Floats, weights: Floats | None) -> Bytes:
        """To ggml's bytes, which are not right where 32 weights of a block are 0 and later ones are not: quantize_row_iq3_s_impl then
        leaves its pointers to low bytes and signs where they are, so that those of the later weights come too early, and their ninth bits
        do not.
        """
        packed = super().quantize_blocks(blocks, weights)
        zero = ~blocks.reshape(-1, 8, 32).any(axis=2)
        order = np.argsort(zero, axis=1, kind="stable")[:, :, None]
        for first, last in ((2, 66), (74, 106)):
            sub_blocks = packed[:, first:last].reshape(len(packed), 8, -1)
            packed[:, first:last] = np.take_along_axis(sub_blocks, order, axis=1).reshape(len(packed), -1)
        return packed


def _pack_threes(values: Ints) -> NDArray[np.uint16]:
    """Numbers below 8, [n, k] -> u16[n, k / 4]: four in the low 12 bits of a word, lowest first."""
    fours = values.reshape(len(values), -1, 4).astype("<u2") << np.array([0, 3, 6, 9], np.uint16)
    words: NDArray[np.uint16] = np.bitwise_or.reduce(fours, axis=2)
    return words


def _unpack_threes(words: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """u16[n, k / 4] -> u16[n, k]: the reverse of _pack_threes, whatever the upper four bits are."""
    return (words[:, :, None] >> np.array([0, 3, 6, 9], np.uint16) & np.uint16(7)).reshape(len(words), -1)


def _unpack_signs_and_s(words: Ints) -> tuple[Bytes, Bytes]:
    """u32[n, 8] of four times 7 signs and 4 bits s -> signs u8[n, 32] and s u8[n, 8]."""
    sevens = words[:, :, None] >> np.array([0, 7, 14, 21], np.uint32) & 127
    return _eighth_sign(sevens.reshape(-1, 32)), (words >> 28).astype(np.uint8)


def _pack_signs_and_s(signs: Bytes, s: Bytes) -> NDArray[np.uint32]:
    """The reverse of _unpack_signs_and_s; every eighth sign follows from the others."""
    sevens = (signs & 127).astype(np.uint32).reshape(-1, 8, 4) << np.array([0, 7, 14, 21], np.uint32)
    words: NDArray[np.uint32] = np.bitwise_or.reduce(sevens, axis=2) | s.astype(np.uint32) << 28
    return words


def _eighth_sign(sevens: Ints) -> Bytes:
    """7 signs -> 8, of which an even number are set (ksigns_iq2xs)."""
    signs: Bytes = (sevens | (np.bitwise_count(sevens) & 1) << 7).astype(np.uint8)
    return signs
