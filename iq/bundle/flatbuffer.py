"""Reading FlatBuffers without their compiler: tables whose fields are addressed by their place in the schema.

Every offset and length is checked against the data before it is used, so that no bytes, however they were made, are read past their end.
Nor do they make lists and strings that are larger than they are: however many offsets lead to the same bytes, what is taken out is counted.
https://flatbuffers.dev/internals/
"""

from __future__ import annotations

import struct
from dataclasses import dataclass


@dataclass
class _Buffer:
    """A FlatBuffer. left: bytes of strings and vectors that may still be taken out, as many as it has at first."""

    data: bytes
    left: int

    def number(self, code: str, at: int) -> int:
        if at < 0 or at + struct.calcsize(code) > len(self.data):  # struct would count a negative place from the end
            raise ValueError("an offset leaves the FlatBuffer")
        value: int = struct.unpack_from(code, self.data, at)[0]
        return value

    def pointed(self, at: int) -> int:
        """Where the unsigned offset at a place leads."""
        return at + self.number("<I", at)

    def take(self, nbytes: int) -> None:
        self.left -= nbytes
        if self.left < 0:
            raise ValueError("its strings and vectors overlap")


@dataclass(frozen=True)
class Table:
    """A table at an offset of a FlatBuffer. Absent fields read as 0 or empty, FlatBuffers' defaults.

    Each string and vector is there to be read once. All methods raise ValueError for offsets and lengths that leave the data.
    """

    buffer: _Buffer
    at: int

    @classmethod
    def root(cls, data: bytes, start: int = 0) -> Table:
        """The root table, whose offset stands at `start`. Raises ValueError."""
        buffer = _Buffer(data, len(data))
        return cls(buffer, buffer.pointed(start))

    def integer(self, place: int) -> int:
        """A u32."""
        field = self._field(place)
        return self.buffer.number("<I", field) if field else 0

    def integers(self, place: int, count: int) -> tuple[int, ...]:
        """A struct of `count` u32."""
        field = self._field(place)
        return tuple(self.buffer.number("<I", field + 4 * i) for i in range(count)) if field else (0,) * count

    def bytes(self, place: int) -> bytes:
        """A string, or a vector of bytes."""
        start, length = self._vector(place, 1)
        self.buffer.take(length)
        return self.buffer.data[start : start + length]

    def text(self, place: int) -> str:
        """A string in UTF-8."""
        return self.bytes(place).decode()

    def count(self, place: int, size: int) -> int:
        """How many elements of `size` bytes a vector has."""
        return self._vector(place, size)[1]

    def tables(self, place: int) -> list[Table]:
        """A vector of tables."""
        start, count = self._vector(place, 4)
        self.buffer.take(4 * count)
        return [Table(self.buffer, self.buffer.pointed(start + 4 * i)) for i in range(count)]

    def _field(self, place: int) -> int:
        """Where a field lies; 0 where the table does not have it."""
        vtable = self.at - self.buffer.number("<i", self.at)
        if 4 + 2 * place >= self.buffer.number("<H", vtable):
            return 0
        offset = self.buffer.number("<H", vtable + 4 + 2 * place)
        return self.at + offset if offset else 0

    def _vector(self, place: int, size: int) -> tuple[int, int]:
        """Where the elements of a vector start, and how many there are."""
        field = self._field(place)
        if not field:
            return 0, 0
        at = self.buffer.pointed(field)
        count = self.buffer.number("<I", at)
        if at + 4 + count * size > len(self.buffer.data):
            raise ValueError(f"a vector of {count} elements leaves the FlatBuffer")
        return at + 4, count
