"""An open GGUF file: what is in it, and its tensors onto devices."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np

from iq.errors import GGUFError
from iq.gguf.reader import read_header
from iq.qtensor import QTensor
from iq.runtime.arrays import Bytes
from iq.runtime.device import Device

# Packed bytes, their type as ggml names it, and the shape in numpy's order: a tensor as files hold it.
Packed = tuple[Bytes, str, tuple[int, ...]]


class GGUFFile:
    """An open GGUF file. It is mapped, not read: tensors are read as they are loaded. It must not be truncated as long as they are in use.

    path: the file. tensors: what is in it, a TensorInfo each, by name. metadata: its key-value pairs, a Value each, by key.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.stat().st_size:
            raise GGUFError(f"{self.path} is no GGUF file: it is empty")
        # Copy on write: who writes to a tensor does not write to the file.
        data = np.memmap(self.path, np.uint8, mode="c").view(np.ndarray)
        try:
            self.metadata, self.tensors = read_header(data.data)
        except GGUFError as error:
            raise GGUFError(f"{self.path} is no GGUF file that can be read, or not all of one: {error}") from error
        self._data: Bytes | None = data

    @property
    def names(self) -> list[str]:
        """The tensors' names, in the file's order."""
        return list(self.tensors)

    def packed(self, name: str) -> Packed:
        """A tensor's bytes as the file holds them (uint8, flat, in the mapped file), its type and its shape.

        Writes to the bytes do not reach the file. Raises GGUFError when the file is closed, has no such tensor, or ggml's type of it is
        unknown, so that nobody knows where it ends.
        """
        if self._data is None:
            raise GGUFError(f"{self.path} is closed; load tensors before that")
        if name not in self.tensors:
            raise GGUFError(f"{self.path} has no tensor {name!r}; it has {', '.join(self.names) or 'none'}")
        info = self.tensors[name]
        if info.nbytes is None:
            raise GGUFError(f"{self.path}: tensor {name!r} is of ggml's {info.format}, which this version of iq does not know")
        return self._data[info.offset : info.offset + info.nbytes], info.format, info.shape

    def load(self, name: str, device: Device | str | None = None) -> QTensor:
        """A tensor on a device, or on the one of a name ("hip"); None is the default device. It stays valid when the file is closed.

        On a CPU it is the mapped file itself, read as it is used, where the tensor starts on a 64-byte boundary; else, and on GPUs, its
        bytes are copied once. Raises GGUFError as `packed` does, FormatError or ShapeError when a QTensor cannot hold it.
        """
        data, format, shape = self.packed(name)
        return QTensor.from_bytes(data, format, shape, device, copy=None)

    def close(self) -> None:
        """Let go of the file. What was loaded from it stays."""
        self._data = None

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
