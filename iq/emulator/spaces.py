"""Address spaces: global memory, which is this process's own, and arrays that stand for workgroup and private memory.

Each checks the addresses that waves give it and turns them into positions, then loads and stores by position.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from iq.emulator.decoder import SHARED_APERTURE
from iq.emulator.faults import EmulationError, LdsFault, ScratchFault
from iq.emulator.words import POISON, Indices, Words

Addresses = NDArray[np.int64]

# numpy has no array at address 0, so positions in global memory count from here. Nothing is ever mapped below.
_FIRST_ADDRESS = 4096
_ADDRESSES = SHARED_APERTURE << 31  # 2^47, where the host's addresses end


class Views:
    """The same bytes seen as 32-, 16- and 8-bit words, addressed by byte position."""

    def __init__(self, words: Words, halves: NDArray[np.uint16], octets: NDArray[np.uint8]) -> None:
        self._words, self._halves, self._bytes = words, halves, octets

    @classmethod
    def of(cls, octets: NDArray[np.uint8]) -> Views:
        """An array whose size is a multiple of 4."""
        return cls(octets.view(np.uint32), octets.view(np.uint16), octets)

    def load(self, position: Addresses, size: int) -> list[Words]:
        """`size` bytes at each position, as 32-bit words; less than 4 are zero extended."""
        if size >= 4:
            first = position >> 2
            if not (position & 3).any():
                return [self._words.take(first + k) for k in range(size // 4)]
            return [self._gather(position + 4 * k, 4) for k in range(size // 4)]
        if size == 1:
            return [self._bytes.take(position).astype(np.uint32)]
        if not (position & 1).any():
            return [self._halves.take(position >> 1).astype(np.uint32)]
        return [self._gather(position, size)]

    def _gather(self, position: Addresses, size: int) -> Words:
        """Unaligned: half by half or byte by byte."""
        if size == 4 and not (position & 1).any():
            first = position >> 1
            return self._halves.take(first) | self._halves.take(first + 1).astype(np.uint32) << np.uint32(16)
        word = self._bytes.take(position).astype(np.uint32)
        for k in range(1, size):
            word |= self._bytes.take(position + k).astype(np.uint32) << np.uint32(8 * k)
        return word

    def store(self, position: Addresses, size: int, values: Sequence[Words]) -> None:
        """The low `size` bytes of the values; where positions are the same, a later lane's."""
        if size == 1:
            self._bytes[position] = values[0].astype(np.uint8)
        elif size == 2 and not (position & 1).any():
            self._halves[position >> 1] = values[0].astype(np.uint16)
        elif size >= 4 and not (position & 3).any():
            first = position >> 2
            for k in range(size // 4):
                self._words[first + k] = values[k]
        else:
            for k in range(size):
                self._bytes[position + k] = (values[k // 4] >> np.uint32(8 * (k % 4))).astype(np.uint8)


class DeviceMemory(Protocol):
    """What the machine needs of `iq.emulator.memory.Memory`."""

    def regions(self) -> NDArray[np.uint64]: ...

    def fault(self, address: int, size: int, what: str) -> EmulationError: ...


class Regions:
    """Intervals of addresses, apart from each other."""

    def __init__(self, intervals: NDArray[np.uint64]) -> None:
        ordered = intervals[intervals[:, 0].argsort()].astype(np.int64)
        self._starts, self._ends = np.ascontiguousarray(ordered[:, 0]), np.ascontiguousarray(ordered[:, 1])
        self._start_list, self._end_list = self._starts.tolist(), self._ends.tolist()

    def outside(self, address: Addresses, size: int) -> int | None:
        """The first of the addresses whose `size` bytes lie in no region."""
        if not address.size:
            return None
        if not self._starts.size:
            return int(address.flat[0])
        low, high = int(address.min()), int(address.max())
        at = bisect_right(self._start_list, low) - 1
        if at >= 0 and high + size <= self._end_list[at]:
            return None
        flat = address.ravel()
        each = np.searchsorted(self._starts, flat, "right") - 1
        bad = (each < 0) | (flat + size > self._ends[each])
        return int(flat[bad.argmax()]) if bad.any() else None


class GlobalSpace:
    """Global memory: this process's, as far as it belongs to live allocations (or, to read, to the code object and the arguments)."""

    def __init__(self, memory: DeviceMemory, readable: NDArray[np.uint64]) -> None:
        def everything(kind: Any, dtype: Any) -> NDArray[Any]:
            size = np.dtype(dtype).itemsize
            return np.frombuffer((kind * ((_ADDRESSES - _FIRST_ADDRESS) // size)).from_address(_FIRST_ADDRESS), dtype)

        self._memory = memory
        self.views = Views(everything(ctypes.c_uint32, "u4"), everything(ctypes.c_uint16, "u2"), everything(ctypes.c_uint8, "u1"))
        live = memory.regions()
        self._written = Regions(live)
        self._read = Regions(np.concatenate([live, readable]))

    def positions(self, address: Addresses, size: int, what: str, owner: Indices, writes: bool) -> Addresses:
        """Positions of addresses. Raises MemoryFault, with the first bad one. `owner` plays no part."""
        bad = (self._written if writes else self._read).outside(address, size)
        if bad is not None:
            raise self._memory.fault(bad & 0xFFFF_FFFF_FFFF_FFFF, size, what)
        return address - _FIRST_ADDRESS


class PartitionedSpace:
    """An array with a part for each owner: a workgroup's LDS, or a lane's private memory. What nobody wrote is poison."""

    def __init__(self, owners: int, size: int, fault: type[EmulationError], name: str) -> None:
        self._size, self._stride = size, -(-size // 16) * 16
        self._fault, self._name = fault, name
        octets = np.full(owners * self._stride // 4, POISON, np.uint32).view(np.uint8)
        self.views = Views.of(octets)

    @classmethod
    def lds(cls, workgroups: int, size: int) -> PartitionedSpace:
        return cls(workgroups, size, LdsFault, "LDS")

    @classmethod
    def scratch(cls, lanes: int, size: int) -> PartitionedSpace:
        return cls(lanes, size, ScratchFault, "private memory")

    def positions(self, address: Addresses, size: int, what: str, owner: Indices, writes: bool) -> Addresses:
        """Positions of addresses in the owners' parts. Raises LdsFault or ScratchFault, with the first bad one."""
        if address.size and (int(address.min()) < 0 or int(address.max()) + size > self._size):
            bad = address[(address < 0) | (address + size > self._size)].flat[0]
            raise self._fault(f"{what}: {size} bytes at {int(bad):#x} are outside the {self._size} bytes of {self._name}")
        return address + owner * self._stride


Space = GlobalSpace | PartitionedSpace
