"""What the kernels should compute: numpy models of the same arithmetic, data to run them on, and how far off a result may be.

The verification of a bundle and the tests hold kernels to the same models and tolerances. NMSE is llama.cpp's: sum((a - b)^2) / sum(b^2).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from iq.formats import Format, dequantize, quantize

Array = NDArray[Any]

# llama.cpp's test-backend-ops holds MUL_MAT to this against float64: what quantizing the activations to q8_1 costs, with room. See
# `mul_mat_nmse` for results too few to average over.
MUL_MAT_NMSE = 5e-4

# Against a model of the same arithmetic (q8_1 activations with exact integer sums, or plain f32) only f32 rounding is left: 1e-13 is usual.
Q8_1_MODEL_NMSE = 1e-10
F32_NMSE = 1e-10

# Float mul_mat on matrix units rounds both operands to f16 (11 bits): 2 * 2^-24 / 3 = 4e-8 expected per row of random data; a short row of
# one large and many small products may do ten times worse.
F16_NMSE = 1e-6


def random_bytes(fmt: type[Format], rows: int, k: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Any bytes at all, infinities and NaNs among the scales: uint8 [rows, row_bytes]."""
    return rng.integers(0, 256, (rows, fmt.row_bytes(k)), dtype=np.uint8)


def random_weights(fmt: type[Format], rows: int, k: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Random quants with scales around 0.01, either sign, and at least 2^-10: uint8 [rows, row_bytes]. Plain formats: normal numbers.

    Smaller ones would make weights below 2^-14 in some formats, which the matrix unit of gfx90a takes for 0, as README's limits say.
    """
    if fmt.kind != "weights":
        return quantize(rng.standard_normal((rows, k), dtype=np.float32), fmt.name)
    blocks = rng.integers(0, 256, (rows, k // fmt.block_size, fmt.type_size), dtype=np.uint8)
    drawn = rng.standard_normal((2, rows * blocks.shape[1])) * 0.01
    scales = np.copysign(np.maximum(np.abs(drawn), 2.0**-10), drawn).astype(np.float32)
    fmt.set_scales(blocks.reshape(-1, fmt.type_size), *scales)
    return blocks.reshape(rows, -1)


def dequantized(fmt: type[Format], packed: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The numpy reference, which is bit for bit ggml's: f32 [rows, k]."""
    return dequantize(packed, fmt.name)


def rounded(values: NDArray[np.float32], dtype: str) -> Array:
    """f32 as a kernel writes it: f32, f16, or the bits of bf16 as uint16 (a NaN becomes quiet, as in ggml)."""
    match dtype:
        case "f32":
            return values
        case "f16":
            with np.errstate(over="ignore"):
                return values.astype(np.float16)
        case "bf16":
            return quantize(values, "bf16").view(np.uint16)
    raise KeyError(dtype)


def different_bits(got: Array, want: Array) -> int:
    """How many elements differ in their bits; a NaN equals any NaN. uint16 are the bits of bf16."""
    got = np.ascontiguousarray(got).view(want.dtype)
    if got.shape != want.shape:
        raise ValueError(f"shapes {got.shape} and {want.shape}")
    unsigned = np.dtype(f"u{want.dtype.itemsize}")
    return int((~(_is_nan(got) & _is_nan(want)) & (got.view(unsigned) != np.ascontiguousarray(want).view(unsigned))).sum())


def _is_nan(values: Array) -> NDArray[np.bool_]:
    return np.isnan(values) if values.dtype.kind == "f" else (values & 0x7FFF) > 0x7F80


def q8_1_quants(x: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """ggml's quantize_row_q8_1_ref, 32 values a block: int8 [rows, blocks, 32], and d = max|x| / 127 as f32 [rows, blocks]."""
    blocks = x.reshape(x.shape[0], -1, 32)
    d = np.abs(blocks).max(-1, keepdims=True) / np.float32(127)
    inverse = np.divide(np.float32(1), d, out=np.zeros_like(d), where=d != 0)
    scaled = blocks * inverse
    quants = np.sign(scaled) * np.floor(np.abs(scaled) + np.float32(0.5))
    return quants.astype(np.int8), d[..., 0]


def q8_1(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """x as its q8_1 quants say it: d * round(x / d), in float64."""
    quants, d = q8_1_quants(x)
    return (quants.astype(np.float64) * d[..., None]).reshape(x.shape)


def nmse(got: NDArray[np.floating], want: NDArray[np.floating], energy: float = 0.0) -> float:
    """sum((got - want)^2) / sum(want^2), in float64, or by `energy` where that is more. NaN never passes a comparison."""
    got, want = got.astype(np.float64), want.astype(np.float64)
    return float(np.square(got - want).sum() / max(np.square(want).sum(), energy, np.finfo(np.float64).tiny))


def mul_mat_nmse(got: NDArray[np.floating], x: NDArray[np.floating], w: NDArray[np.floating]) -> float:
    """NMSE of `got` against x [M, K] @ w [N, K].T in float64.

    A handful of results may happen to cancel out, and their relative error says nothing then: they are measured against the sum of the
    squared products instead, which for random signs is what the squared results average to.
    """
    x, w = x.astype(np.float64), w.astype(np.float64)
    want = x @ w.T
    energy = (np.square(x) @ np.square(w).T).sum() if want.size < 64 else 0.0
    with np.errstate(over="ignore"):  # results may be off by any factor
        return nmse(got, want, energy)


def hadamard(x: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """Each `width` values of f32 [m, k] by ggml_compute_forward_fwht, in its order of additions."""
    y: NDArray[np.float32] = (x * (np.float32(1) / np.sqrt(np.float32(width)))).reshape(-1, width)
    step = 1
    while step < width:
        pairs = y.reshape(len(y), -1, 2, step)
        y = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2).reshape(len(y), width)
        step *= 2
    return np.asarray(y.reshape(x.shape), np.float32)
