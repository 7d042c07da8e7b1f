"""Weights in a safetensors file, read through the safetensors package as a GGUF file's are."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import TracebackType
from typing import Any

from iq.errors import GGUFError
from iq.extras import install
from iq.gguf.file import Packed
from iq.gguf.metadata import Value
from iq.gguf.reader import TensorInfo
from iq.gguf.types import TYPE_IDS, TYPES
from iq.runtime.arrays import bytes_of

# Its element types that ggml has too.
_TYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16", "F64": "f64", "I8": "i8", "I16": "i16", "I32": "i32", "I64": "i64"}


class SafetensorsFile:
    """An open safetensors file. Tensors keep the names that they have there; metadata is empty, as GGUF has none of its own kind for it.

    path: the file. tensors: a TensorInfo each, by name; their offsets are not known.
    """

    def __init__(self, path: str | Path) -> None:
        """Raises GGUFError for a file that is none, for an element type that ggml lacks, and where the safetensors package is missing."""
        self.path = Path(path)
        self.path.stat()  # FileNotFoundError as for any other file
        try:
            package = importlib.import_module("safetensors")
        except ImportError as error:
            raise GGUFError(f"reading {path} takes the safetensors package, which is not installed: {install('gguf')}") from error
        try:
            self._file: Any = package.safe_open(self.path, framework="numpy")
        except package.SafetensorError as error:
            raise GGUFError(f"{path} is no safetensors file that can be read, or not all of one: {error}") from error
        self.metadata: dict[str, Value] = {}
        self.tensors = {name: self._describe(name) for name in self._file.keys()}  # noqa: SIM118 - no mapping

    def _describe(self, name: str) -> TensorInfo:
        part = self._file.get_slice(name)
        shape, type = tuple(part.get_shape()), part.get_dtype()
        if type not in _TYPES:
            raise GGUFError(f"{self.path}: tensor {name!r} is {type}; {', '.join(_TYPES)} can be taken over")
        format = _TYPES[type]
        return TensorInfo(name, format, shape, TYPES[TYPE_IDS[format]].nbytes(math.prod(shape)), 0)

    @property
    def names(self) -> list[str]:
        return list(self.tensors)

    def packed(self, name: str) -> Packed:
        """A copy of a tensor's bytes, flat, its type and its shape."""
        info = self.tensors[name]
        return bytes_of(self._file.get_tensor(name)).reshape(-1), info.format, info.shape

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file = None
