"""GGUF files written, over the gguf package, which is only imported here and only when a file is written."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from iq.atomic import replacing
from iq.errors import DtypeError, GGUFError, ShapeError
from iq.extras import install
from iq.formats import format_of
from iq.gguf.file import Packed
from iq.gguf.metadata import ValueType
from iq.gguf.reader import ALIGNMENT_KEY
from iq.gguf.types import TYPE_IDS, TYPES
from iq.qtensor import QTensor
from iq.runtime.arrays import Array, Bytes, bytes_of, check_array, check_shape

# A tensor's type as ggml's id, its shape and bytes.
Described = tuple[int, tuple[int, ...], int]


def write(path: str | Path, tensors: Mapping[str, QTensor | Packed | Array], metadata: Mapping[str, Any] | None = None) -> None:
    """Write a GGUF file; it appears whole, or not at all.

    tensors: by name, each a QTensor, packed bytes with type and shape (as from `GGUFFile.packed`), or an f32 or f16 array.
    metadata: values, or for a type of one's own choice `iq.gguf.Value` (as in `GGUFFile.metadata`) or gguf-py's GGUFValue. Empty lists are
    left out.
    Raises ShapeError, DtypeError, LayoutError, FormatError, or GGUFError for metadata that cannot be written or where the gguf package is
    not installed.
    """
    parts = {name: _describe(name, tensor) for name, tensor in tensors.items()}
    write_described(path, parts, metadata or {}, (_packed_bytes(tensor) for tensor in tensors.values()))


def write_described(path: str | Path, parts: Mapping[str, Described], metadata: Mapping[str, Any], contents: Iterator[Bytes]) -> None:
    """Write a GGUF file of tensors that are described first, and made one by one as they are written. It appears whole, or not at all.

    parts: what the tensors will be, by name; contents: their bytes, in the same order. metadata: as `write` takes it.
    Raises GGUFError for metadata that cannot be written, before anything of `contents` is taken, and what taking it raises.
    """
    gguf = gguf_package()
    with replacing(Path(path)) as new:
        writer = gguf.GGUFWriter(new, arch="")
        try:
            _add_metadata(writer, metadata)
            for name, (type, shape, nbytes) in parts.items():
                # The number itself: ggml has types, q2_0 for one, that gguf-py 0.19 does not name.
                writer.add_tensor_info(name, shape, np.dtype(np.float32), nbytes, raw_dtype=type)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for data in contents:
                writer.write_tensor_data(data)
        finally:
            writer.close()


def gguf_package() -> Any:
    """The gguf package. Raises GGUFError where it is not installed."""
    try:
        return importlib.import_module("gguf")
    except ImportError as error:
        raise GGUFError(f"writing GGUF files takes the gguf package, which is not installed: {install('gguf')}") from error


def _describe(name: str, tensor: QTensor | Packed | Array) -> Described:
    """A tensor's type as ggml's id, its shape and bytes, checked."""
    if isinstance(tensor, QTensor):
        return format_of(tensor.format).type, tensor.shape, tensor.nbytes
    if not isinstance(tensor, tuple):
        array = check_array(tensor, f"tensor {name}")
        if array.dtype not in (np.float32, np.float16):
            raise DtypeError(f"tensor {name}: expected float32 or float16, got {array.dtype}; quantize it, or give packed bytes")
        return TYPE_IDS["f32" if array.dtype == np.float32 else "f16"], array.shape, array.nbytes
    packed, format, shape = check_array(tensor[0], f"tensor {name}"), tensor[1], check_shape(tensor[2], f"tensor {name}")
    if format.lower() not in TYPE_IDS:
        raise DtypeError(f"tensor {name}: ggml has no type {format!r}; it has {', '.join(TYPE_IDS)}")
    id = TYPE_IDS[format.lower()]
    type, n = TYPES[id], math.prod(shape)
    if packed.dtype != np.uint8 or not shape or shape[-1] % type.block_size or type.nbytes(n) != packed.nbytes:
        raise ShapeError(f"tensor {name}: {format} {shape} takes uint8 of {type.nbytes(n)} bytes, got {packed.dtype} of {packed.nbytes}")
    return id, shape, packed.nbytes


def _packed_bytes(tensor: QTensor | Packed | Array) -> Bytes:
    if isinstance(tensor, QTensor):
        return tensor.to_bytes()
    return bytes_of(tensor[0] if isinstance(tensor, tuple) else tensor)


def _add_metadata(writer: Any, metadata: Mapping[str, Any]) -> None:
    types = gguf_package().GGUFValueType
    for key, given in metadata.items():
        if hasattr(given, "sub_type"):
            value, type, sub_type = given.value, types(given.type), None if given.sub_type is None else types(given.sub_type)
        else:
            value, sub_type = given, None
            try:
                type = types.get_type(given)
            except ValueError as error:
                raise GGUFError(f"metadata {key}: GGUF has no type for {given!r}, only for numbers, strings, booleans and lists") from error
        if sub_type == ValueType.ARRAY or (type == ValueType.ARRAY and any(isinstance(v, list) for v in value)):
            raise GGUFError(f"metadata {key}: arrays of arrays cannot be written, the gguf package does not keep their types")
        if key == ALIGNMENT_KEY:
            writer.add_custom_alignment(value)
        elif type != ValueType.ARRAY or value:
            writer.add_key_value(key, value, type, sub_type)
