"""Plain floats, which GGML counts as blocks of one element."""

from __future__ import annotations

import numpy as np

from iq.formats.base import Format
from iq.formats.packing import Bytes, Floats, f16_bytes, f16_values


class F32(Format):
    name, type = "f32", 0
    block_size, type_size = 1, 4
    kind = "plain"
    quantizer = "plain"

    @classmethod
    def quantize_blocks(cls, blocks: Floats, weights: Floats | None) -> Bytes:
        return blocks.view(np.uint8)

    @classmethod
    def dequantize_blocks(cls, packed: Bytes) -> Floats:
        return packed.view(np.float32)


class F16(Format):
    name, type = "f16", 1
    block_size, type_size = 1, 2
    kind = "plain"
    f16_fields = (0,)
    quantizer = "plain"

    @classmethod
    def quantize_blocks(cls, blocks: Floats, weights: Floats | None) -> Bytes:
        return f16_bytes(blocks)

    @classmethod
    def dequantize_blocks(cls, packed: Bytes) -> Floats:
        return f16_values(packed)


class BF16(Format):
    """The upper half of a float32."""

    name, type = "bf16", 30
    block_size, type_size = 1, 2
    kind = "plain"
    quantizer = "plain"

    @classmethod
    def quantize_blocks(cls, blocks: Floats, weights: Floats | None) -> Bytes:
        """ggml_compute_fp32_to_bf16: to nearest, ties to even; a NaN keeps its upper half and becomes quiet."""
        bits = blocks.view(np.uint32)
        rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        upper = np.where(np.isnan(blocks), bits >> 16 | 0x40, rounded)
        return upper.astype(np.uint16).view(np.uint8)

    @classmethod
    def dequantize_blocks(cls, packed: Bytes) -> Floats:
        return (packed.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
