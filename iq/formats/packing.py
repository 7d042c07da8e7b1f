"""How the fields of a block lie in its bytes: 16-bit floats, and quants of 4, 2 and 1 bits. Blocks are rows of uint8 arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

# Bytes combined with Python's own integers are bytes too, but typed as any integer.
FOUR, LOW = np.uint8(4), np.uint8(15)
_PAIRS: Bytes = np.array([[0], [2], [4], [6]], np.uint8)


def columns(values: Floats, members: int) -> Floats:
    """Consecutive groups of `members` values as columns, contiguous: f32[members, groups]."""
    return np.ascontiguousarray(values.reshape(-1, members).T)


def f16_bytes(values: Floats) -> Bytes:
    """f32[n] or f32[n, 1] -> the bytes of its float16, u8[n, 2]."""
    return values.astype(np.float16).reshape(-1, 1).view(np.uint8)


def f16_values(field: Bytes) -> Floats:
    """u8[n, 2] -> f32[n, 1], the float16 in it: the reverse of f16_bytes."""
    return np.ascontiguousarray(field).view(np.float16).astype(np.float32)


def pack_nibbles(quants: Bytes, distance: int) -> Bytes:
    """Quants below 16, u8[n, k] -> u8[n, k / 2]: weight i in the low half and weight i + distance in the high half of one byte."""
    pairs = quants.reshape(len(quants), -1, 2, distance)
    return (pairs[:, :, 0] | pairs[:, :, 1] << FOUR).reshape(len(quants), -1)


def unpack_nibbles(packed: Bytes, distance: int) -> Bytes:
    """u8[n, k / 2] -> u8[n, k]: the reverse of pack_nibbles."""
    halves = packed.reshape(len(packed), -1, 1, distance)
    return np.concatenate([halves & LOW, halves >> FOUR], axis=2).reshape(len(packed), -1)


def pack_pairs(quants: Bytes, distance: int) -> Bytes:
    """Quants below 4, u8[n, k] -> u8[n, k / 4]: weights i, i + distance, i + 2 distance and i + 3 distance in one byte, lowest first."""
    fours = quants.reshape(len(quants), -1, 4, distance)
    packed: Bytes = np.bitwise_or.reduce(fours << _PAIRS, axis=2)
    return packed.reshape(len(quants), -1)


def unpack_pairs(packed: Bytes, distance: int) -> Bytes:
    """u8[n, k / 4] -> u8[n, k]: the reverse of pack_pairs."""
    return (packed.reshape(len(packed), -1, 1, distance) >> _PAIRS & np.uint8(3)).reshape(len(packed), -1)


def pack_bits(bits: Bytes, distance: int) -> Bytes:
    """0 and 1, u8[n, k] -> u8[n, k / 8]: weights i, i + distance .. i + 7 distance in one byte, lowest first."""
    return np.packbits(bits.reshape(len(bits), -1, 8, distance), axis=2, bitorder="little").reshape(len(bits), -1)


def unpack_bits(packed: Bytes, distance: int) -> Bytes:
    """u8[n, k / 8] -> u8[n, k]: the reverse of pack_bits."""
    return np.unpackbits(packed.reshape(len(packed), -1, 1, distance), axis=2, bitorder="little").reshape(len(packed), -1)
