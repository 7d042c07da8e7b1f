"""The product's own numpy models (iq.emulator.references), under the name that the tests know them by."""

from iq.emulator.references import dequantized, q8_1, random_bytes, random_weights

__all__ = ["dequantized", "q8_1", "random_bytes", "random_weights"]
