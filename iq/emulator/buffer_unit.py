"""Raw buffers: loads, stores and loads to LDS through a resource descriptor in four SGPRs.

A descriptor with its swizzle bit set is the one of private memory that the command processor hands out; older processors reach their
scratch memory through it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from iq.emulator import operands
from iq.emulator.decoder import Instruction, Operand
from iq.emulator.memory_unit import CACHE_HINTS, Access, Shape, compress, delivery, expand, stored, to_lds
from iq.emulator.registers import Waves
from iq.emulator.spaces import Addresses
from iq.emulator.steps import Step, Target
from iq.emulator.words import Mask, Words

SWIZZLED = np.uint32(1 << 31)  # in the second word
_ALL = np.uint32(0xFFFF_FFFF)

# What the command processor puts into the SGPRs of the private segment buffer.
PRIVATE_SEGMENT_BUFFER: tuple[int, int, int, int] = (0, int(SWIZZLED), int(_ALL), 0)


class Buffer:
    """The operands of a buffer instruction, as the waves see them."""

    def __init__(self, instruction: Instruction, vector: Operand, resource: Operand, scalar: Operand) -> None:
        instruction.allow("offset", "offen", "lds", *CACHE_HINTS)
        if resource.kind != "s" or resource.count != 4:
            raise instruction.unknown(f"operand {resource.text}")
        if (vector.kind == "v") != ("offen" in instruction.modifiers):
            raise instruction.unknown(f"operand {vector.text}")
        self.instruction, self.resource = instruction, resource
        self._offset = np.array([[instruction.integer("offset")]], np.int64)
        self._parts = [operands.raw(instruction, operand) for operand in ((scalar, vector) if vector.kind == "v" else (scalar,))]

    def offset(self, waves: Waves) -> Addresses:
        """Bytes from the buffer's start, [waves, lanes]."""
        total = self._offset
        for part in self._parts:
            total = total + part(waves)
        return np.broadcast_to(total, (waves.count, waves.lanes))

    def base(self, waves: Waves) -> Addresses:
        wide = waves.scalar64(self.resource.register).view(np.int64) & np.int64((1 << 48) - 1)
        return wide[:, None]

    def size(self, waves: Waves) -> NDArray[np.int64]:
        return waves.scalar(self.resource.register + 2).astype(np.int64)[:, None]

    def is_private(self, waves: Waves) -> bool:
        """Whether the descriptor is that of private memory, which it is for all waves or none."""
        swizzled = (waves.scalar(self.resource.register + 1) & SWIZZLED) != 0
        if swizzled.any() and not swizzled.all():
            raise self.instruction.unknown("descriptors of private and of global memory at once")
        return bool(swizzled.any())

    def inside(self, waves: Waves, offset: Addresses, size: int) -> list[Mask]:
        """For each word, the active lanes where it lies inside the buffer (CDNA3 ISA, "Range checking", raw buffers)."""
        end, active = self.size(waves), waves.active_lanes()
        return [active & (offset >= 0) & (offset + 4 * k + min(size, 4) <= end) for k in range(max(size // 4, 1))]


def access(instruction: Instruction, target: Target) -> Step:
    """buffer_load_* and buffer_store_*: words outside the buffer read as 0 and are not written."""
    lds = "lds" in instruction.modifiers or "_lds_" in instruction.mnemonic
    shape = Shape.parse(instruction, "lds")
    given = list(instruction.operands)
    data = None if lds else given.pop(0)
    if len(given) != 3:
        raise instruction.unknown("operands")
    buffer = Buffer(instruction, given[0], given[1], given[2])
    whole, word = Access(instruction, shape.size), Access(instruction, min(shape.size, 4))

    def load(waves: Waves, mask: Mask | None) -> list[Words]:
        offset = buffer.offset(waves)
        if buffer.is_private(waves):
            return whole.load(waves, waves.environment.scratch, compress(offset, offset.shape, mask), mask)
        address, masks = buffer.base(waves) + offset, buffer.inside(waves, offset, shape.size)
        if masks[-1].all():
            return whole.load(waves, waves.environment.memory, address, None)
        words = []
        for k, within in enumerate(masks):
            [value] = word.load(waves, waves.environment.memory, (address + 4 * k)[within], within)
            words.append(compress(expand(value, within), offset.shape, mask))
        return words

    if data is None:
        if instruction.mnemonic.startswith("buffer_store"):
            raise instruction.unknown()

        def step_lds(waves: Waves) -> None:
            mask = waves.active()
            to_lds(waves, whole, shape, load(waves, mask), mask, instruction.integer("offset"))

        return step_lds
    if instruction.mnemonic.startswith("buffer_store"):
        values = stored(instruction, data, shape)

        def store(waves: Waves) -> None:
            mask, offset = waves.active(), buffer.offset(waves)
            if buffer.is_private(waves):
                private = compress(offset, offset.shape, mask)
                return whole.store(waves, waves.environment.scratch, private, mask, values(waves, mask))
            return _store_inside(waves, buffer, word, offset, shape.size, values(waves, None))

        return store
    deliver = delivery(instruction, data, shape)

    def step(waves: Waves) -> None:
        mask = waves.active()
        deliver(waves, load(waves, mask), mask)

    return step


def _store_inside(waves: Waves, buffer: Buffer, word: Access, offset: Addresses, size: int, values: Sequence[Words]) -> None:
    address = buffer.base(waves) + offset
    for k, within in enumerate(buffer.inside(waves, offset, size)):
        word.store(waves, waves.environment.memory, (address + 4 * k)[within], within, [values[k][within]])
