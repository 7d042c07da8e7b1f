"""Numpy models of what the kernels compute, and data to run them on."""

import gguf
import numpy as np
from numpy.typing import NDArray

from iq.formats import Format

# Where the f16 fields of a block lie, so that random bytes can be given sane scales.
SCALES = {"q4_0": (0,), "q8_0": (0,), "q4_k": (0, 2), "q6_k": (208,)}


def random_bytes(fmt: type[Format], rows: int, k: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Any bytes at all, infinities and NaNs among the scales: uint8 [rows, row_bytes]."""
    return rng.integers(0, 256, (rows, fmt.row_bytes(k)), dtype=np.uint8)


def random_weights(fmt: type[Format], rows: int, k: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Random quants with scales around 0.01, either sign: uint8 [rows, row_bytes]. Plain formats: normal numbers."""
    if not fmt.quantized:
        return gguf.quants.quantize(rng.standard_normal((rows, k), dtype=np.float32), fmt.type).view(np.uint8).reshape(rows, -1)
    blocks = rng.integers(0, 256, (rows, k // fmt.block_size, fmt.type_size), dtype=np.uint8)
    for at in SCALES[fmt.name]:
        scale = (rng.standard_normal(blocks.shape[:2]) * 0.01).astype(np.float16)
        blocks[..., at : at + 2] = scale[..., None].view(np.uint8)
    return blocks.reshape(rows, -1)


def dequantized(fmt: type[Format], packed: NDArray[np.uint8]) -> NDArray[np.float32]:
    """gguf-py's dequantize: f32 [rows, k]."""
    return gguf.quants.dequantize(packed, fmt.type).astype(np.float32).reshape(packed.shape[0], -1)


def q8_1(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """x as its q8_1 quants say it: d * round(x / d) with d = max|x| / 127 over 32 values (ggml's quantize_row_q8_1_ref), in float64."""
    blocks = x.reshape(x.shape[0], -1, 32)
    d = np.abs(blocks).max(-1, keepdims=True) / np.float32(127)
    inverse = np.divide(np.float32(1), d, out=np.zeros_like(d), where=d != 0)
    scaled = blocks * inverse
    rounded = np.sign(scaled) * np.floor(np.abs(scaled) + np.float32(0.5))
    return (rounded.astype(np.float64) * d).reshape(x.shape)
