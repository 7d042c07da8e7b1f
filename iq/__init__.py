"""GGML-quantized tensor ops for AMD GPUs, NVIDIA GPUs and CPUs, compiled ahead of time with IREE.

`Device`, `Buffer`, `QTensor` run them; `quantize` and `dequantize` take arrays of the host; `iq.gguf` reads and writes GGUF files;
`iq.compile` makes bundles of kernels.
"""

import importlib
from typing import Any

from iq import gguf
from iq.device import Device
from iq.formats import dequantize
from iq.hadamard import hadamard
from iq.qtensor import QTensor, quantize_q8_1
from iq.quantizing import quantize
from iq.runtime.buffer import Buffer

__version__ = "0.1.0"

__all__ = ["Buffer", "Device", "QTensor", "compile", "dequantize", "gguf", "hadamard", "quantize", "quantize_q8_1"]


def __getattr__(name: str) -> Any:
    # The compiler is not installed where kernels only run, and slow to import where it is.
    if name == "compile":
        return importlib.import_module("iq.compile")
    raise AttributeError(f"module 'iq' has no attribute {name!r}")
