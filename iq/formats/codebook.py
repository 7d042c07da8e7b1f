"""Formats whose nibbles are the numbers of 16 int8 in a codebook."""

from __future__ import annotations

import numpy as np

from iq.formats.base import Format
from iq.formats.packing import Bytes, Floats, f16_values, unpack_nibbles


class IQ4_NL(Format):
    """f16 d, 16 bytes of two nibbles each, as in q4_0: d * codebook[nibble]."""

    name, type = "iq4_nl", 20
    block_size, type_size = 32, 18
    signed = True
    sub_block, interleave = 32, 32
    f16_fields = (0,)
    codebook = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)

    @classmethod
    def dequantize_blocks(cls, packed: Bytes) -> Floats:
        quants = np.array(cls.codebook, np.float32)[unpack_nibbles(packed[:, 2:], 16)]
        return f16_values(packed[:, :2]) * quants
