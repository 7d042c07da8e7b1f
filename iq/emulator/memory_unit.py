"""Loads and stores of vector registers: global, flat and private memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iq.emulator import operands
from iq.emulator.decoder import M0, PRIVATE_APERTURE, SHARED_APERTURE, Instruction, Operand
from iq.emulator.operands import Reader
from iq.emulator.registers import Waves
from iq.emulator.spaces import Addresses, Space
from iq.emulator.steps import Step, Target
from iq.emulator.words import Mask, Words

# Hints for caches, which are not modelled.
CACHE_HINTS = ("glc", "slc", "dlc", "sc0", "sc1", "nt", "scope", "th", "nv")

# Bytes for a lane, and whether they are sign extended.
_TYPES: Mapping[str, tuple[int, bool]] = {
    "ubyte": (1, False), "sbyte": (1, True), "byte": (1, False), "u8": (1, False), "i8": (1, True), "b8": (1, False),
    "ushort": (2, False), "sshort": (2, True), "short": (2, False), "u16": (2, False), "i16": (2, True), "b16": (2, False),
    "dword": (4, False), "dwordx2": (8, False), "dwordx3": (12, False), "dwordx4": (16, False), "dwordx8": (32, False),
    "dwordx16": (64, False), "b32": (4, False), "b64": (8, False), "b96": (12, False), "b128": (16, False), "b256": (32, False),
    "b512": (64, False),
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """What a memory instruction moves for a lane: bytes, how they are extended, and the half of a register meant ("" for none)."""

    size: int
    signed: bool = False
    half: str = ""

    @property
    def words(self) -> int:
        return max(self.size // 4, 1)

    def extended(self, word: Words) -> Words:
        """A loaded word, sign extended if that is meant."""
        if not self.signed:
            return word
        up = np.uint32(32 - 8 * self.size)
        return ((word << up).view(np.int32) >> up.view(np.int32)).view(np.uint32)

    @classmethod
    def parse(cls, instruction: Instruction, *also: str) -> Shape:
        """From a mnemonic such as global_load_d16_hi_b16; `also`: parts of the name that say nothing of the shape."""
        size = None
        half = ""
        for part in instruction.mnemonic.split("_")[2:]:
            if part in _TYPES and size is None:
                size = _TYPES[part]
            elif part == "d16":
                half = "low"
            elif part == "hi" and half:
                half = "high"
            elif part not in also:
                raise instruction.unknown()
        if size is None:
            raise instruction.unknown()
        return cls(*size, half)


def compress(value: NDArray[Any], shape: tuple[int, int], mask: Mask | None) -> NDArray[Any]:
    """The active lanes' values: [lanes that are active], or all as [waves, lanes]."""
    whole = value if value.shape == shape else np.broadcast_to(value, shape)
    return whole if mask is None else whole[mask]


def expand(values: Words, mask: Mask | None) -> Words:
    """The reverse of `compress`; 0 in inactive lanes."""
    if mask is None:
        return values
    whole = np.zeros(mask.shape, np.uint32)
    whole[mask] = values
    return whole


