"""Every tolerance of the numerical tests, each with its reason. NMSE is llama.cpp's: sum((a - b)^2) / sum(b^2)."""

import numpy as np
from numpy.typing import NDArray

# llama.cpp's test-backend-ops holds MUL_MAT to this against float64: what quantizing the activations to q8_1 costs, with room. See
# `mul_mat_nmse` for results too few to average over.
MUL_MAT_NMSE = 5e-4

# Against a model of the same arithmetic (q8_1 activations with exact integer sums, or plain f32) only f32 rounding is left: 1e-13 is usual.
Q8_1_MODEL_NMSE = 1e-10
F32_NMSE = 1e-10

# Float mul_mat on matrix units rounds both operands to f16 (11 bits): 2 * 2^-24 / 3 = 4e-8 expected per row of random data; a short row of
# one large and many small products may do ten times worse.
F16_NMSE = 1e-6

# candle's own constants differ by this much between its devices (CPU: q8_K or f32 paths; CUDA: q8_1).
CANDLE_RELATIVE = 1e-3


def nmse(got: NDArray[np.floating], want: NDArray[np.floating]) -> float:
    """sum((got - want)^2) / sum(want^2), in float64. NaN never passes a comparison."""
    got, want = got.astype(np.float64), want.astype(np.float64)
    return float(np.square(got - want).sum() / max(np.square(want).sum(), np.finfo(np.float64).tiny))


def mul_mat_nmse(got: NDArray[np.floating], x: NDArray[np.floating], w: NDArray[np.floating]) -> float:
    """NMSE of `got` against x [M, K] @ w [N, K].T in float64.

    A handful of results may happen to cancel out, and their relative error says nothing then: they are measured against the sum of the
    squared products instead, which for random signs is what the squared results average to.
    """
    x, w = x.astype(np.float64), w.astype(np.float64)
    want = x @ w.T
    energy = (np.square(x) @ np.square(w).T).sum() if want.size < 64 else 0.0
    return float(np.square(got - want).sum() / max(np.square(want).sum(), energy, np.finfo(np.float64).tiny))
