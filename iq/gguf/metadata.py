"""The key-value pairs of a GGUF file: their types, and a value together with its type."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any


class ValueType(IntEnum):
    """GGUF's types of metadata, with GGUF's numbers and the names of gguf-py's GGUFValueType, to whose members these compare equal."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


@dataclass(frozen=True)
class Value:
    """A value of metadata: a number, bool, str, or a list of one of them. type: its type. sub_type: that of an array's elements, else None.

    An array of arrays is a list of lists, with sub_type ARRAY.
    """

    value: Any
    type: ValueType
    sub_type: ValueType | None = None
