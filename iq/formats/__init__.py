"""The GGML block formats: one small class each, a file a family, with names, sizes and a numpy reference to quantize and dequantize.

What kernels need to know of a format (how its integers are centred, how its weights fall into sub-blocks) is declared in its class;
templates/formats/<name>.mlir.j2 holds the functions that load and decode a block on a device.
"""

# isort: off
# Importing a family registers its formats; FORMATS and the messages list them in this order.
from iq.formats import plain, legacy, k, codebook, grid, ternary

# isort: on
from iq.formats.arrays import dequantize, quantize
from iq.formats.base import FORMATS, Format, Kind, Named, format_of

__all__ = [
    "FORMATS",
    "Format",
    "Kind",
    "Named",
    "codebook",
    "dequantize",
    "format_of",
    "grid",
    "k",
    "legacy",
    "plain",
    "quantize",
    "ternary",
]
