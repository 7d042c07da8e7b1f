"""The product's own numpy models (iq.emulator.references), under the name that the tests know them by."""

from iq.emulator.references import dequantized, different_bits, q8_1, random_bytes, random_weights, rounded

__all__ = ["dequantized", "different_bits", "q8_1", "random_bytes", "random_weights", "rounded"]
