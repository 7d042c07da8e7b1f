"""Allocations on a device, and how bytes get in and out of them: what buffers take of either way to run kernels."""

from __future__ import annotations

from typing import Any, Protocol

from iq.runtime.arrays import Array, Bytes

# Spare bytes after every allocation: GPU kernels load whole words, up to 16 bytes past the last block of packed weights.
SPARE_BYTES = 64

# What allocations are padded to.
ALIGNMENT = 64


class Memory(Protocol):
    """An allocation. Offsets and lengths are in bytes and within it; the caller has checked them.

    address: where it starts, for the device; 0 where that is not known. Streams are those of the device, or None for its own: what is
    enqueued on a stream happens in order there.
    """

    @property
    def address(self) -> int: ...

    def read(self, offset: int, nbytes: int) -> Bytes:
        """A copy of the bytes, as they are after all that has been enqueued with this memory."""

    def write(self, offset: int, data: Bytes, stream: Any) -> None:
        """Copy bytes in. `data` may change once this returns."""

    def host(self, offset: int, nbytes: int) -> Bytes | None:
        """The bytes themselves, if the host can address them."""

    def copy_within(self, offset: int, source: Any, source_offset: int, nbytes: int, stream: Any) -> None:
        """Copy from an allocation on the same device; the ranges do not overlap."""

    def fill_zero(self, offset: int, nbytes: int, stream: Any) -> None:
        """Make the bytes zero."""


def padded(nbytes: int) -> int:
    """What to allocate for `nbytes` bytes of data."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT + SPARE_BYTES


def address_of(array: Array) -> int:
    """Where a numpy array's data starts."""
    return int(array.__array_interface__["data"][0])


def is_aligned(array: Array) -> bool:
    """Whether CPU kernels can take an array where it lies."""
    return address_of(array) % ALIGNMENT == 0