class Access:
    """How an instruction reaches one space, for a shape."""

    def __init__(self, instruction: Instruction, size: int) -> None:
        self._what = instruction.mnemonic
        self._size = size
        self._bits = 8 * size

    def load(self, waves: Waves, space: Space, address: Addresses, mask: Mask | None) -> list[Words]:
        """Words of the active lanes at their addresses."""
        owner = self._owner(waves, space, mask)
        position = space.positions(address, self._size, self._what, owner, False)
        self._count(waves, space, position.size, False)
        return space.views.load(position, self._size)

    def store(self, waves: Waves, space: Space, address: Addresses, mask: Mask | None, values: Sequence[Words]) -> None:
        owner = self._owner(waves, space, mask)
        position = space.positions(address, self._size, self._what, owner, True)
        self._count(waves, space, position.size, True)
        space.views.store(position, self._size, values)

    def positions(self, waves: Waves, space: Space, address: Addresses, mask: Mask | None) -> Addresses:
        """Positions that are read and written, for an atomic operation."""
        position = space.positions(address, self._size, self._what, self._owner(waves, space, mask), True)
        self._count(waves, space, position.size, False)
        self._count(waves, space, position.size, True)
        return position

    def _owner(self, waves: Waves, space: Space, mask: Mask | None) -> NDArray[np.intp]:
        if space is waves.environment.lds:
            slots = waves.slots[waves.rows]
            return slots[:, None] if mask is None else slots[np.nonzero(mask)[0]]
        if space is waves.environment.scratch:
            return waves.scratch_slots if mask is None else waves.scratch_slots[mask]
        return waves.slots[:0]

    def _count(self, waves: Waves, space: Space, lanes: int, writes: bool) -> None:
        statistics, moved = waves.environment.statistics, lanes * self._size
        if space is waves.environment.memory:
            (statistics.bytes_written if writes else statistics.bytes_read)[self._bits] += moved
        elif space is waves.environment.lds and writes:
            statistics.lds_written += moved
        elif space is waves.environment.lds:
            statistics.lds_read += moved


Deliver = Callable[[Waves, list[Words], Mask | None], None]


def delivery(instruction: Instruction, destination: Operand, shape: Shape) -> Deliver:
    """Writing loaded words to vector registers: extended, or into one half."""
    if destination.kind != "v" or destination.half:
        raise instruction.unknown(f"operand {destination.text}")
    register, count = destination.register, shape.words

    def deliver(waves: Waves, words: list[Words], mask: Mask | None) -> None:
        for k in range(count):
            value = shape.extended(expand(words[k], mask))
            if shape.half:
                value = operands.half_merged(waves, register, value.astype(np.uint16), shape.half == "high", keep=True)
            waves.write_vector(register + k, value, mask)

    return deliver


def stored(instruction: Instruction, source: Operand, shape: Shape) -> Callable[[Waves, Mask | None], list[Words]]:
    """Reading the words of the active lanes that are to be stored."""
    if source.kind != "v" or source.half or source.negate or source.absolute:
        raise instruction.unknown(f"operand {source.text}")
    readers = [operands.raw(instruction, source, word=k) for k in range(shape.words)]

    def read(waves: Waves, mask: Mask | None) -> list[Words]:
        words = [compress(reader(waves), (waves.count, waves.lanes), mask) for reader in readers]
        return [word >> np.uint32(16) for word in words] if shape.half == "high" else words

    return read


def addresses(instruction: Instruction, vector: Operand, scalar: Operand | None) -> Callable[[Waves], Addresses]:
    """The 64-bit addresses of a global or flat instruction: a register pair, or SGPRs plus a 32-bit offset."""
    offset = np.int64(instruction.integer("offset"))
    if scalar is None or scalar.kind == "off" or scalar.is_null:
        if vector.kind != "v" or vector.count != 2:
            raise instruction.unknown(f"operand {vector.text}")
        wide = operands.pair(operands.raw(instruction, vector), operands.raw(instruction, vector, word=1))
        return lambda waves: wide(waves).view(np.int64) + offset
    base = operands.scalar(instruction, scalar, "u64")
    if vector.kind == "off":
        return lambda waves: base(waves).view(np.int64)[:, None] + offset
    within = operands.raw(instruction, vector)
    return lambda waves: (base(waves).view(np.int64) + offset)[:, None] + within(waves)


def _private_addresses(instruction: Instruction, vector: Operand, scalar: Operand) -> Callable[[Waves], Addresses]:
    """The offsets of a scratch instruction in each lane's private memory: a VGPR, an SGPR, both or neither."""
    offset = np.array([[instruction.integer("offset")]], np.int64)
    parts: list[Reader] = []
    for operand in (vector, scalar):
        if operand.kind in ("v", "s") and not operand.is_null:
            parts.append(operands.raw(instruction, operand))
        elif operand.kind != "off" and not operand.is_null:
            raise instruction.unknown(f"operand {operand.text}")

    def read(waves: Waves) -> Addresses:
        total = offset
        for part in parts:
            total = total + part(waves).view(np.int32)
        return total

    return read


