"""What stands in front of a GGUF file's tensors, read strictly: every count and length is checked against the file before it is believed.

GGUF, version 3 (version 2 is the same, but for big-endian files, which only version 3 has): the magic, the version, two counts, the
key-value pairs, a description of each tensor, padding, the tensors' data. Source: docs/gguf.md of ggml.

Our own rather than gguf-py's GGUFReader, which makes several numpy arrays of each string (a file of 300 tensors and a vocabulary of 150,000
opens in 5.2 s, here in 0.11 s, one core), checks few lengths, and lets a truncated or hostile file end in any exception or none.
"""

from __future__ import annotations

import itertools
import math
import struct
from dataclasses import dataclass
from typing import Any

from iq.errors import GGUFError
from iq.gguf.metadata import Value, ValueType
from iq.gguf.types import TYPES

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT_KEY = "general.alignment"
DEFAULT_ALIGNMENT = 32

# GGML_MAX_DIMS of ggml.h.
MAX_DIMS = 4

# Arrays of arrays of arrays: no known file has even the first; each level is a call of `_array`.
MAX_DEPTH = 8

_NUMBERS = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "?",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}

# The least bytes that one takes: a string has a length; an array its elements' type and their count; a pair a key, a type and a byte; a
# tensor's description a name, a count of dimensions, a type and an offset.
_SMALLEST_STRING, _SMALLEST_ARRAY, _SMALLEST_PAIR, _SMALLEST_TENSOR = 8, 12, 13, 24


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a file.

    format: ggml's name of its type in lower case ("q4_k"), or "type 99" for one that has no name here.
    shape: in numpy's order, rows last. nbytes: its bytes; None where the type is unknown. offset: where in the file they start.
    """

    name: str
    format: str
    shape: tuple[int, ...]
    nbytes: int | None
    offset: int


def read_header(data: memoryview) -> tuple[dict[str, Value], dict[str, TensorInfo]]:
    """The metadata and the tensors of a file, given all its bytes. Raises GGUFError, which says what is wrong but not in which file."""
    reader = _Reader(data)
    n_tensors, n_pairs = _start(reader)
    metadata = _metadata(reader, n_pairs)
    tensors = _tensors(reader, n_tensors, _alignment(metadata))
    _check_overlaps(tensors)
    return metadata, tensors


class _Reader:
    """A place in the bytes of a file, which moves on as they are read. Every read raises GGUFError rather than go past the end."""

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.at = 0

    def need(self, nbytes: int, what: str) -> None:
        """Raises unless that many bytes are left."""
        if nbytes > len(self.view) - self.at:
            raise GGUFError(f"{what} at byte {self.at} takes {nbytes} bytes or more; the file ends at byte {len(self.view)}")

    def numbers(self, codes: str, what: str) -> tuple[Any, ...]:
        """Little-endian numbers by their `struct` codes."""
        layout = "<" + codes
        size = struct.calcsize(layout)
        self.need(size, what)
        values = struct.unpack_from(layout, self.view, self.at)
        self.at += size
        return values

    def string(self, what: str) -> str:
        (length,) = self.numbers("Q", what)
        self.need(length, what)
        encoded = self.view[self.at : self.at + length]
        try:
            text = str(encoded, "utf-8")
        except UnicodeDecodeError as error:
            raise GGUFError(f"{what} at byte {self.at} is not UTF-8: {error.reason}") from None
        self.at += length
        return text


def _start(reader: _Reader) -> tuple[int, int]:
    """Checks magic and version -> the counts of tensors and of key-value pairs."""
    (magic, version) = reader.numbers("4sI", "the header")
    if magic != MAGIC:
        raise GGUFError(f"it starts with {magic!r}, not with {MAGIC!r}")
    if version & 0xFFFF == 0:
        raise GGUFError("it is big-endian; only little-endian files are read: convert it with gguf-py's gguf-convert-endian")
    if version not in VERSIONS:
        raise GGUFError(f"it has version {version} of the format; versions {' and '.join(map(str, VERSIONS))} are read")
    n_tensors, n_pairs = reader.numbers("QQ", "the header")
    reader.need(n_tensors * _SMALLEST_TENSOR + n_pairs * _SMALLEST_PAIR, f"the list of {n_pairs} key-value pairs and {n_tensors} tensors")
    return n_tensors, n_pairs


def _metadata(reader: _Reader, count: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for _ in range(count):
        key = reader.string("a key")
        if key in metadata:
            raise GGUFError(f"two key-value pairs have the key {key!r}")
        type = _value_type(reader, key)
        if type == ValueType.ARRAY:
            sub_type, values = _array(reader, key, 1)
            metadata[key] = Value(values, type, sub_type)
        else:
            metadata[key] = Value(_scalar(reader, type, key), type)
    return metadata


def _value_type(reader: _Reader, key: str) -> ValueType:
    (number,) = reader.numbers("I", key)
    try:
        return ValueType(number)
    except ValueError:
        raise GGUFError(f"the value of {key!r} has type {number}, which GGUF does not have") from None


def _scalar(reader: _Reader, type: ValueType, key: str) -> Any:
    if type == ValueType.STRING:
        return reader.string(f"the value of {key!r}")
    return reader.numbers(_NUMBERS[type], f"the value of {key!r}")[0]


def _array(reader: _Reader, key: str, depth: int) -> tuple[ValueType, list[Any]]:
    """The elements' type and the elements of an array, which lies in depth - 1 others."""
    what = f"the array {key!r}"
    if depth > MAX_DEPTH:
        raise GGUFError(f"{what} nests arrays deeper than {MAX_DEPTH} levels")
    type = _value_type(reader, key)
    (count,) = reader.numbers("Q", what)
    if type == ValueType.STRING:
        reader.need(count * _SMALLEST_STRING, what)
        return type, [reader.string(what) for _ in range(count)]
    if type == ValueType.ARRAY:
        reader.need(count * _SMALLEST_ARRAY, what)
        return type, [_array(reader, key, depth + 1)[1] for _ in range(count)]
    code = _NUMBERS[type]
    reader.need(count * struct.calcsize(code), what)
    return type, list(reader.numbers(f"{count}{code}", what))


