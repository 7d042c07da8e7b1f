"""Memory of IREE's devices. A CPU works in the host's: its allocations are numpy arrays that IREE uses in place. A GPU has its own, which
bytes reach through staging memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from iq.errors import DeviceError
from iq.runtime.arrays import Bytes
from iq.runtime.iree.hal import Hal
from iq.runtime.iree.ownership import iree_errors
from iq.runtime.memory import ALIGNMENT, address_of, padded


class HostMemory:
    """Memory of a CPU device. handle: as calls take it."""

    def __init__(self, hal: Hal, array: Bytes) -> None:
        """Use a flat, writable, aligned array in place."""
        self._array = array
        self.address = address_of(array)
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
        start = -address_of(array) % ALIGNMENT
        return cls(hal, array[start : start + size])

    def read(self, offset: int, nbytes: int) -> Bytes:
        return self._array[offset : offset + nbytes].copy()

    def write(self, offset: int, data: Bytes, stream: Any) -> None:
        self._array[offset : offset + data.size] = data

    def host(self, offset: int, nbytes: int) -> Bytes | None:
        return self._array[offset : offset + nbytes]

    def copy_within(self, offset: int, source: HostMemory, source_offset: int, nbytes: int, stream: Any) -> None:
        self._array[offset : offset + nbytes] = source._array[source_offset : source_offset + nbytes]

    def fill_zero(self, offset: int, nbytes: int, stream: Any) -> None:
        self._array[offset : offset + nbytes] = 0


class DeviceMemory:
    """Memory of a GPU. handle: as calls take it. IREE does not say where it lies."""

    address = 0

    def __init__(self, hal: Hal, nbytes: int) -> None:
        """Allocate, uninitialised. Raises DeviceError when it cannot be had."""
        self._hal = hal
        with iree_errors(DeviceError, f"the device cannot allocate {nbytes} bytes"):
            self.handle = hal.allocate(padded(nbytes))

    def read(self, offset: int, nbytes: int) -> Bytes:
        with iree_errors(DeviceError, f"the device cannot give {nbytes} bytes to the host"):
            return self._hal.read(self.handle, offset, nbytes)

    def write(self, offset: int, data: Bytes, stream: Any) -> None:
        with iree_errors(DeviceError, f"the device cannot take {data.size} bytes from the host"):
            self._hal.write(self.handle, offset, data)

    def host(self, offset: int, nbytes: int) -> Bytes | None:
        return None

    def copy_within(self, offset: int, source: DeviceMemory, source_offset: int, nbytes: int, stream: Any) -> None:
        with iree_errors(DeviceError, f"the device cannot copy {nbytes} bytes"):
            self._hal.copy(source.handle, source_offset, self.handle, offset, nbytes)

    def fill_zero(self, offset: int, nbytes: int, stream: Any) -> None:
        with iree_errors(DeviceError, f"the device cannot fill {nbytes} bytes"):
            self._hal.fill_zero(self.handle, offset, nbytes)