def _spaces(kind: str) -> Callable[[Waves, Addresses, Mask | None], list[tuple[Space, Addresses, Mask | None]]]:
    """Which spaces the active lanes' addresses are in. Only flat instructions may have lanes in several."""

    def flat(waves: Waves, address: Addresses, mask: Mask | None) -> list[tuple[Space, Addresses, Mask | None]]:
        environment = waves.environment
        aperture = address >> 32
        if not address.size or not ((aperture == SHARED_APERTURE) | (aperture == PRIVATE_APERTURE)).any():
            return [(environment.memory, address, mask)]
        active = waves.active_lanes()
        each = np.zeros(active.shape, np.int64)
        each[active] = aperture.ravel()
        found: list[tuple[Space, Addresses, Mask | None]] = []
        for space, within in (
            (environment.lds, each == SHARED_APERTURE),
            (environment.scratch, each == PRIVATE_APERTURE),
            (environment.memory, (each != SHARED_APERTURE) & (each != PRIVATE_APERTURE)),
        ):
            part = within & active
            if part.any():
                chosen = address.ravel()[part[active]]
                found.append((space, chosen if space is environment.memory else chosen & 0xFFFF_FFFF, part))
        return found

    return {
        "global": lambda waves, address, mask: [(waves.environment.memory, address, mask)],
        "scratch": lambda waves, address, mask: [(waves.environment.scratch, address, mask)],
        "flat": flat,
    }[kind]


def vector_access(instruction: Instruction, target: Target) -> Step:
    """global_, flat_ and scratch_ loads and stores."""
    instruction.allow("offset", *CACHE_HINTS)
    kind, action = instruction.mnemonic.split("_")[:2]
    if instruction.mnemonic.startswith("global_load_lds_"):
        return load_to_lds(instruction, addresses(instruction, instruction.operands[0], instruction.operands[1]))
    shape = Shape.parse(instruction)
    first, second, *rest = instruction.operands
    data, vector = (second, first) if action == "store" else (first, second)
    scalar = rest[0] if rest else None
    if kind == "scratch":
        if scalar is None:
            raise instruction.unknown("operands")
        where = _private_addresses(instruction, vector, scalar)
    else:
        where = addresses(instruction, vector, scalar)
    spaces, access = _spaces(kind), Access(instruction, shape.size)
    if action == "store":
        values = stored(instruction, data, shape)

        def store(waves: Waves) -> None:
            mask = waves.active()
            address = compress(where(waves), (waves.count, waves.lanes), mask)
            for space, part, within in spaces(waves, address, mask):
                access.store(waves, space, part, within, values(waves, within))

        return store
    deliver = delivery(instruction, data, shape)

    def load(waves: Waves) -> None:
        mask = waves.active()
        address = compress(where(waves), (waves.count, waves.lanes), mask)
        # All of them before anything is written: the destination may hold the addresses.
        for space, part, within in spaces(waves, address, mask):
            deliver(waves, access.load(waves, space, part, within), within)

    return load


def load_to_lds(instruction: Instruction, where: Callable[[Waves], Addresses]) -> Step:
    """global_load_lds_*: lane by lane to LDS from M0 on (ISA manuals, "LDS direct and parameter load")."""
    shape = Shape.parse(instruction, "lds")
    access, offset = Access(instruction, shape.size), instruction.integer("offset")

    def step(waves: Waves) -> None:
        mask, size = waves.active(), (waves.count, waves.lanes)
        words = access.load(waves, waves.environment.memory, compress(where(waves), size, mask), mask)
        to_lds(waves, access, shape, words, mask, offset)

    return step


def to_lds(waves: Waves, access: Access, shape: Shape, words: list[Words], mask: Mask | None, offset: int) -> None:
    """Store loaded words to LDS at M0 + offset + lane * bytes."""
    stride = max(shape.size, 4)
    first = (waves.scalar(M0) & np.uint32(0xFFFC)).astype(np.int64)[:, None] + offset
    where = compress(first + stride * waves.lane.astype(np.int64), (waves.count, waves.lanes), mask)
    access.store(waves, waves.environment.lds, where, mask, words)
