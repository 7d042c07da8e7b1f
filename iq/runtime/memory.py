"""Allocations on a device, and how bytes get in and out of them.

A CPU works in the host's memory: its allocations are numpy arrays that IREE uses in place. A GPU has its own, which bytes
reach through staging memory.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from iq.errors import DeviceError
from iq.runtime.arrays import Array, Bytes
from iq.runtime.hal import Hal
from iq.runtime.ownership import Handle, iree_errors

# Kernels are compiled for buffers that start on this boundary.
ALIGNMENT = 64

# Spare bytes after every allocation: GPU kernels load whole words, up to 16 bytes past the last block of packed weights.
SPARE_BYTES = 64


class Memory(Protocol):
    """An allocation. Offsets and lengths are in bytes and within it; the caller has checked them.

    handle: as kernels and copies take it.
    """

    @property
    def handle(self) -> Handle: ...

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
        self._array = array
        with iree_errors(DeviceError, "the CPU device cannot use the memory"):
            self.handle = hal.share(array)

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
        with iree_errors(DeviceError, f"the device cannot allocate {nbytes} bytes"):
            self.handle = hal.allocate(padded(nbytes))

    def read(self, offset: int, nbytes: int) -> Bytes:
        with iree_errors(DeviceError, f"the device cannot give {nbytes} bytes to the host"):
            return self._hal.read(self.handle, offset, nbytes)

    def write(self, offset: int, data: Bytes) -> None:
        with iree_errors(DeviceError, f"the device cannot take {data.size} bytes from the host"):
            self._hal.write(self.handle, offset, data)

    def host(self, offset: int, nbytes: int) -> Bytes | None:
        return None

    def copy_within(self, offset: int, source: Memory, source_offset: int, nbytes: int) -> None:
        with iree_errors(DeviceError, f"the device cannot copy {nbytes} bytes"):
            self._hal.copy(source.handle, source_offset, self.handle, offset, nbytes)

    def fill_zero(self, offset: int, nbytes: int) -> None:
        with iree_errors(DeviceError, f"the device cannot fill {nbytes} bytes"):
            self._hal.fill_zero(self.handle, offset, nbytes)
