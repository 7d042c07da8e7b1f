"""Every tolerance of the numerical tests, each with its reason: the product's (iq.emulator.references says why), and candle's."""

from iq.emulator.references import F16_NMSE, F32_NMSE, MUL_MAT_NMSE, Q8_1_MODEL_NMSE, mul_mat_nmse, nmse

__all__ = ["CANDLE_RELATIVE", "F16_NMSE", "F32_NMSE", "MUL_MAT_NMSE", "Q8_1_MODEL_NMSE", "mul_mat_nmse", "nmse"]

# candle's own constants differ by this much between its devices (CPU: q8_K or f32 paths; CUDA: q8_1).
CANDLE_RELATIVE = 1e-3
