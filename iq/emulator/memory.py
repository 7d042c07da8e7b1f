"""The memory of an emulated device. Addresses are those of this process, and are never used twice."""

from __future__ import annotations

import ctypes
import os
import weakref
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from iq.emulator import native
from iq.emulator.faults import EmulationError

# In a message, an allocation further away than this says nothing.
_NEAR = 1 << 20


class MemoryFault(EmulationError):
    """An access to memory that is not allocated, or a free of what is not allocated (any more)."""


class OutOfMemory(EmulationError):
    """More memory than the emulated device has."""


class Kind(IntEnum):
    """What an allocation is: of the device, shared with the host, the host's pinned memory, or the host's own made known to the device."""

    DEVICE = 1
    MANAGED = 2
    HOST = 4
    REGISTERED = 8


class Allocation(NamedTuple):
    """`size` bytes from address `start`."""

    start: int
    size: int
    kind: Kind

    def __str__(self) -> str:
        return f"{self.size} bytes at {self.start:#x}"


class _Fault(ctypes.Structure):
    _fields_ = (("what", ctypes.c_char * 64), ("address", ctypes.c_uint64), ("size", ctypes.c_uint64))


class Memory:
    """A device's live allocations.

    Fresh device memory is poisoned with 0xFF bytes: NaN in every float type. Freed memory is unmapped, and its addresses stay unused.
    Safe to use from several threads; IREE allocates and frees on threads of its own.
    """

    def __init__(self, capacity: int | None = None) -> None:
        """capacity: bytes that can be live at once; by default half of this machine's memory."""
        self.capacity = capacity if capacity is not None else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
        self._library = native.load()
        for name in ("create", "allocate", "live", "freed"):
            getattr(self._library, f"memory_{name}").restype = ctypes.c_uint64
        self.handle = ctypes.c_uint64(self._library.memory_create(ctypes.c_uint64(self.capacity)))
        if not self.handle:
            raise OutOfMemory("the emulator cannot keep track of memory: this machine has none left")
        # Not at exit, where daemon threads may still use it.
        weakref.finalize(self, self._library.memory_release, self.handle).atexit = False

    def allocate(self, size: int) -> int:
        """The address of fresh device memory. Raises OutOfMemory."""
        address = int(self._library.memory_allocate(self.handle, ctypes.c_uint64(size), ctypes.c_uint64(Kind.DEVICE)))
        if not address:
            raise OutOfMemory(f"{size} bytes do not fit: {self.used} of {self.capacity} are in use")
        return address

    def free(self, address: int) -> None:
        """Free what `allocate` gave. Raises MemoryFault for anything else, and the second time."""
        if not self._library.memory_free(self.handle, ctypes.c_uint64(address), ctypes.c_uint64(Kind.DEVICE)):
            raise MemoryFault(f"free of {address:#x}, where no allocation starts: {self.describe(address)}")

    def allocations(self) -> list[Allocation]:
        """The live ones, by address."""
        return [Allocation(int(start), int(size), Kind(int(kind))) for start, size, kind in self._table("live")]

    def leaks(self) -> list[Allocation]:
        """Device memory that is live: none, once every buffer is gone."""
        return [a for a in self.allocations() if a.kind in (Kind.DEVICE, Kind.MANAGED)]

    @property
    def used(self) -> int:
        """Live bytes, of all kinds that count towards the capacity."""
        return sum(a.size for a in self.allocations() if a.kind is not Kind.REGISTERED)

    def regions(self) -> NDArray[np.uint64]:
        """Start and end of every live allocation, [n, 2], by address: what kernels may access."""
        table = self._table("live")
        return np.stack([table[:, 0], table[:, 0] + table[:, 1]], axis=1)

    def describe(self, address: int) -> str:
        """What an address is, for an error: in which allocation, live or freed, or how far from which."""
        for start, size, _ in self._table("freed")[::-1].tolist():
            if start <= address < start + max(size, 1):
                return f"{address - start} bytes into an allocation of {size} bytes at {start:#x} that has been freed"
        live = self.allocations()
        near = min(live, key=lambda a: max(a.start - address, address - (a.start + a.size), 0), default=None)
        if near is None:
            return "nothing is allocated"
        if address < near.start:
            away, where = near.start - address, "before"
        elif address >= near.start + near.size:
            away, where = address - (near.start + near.size), "past the end of"
        else:
            return f"{address - near.start} bytes into the allocation of {near}"
        return f"{away} bytes {where} the allocation of {near}" if away < _NEAR else f"near no allocation; the nearest is {near}"

    def fault(self, address: int, size: int, what: str) -> MemoryFault:
        """The error for an access of `size` bytes by `what`, an instruction or a function, that lies in no live allocation."""
        return MemoryFault(f"{what}: {size} bytes at {address:#x} are not in a live allocation: {self.describe(address)}")

    def take_fault(self) -> MemoryFault | None:
        """The first fault of the HIP runtime itself since the last call."""
        fault = _Fault()
        if not self._library.memory_take_fault(self.handle, ctypes.byref(fault)):
            return None
        what, address, size = fault.what.decode(), int(fault.address), int(fault.size)
        if size:
            return self.fault(address, size, what)
        return MemoryFault(f"{what} of {address:#x}, where no such allocation starts: {self.describe(address)}")

    def _table(self, name: str) -> NDArray[np.uint64]:
        """Rows of start, size and kind."""
        function = getattr(self._library, f"memory_{name}")
        room = 256
        while True:
            table = np.empty((room, 3), np.uint64)
            count = int(function(self.handle, ctypes.c_void_p(table.ctypes.data), ctypes.c_uint64(room)))
            if count <= room:
                return table[:count]
            room = 2 * count
