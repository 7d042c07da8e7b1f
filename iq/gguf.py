"""GGUF files: tensors out of them onto devices, and into new ones. On top of the gguf package."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import gguf
import numpy as np

from iq.errors import DtypeError, GGUFError, ShapeError
from iq.formats import format_of
from iq.qtensor import QTensor
from iq.runtime.arrays import Array, Bytes, bytes_of, check_array, check_shape
from iq.runtime.device import Device

# Packed bytes, their type as ggml names it, and the shape in numpy's order: a tensor as files hold it.
Packed = tuple[Bytes, str, tuple[int, ...]]

# Entries that gguf-py's reader adds for the file's header.
_HEADER_KEYS = ("GGUF.version", "GGUF.tensor_count", "GGUF.kv_count")

_ALIGNMENT_KEY = "general.alignment"


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a file: its name, ggml's name of its type in lower case ("q4_k"), its shape in numpy's order, its bytes."""

    name: str
    format: str
    shape: tuple[int, ...]
    nbytes: int


def open(path: str | Path) -> GGUFFile:
    """Open a GGUF file to read: `with iq.gguf.open(path) as m: w = m.load(name)`. Raises GGUFError, or OSError when it cannot be read."""
    return GGUFFile(path)


class GGUFFile:
    """An open GGUF file. It is mapped, not read: tensors are read as they are loaded.

    path: the file. tensors: what is in it, by name. metadata: its key-value pairs, each a gguf.GGUFValue (value, type, sub_type).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            reader = _Reader(self.path, mode="c")
            self.metadata = {key: _value(field) for key, field in reader.fields.items() if key not in _HEADER_KEYS}
        except OSError:
            raise
        except Exception as error:  # gguf-py checks little: what is wrong shows as any built-in exception
            raise GGUFError(f"{self.path} is no GGUF file that can be read, or not all of one: {error}") from error
        self.tensors = {t.name: _info(t) for t in reader.tensors}
        self._data: dict[str, Array] | None = {t.name: t.data for t in reader.tensors}

    @property
    def names(self) -> list[str]:
        """The tensors' names, in the file's order."""
        return list(self.tensors)

    def packed(self, name: str) -> Packed:
        """A tensor's bytes as the file holds them (uint8, flat, in the mapped file), its type and its shape. Raises GGUFError.

        Writes to the bytes do not reach the file.
        """
        if self._data is None:
            raise GGUFError(f"{self.path} is closed; load tensors before that")
        if name not in self.tensors:
            raise GGUFError(f"{self.path} has no tensor {name!r}; it has {', '.join(self.names) or 'none'}")
        info = self.tensors[name]
        return bytes_of(self._data[name]).view(np.ndarray), info.format, info.shape

    def load(self, name: str, device: Device | None = None) -> QTensor:
        """A tensor on a device (None is the default device). It stays valid when the file is closed.

        On a CPU it is the mapped file itself, read as it is used, where the tensor starts on a 64-byte boundary; else, and on GPUs, its
        bytes are copied once. Raises GGUFError when there is no such tensor, FormatError or ShapeError when a QTensor cannot hold it.
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


class _Reader(gguf.GGUFReader):
    """gguf-py's reader, which takes what a truncated file still has for the whole, and may then loop over a count it never ends."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Array:
        end = int(offset) + np.dtype(dtype).itemsize * int(count)
        if end > len(self.data):
            raise EOFError(f"it ends at byte {len(self.data)}, something in it at {end}")
        return super()._get(offset, dtype, count, override_order)


def _info(tensor: gguf.ReaderTensor) -> TensorInfo:
    return TensorInfo(tensor.name, tensor.tensor_type.name.lower(), tuple(int(n) for n in reversed(tensor.shape)), int(tensor.n_bytes))


def _value(field: gguf.ReaderField) -> gguf.GGUFValue:
    sub_type = field.types[-1] if len(field.types) > 1 else None
    return gguf.GGUFValue(field.contents(), field.types[0], sub_type)


def write(path: str | Path, tensors: Mapping[str, QTensor | Packed | Array], metadata: Mapping[str, Any] | None = None) -> None:
    """Write a GGUF file; it appears whole, or not at all.

    tensors: by name, each a QTensor, packed bytes with type and shape (as from `GGUFFile.packed`), or an f32 or f16 array.
    metadata: values, or gguf.GGUFValue for a type of one's own choice (as in `GGUFFile.metadata`). Empty lists are left out.
    Raises ShapeError, DtypeError, LayoutError, FormatError, or GGUFError for metadata that GGUF cannot hold.
    """
    path = Path(path)
    parts = {name: _describe(name, tensor) for name, tensor in tensors.items()}
    with tempfile.TemporaryDirectory(prefix=".iq-", dir=path.parent) as temporary:
        new = Path(temporary) / path.name
        writer = gguf.GGUFWriter(new, arch="")
        try:
            _add_metadata(writer, metadata or {})
            for name, (type, shape, nbytes) in parts.items():
                writer.add_tensor_info(name, shape, np.dtype(np.float32), nbytes, raw_dtype=type)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for tensor in tensors.values():
                writer.write_tensor_data(_packed_bytes(tensor))
        finally:
            writer.close()
        new.replace(path)


def _describe(name: str, tensor: QTensor | Packed | Array) -> tuple[gguf.GGMLQuantizationType, tuple[int, ...], int]:
    """A tensor's type, shape and bytes, checked."""
    if isinstance(tensor, QTensor):
        return format_of(tensor.format).type, tensor.shape, tensor.nbytes
    if not isinstance(tensor, tuple):
        array = check_array(tensor, f"tensor {name}")
        if array.dtype not in (np.float32, np.float16):
            raise DtypeError(f"tensor {name}: expected float32 or float16, got {array.dtype}; quantize it, or give packed bytes")
        return gguf.GGMLQuantizationType.F32 if array.dtype == np.float32 else gguf.GGMLQuantizationType.F16, array.shape, array.nbytes
    packed, format, shape = check_array(tensor[0], f"tensor {name}"), tensor[1], check_shape(tensor[2], f"tensor {name}")
    try:
        type = gguf.GGMLQuantizationType[format.upper()]
    except KeyError:
        raise DtypeError(f"tensor {name}: ggml has no type {format!r}") from None
    block, size = gguf.GGML_QUANT_SIZES[type]
    n = int(np.prod(shape, dtype=object))
    if packed.dtype != np.uint8 or not shape or shape[-1] % block or n // block * size != packed.nbytes:
        raise ShapeError(f"tensor {name}: {format} {shape} takes uint8 of {n // block * size} bytes, got {packed.dtype} of {packed.nbytes}")
    return type, shape, packed.nbytes


def _packed_bytes(tensor: QTensor | Packed | Array) -> Bytes:
    if isinstance(tensor, QTensor):
        return tensor.to_bytes()
    return bytes_of(tensor[0] if isinstance(tensor, tuple) else tensor)


def _add_metadata(writer: gguf.GGUFWriter, metadata: Mapping[str, Any]) -> None:
    for key, given in metadata.items():
        try:
            value = given if isinstance(given, gguf.GGUFValue) else gguf.GGUFValue(given, gguf.GGUFValueType.get_type(given))
        except ValueError as error:
            raise GGUFError(f"metadata {key}: GGUF has no type for {given!r}, only for numbers, strings, booleans and lists") from error
        if key == _ALIGNMENT_KEY:
            writer.add_custom_alignment(value.value)
        elif value.type != gguf.GGUFValueType.ARRAY or value.value:
            writer.add_key_value(key, value.value, value.type, value.sub_type)