def _alignment(metadata: dict[str, Value]) -> int:
    given = metadata.get(ALIGNMENT_KEY, Value(DEFAULT_ALIGNMENT, ValueType.UINT32))
    if given.type != ValueType.UINT32 or given.value.bit_count() != 1:
        raise GGUFError(f"{ALIGNMENT_KEY} is {given.value!r} ({given.type.name}); it must be a power of two, and a UINT32")
    alignment: int = given.value
    return alignment


def _tensors(reader: _Reader, count: int, alignment: int) -> dict[str, TensorInfo]:
    described = [_describe(reader) for _ in range(count)]
    start = -(-reader.at // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, shape, type_id, offset in described:
        if name in tensors:
            raise GGUFError(f"two tensors are called {name!r}")
        if offset % alignment:
            raise GGUFError(f"tensor {name!r} starts at byte {offset} of the data, which is no multiple of the alignment of {alignment}")
        type = TYPES.get(type_id)
        elements = math.prod(shape)
        if type and shape[-1:] and shape[-1] % type.block_size:
            raise GGUFError(f"tensor {name!r} has rows of {shape[-1]}; {type.name} stores rows in blocks of {type.block_size}")
        if type and not shape and type.block_size > 1:
            raise GGUFError(f"tensor {name!r} has no dimensions; {type.name} stores rows in blocks of {type.block_size}")
        nbytes = type.nbytes(elements) if type else None
        if (end := start + offset + (nbytes or 0)) > len(reader.view) and elements:
            raise GGUFError(f"tensor {name!r} ends at byte {end}; the file ends at byte {len(reader.view)}")
        tensors[name] = TensorInfo(name, type.name if type else f"type {type_id}", shape, nbytes, start + offset)
    return tensors


def _describe(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    """A tensor's name, shape in numpy's order, type and offset in the data."""
    name = reader.string("a tensor's name")
    what = f"the description of tensor {name!r}"
    (n_dims,) = reader.numbers("I", what)
    if n_dims > MAX_DIMS:
        raise GGUFError(f"tensor {name!r} has {n_dims} dimensions; ggml has at most {MAX_DIMS}")
    *dims, type, offset = reader.numbers(f"{n_dims}QIQ", what)
    return name, tuple(reversed(dims)), type, offset


def _check_overlaps(tensors: dict[str, TensorInfo]) -> None:
    in_order = sorted((t for t in tensors.values() if t.nbytes), key=lambda t: t.offset)
    for before, after in itertools.pairwise(in_order):
        if before.offset + (before.nbytes or 0) > after.offset:
            raise GGUFError(f"tensors {before.name!r} and {after.name!r} overlap at byte {after.offset}")
