"""Allocations on a device, and how bytes get in and out of them.

A CPU works in the host's memory: its allocations are numpy arrays that IREE uses in place. A GPU has its own, which bytes
reach through staging memory.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from iree.runtime import HalBuffer

from iq.errors import DeviceError
from iq.runtime.arrays import Array, Bytes
from iq.runtime.hal import Hal

# Kernels are compiled for buffers that start on this boundary.
ALIGNMENT = 64

# Spare bytes after every allocation: GPU kernels load whole words, up to 16 bytes past the last block of packed weights.
SPARE_BYTES = 64

# Bytes of staging memory: large enough to hide the cost of a copy, small enough to stay cheap to pin.
STAGING_BYTES = 32 << 20


class Memory(Protocol):
    """An allocation. Offsets and lengths are in bytes and within it; the caller has checked them."""

    def part(self, offset: int, nbytes: int) -> HalBuffer:
        """The part that a kernel or a copy works on; the allocation must outlive it."""

    def read(self, offset: int, nbytes: int) -> Bytes:
        """A copy of the bytes."""

    def write(self, offset: int, data: Bytes) -> None:
        """Copy bytes in."""

    def host(self, offset: int, nbytes: int) -> Bytes | None:
        """The bytes themselves, if the host can address them."""

    def copy_within(self, offset: int, source: Memory, source_offset: int, nbytes: int) -> None:
        """Copy from an allocation on the same device; the ranges do not overlap."""

    def fill_zero(self, offset: int, nbytes: int) -> None:
        """Make the bytes zero."""


def padded(nbytes: int) -> int:
    """What to allocate for `nbytes` bytes of data."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT + SPARE_BYTES


def address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


def is_aligned(array: Array) -> bool:
    return address(array) % ALIGNMENT == 0


class HostMemory:
    """Memory of a CPU device."""

    def __init__(self, hal: Hal, array: Bytes) -> None:
        """Use a flat, writable, aligned array in place."""
        self._hal = hal
        self._array = array
        self._buffer = hal.share(array)

    @classmethod
    def allocate(cls, hal: Hal, nbytes: int) -> HostMemory:
        """Uninitialised memory. Raises DeviceError when it cannot be had."""
        size = padded(nbytes)
        try:
            array = np.empty(size + ALIGNMENT, np.uint8)
        except MemoryError as error:
            raise DeviceError(f"the CPU cannot allocate {nbytes} bytes") from error
        start = -address(array) % ALIGNMENT
        return cls(hal, array[start : start + size])

    def part(self, offset: int, nbytes: int) -> HalBuffer:
        return self._buffer if offset == 0 else self._hal.subspan(self._buffer, offset, nbytes)

    def read(self, offset: int, nbytes: int) -> Bytes:
        return self._array[offset : offset + nbytes].copy()

    def write(self, offset: int, data: Bytes) -> None:
        self._array[offset : offset + data.size] = data

    def host(self, offset: int, nbytes: int) -> Bytes | None:
        return self._array[offset : offset + nbytes]

    def copy_within(self, offset: int, source: Memory, source_offset: int, nbytes: int) -> None:
        assert isinstance(source, HostMemory)
        self._array[offset : offset + nbytes] = source._array[source_offset : source_offset + nbytes]

    def fill_zero(self, offset: int, nbytes: int) -> None:
        self._array[offset : offset + nbytes] = 0


class DeviceMemory:
    """Memory of a GPU."""

    def __init__(self, hal: Hal, nbytes: int) -> None:
        """Allocate, uninitialised. Raises DeviceError when it cannot be had."""
        self._hal = hal
        self._buffer = hal.allocate(padded(nbytes))

    def __del__(self) -> None:
        # IREE frees the buffer next, in whichever thread came to drop it.
        self._hal.bind()

    def part(self, offset: int, nbytes: int) -> HalBuffer:
        return self._buffer if offset == 0 else self._hal.subspan(self._buffer, offset, nbytes)

    def read(self, offset: int, nbytes: int) -> Bytes:
        data = np.empty(nbytes, np.uint8)
        staging, mapped = self._staging(nbytes)
        for start in range(0, nbytes, STAGING_BYTES):
            n = min(STAGING_BYTES, nbytes - start)
            self._hal.copy(self._buffer, offset + start, staging, 0, n)
            data[start : start + n] = mapped[:n]
        return data

    def write(self, offset: int, data: Bytes) -> None:
        staging, mapped = self._staging(data.size)
        for start in range(0, data.size, STAGING_BYTES):
            n = min(STAGING_BYTES, data.size - start)
            mapped[:n] = data[start : start + n]
            self._hal.copy(staging, 0, self._buffer, offset + start, n)

    def host(self, offset: int, nbytes: int) -> Bytes | None:
        return None

    def copy_within(self, offset: int, source: Memory, source_offset: int, nbytes: int) -> None:
        assert isinstance(source, DeviceMemory)
        self._hal.copy(source._buffer, source_offset, self._buffer, offset, nbytes)

    def fill_zero(self, offset: int, nbytes: int) -> None:
        self._hal.fill_zero(self._buffer, offset, nbytes)

    def _staging(self, nbytes: int) -> tuple[HalBuffer, Bytes]:
        """Staging memory for a transfer, and the same memory as numpy sees it."""
        size = max(1, min(nbytes, STAGING_BYTES))
        buffer = self._hal.allocate_staging(size)
        return buffer, buffer.map().asarray((size,), np.dtype(np.uint8))
