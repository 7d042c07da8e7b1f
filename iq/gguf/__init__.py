"""GGUF files: tensors out of them onto devices, and into new ones. Reading takes nothing but numpy; writing takes the gguf package."""

from pathlib import Path

from iq.gguf.convert import Converted, quantize_file
from iq.gguf.file import GGUFFile, Packed
from iq.gguf.imatrix import Imatrix, read_imatrix
from iq.gguf.metadata import Value, ValueType
from iq.gguf.mixes import MIXES
from iq.gguf.reader import TensorInfo
from iq.gguf.writer import write

__all__ = [
    "MIXES",
    "Converted",
    "GGUFFile",
    "Imatrix",
    "Packed",
    "TensorInfo",
    "Value",
    "ValueType",
    "open",
    "quantize_file",
    "read_imatrix",
    "write",
]


def open(path: str | Path) -> GGUFFile:
    """Open a GGUF file to read: `with iq.gguf.open(path) as m: w = m.load(name)`. Raises GGUFError, or OSError when it cannot be read."""
    return GGUFFile(path)
