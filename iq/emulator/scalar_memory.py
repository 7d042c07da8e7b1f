"""Scalar loads: one address for a wave."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from iq.emulator import operands
from iq.emulator.decoder import Instruction
from iq.emulator.memory_unit import CACHE_HINTS, Access, Shape
from iq.emulator.registers import Waves
from iq.emulator.spaces import Addresses
from iq.emulator.steps import Step, Target
from iq.emulator.words import Words

NAME = re.compile(r"s_(buffer_)?load_\w+")


def load(instruction: Instruction, target: Target) -> Step:
    """s_load_* and s_buffer_load_*: the latter gives 0 for words past the buffer's end."""
    instruction.allow("offset", *CACHE_HINTS)
    buffer = instruction.mnemonic.startswith("s_buffer_")
    shape = Shape.parse(instruction, "load")
    destination, base, *offsets = instruction.operands
    if destination.kind != "s" or base.kind != "s" or destination.count != shape.words:
        raise instruction.unknown("operands")
    variable = [o for o in offsets if o.kind not in ("off", "integer", "literal") and not o.is_null]
    readers = [operands.scalar(instruction, o, "u32") for o in variable]
    fixed = instruction.integer("offset") + sum(int(o.value) for o in offsets)
    # For words, the low bits of every part of the address are ignored (RDNA3 ISA, "Scalar Memory Addressing").
    align = np.int64(~3 if shape.size >= 4 else -1)
    access = Access(instruction, shape.size)
    each = Access(instruction, min(shape.size, 4))
    start = operands.scalar(instruction, base, "u64")

    def relative(waves: Waves) -> Addresses:
        offset = np.full(waves.count, fixed & align, np.int64)
        for read in readers:
            offset += read(waves).astype(np.int64) & align
        return offset

    def deliver(waves: Waves, words: list[Words]) -> None:
        for k, word in enumerate(words):
            waves.write_scalar(destination.register + k, shape.extended(word))

    def step(waves: Waves) -> None:
        address = (start(waves).view(np.int64) & align) + relative(waves)
        deliver(waves, access.load(waves, waves.environment.memory, address, None))

    def buffer_step(waves: Waves) -> None:
        offset = relative(waves)
        first = start(waves).view(np.int64) & np.int64((1 << 48) - 1) & align
        end = waves.scalar(base.register + 2).astype(np.int64)
        words: list[Words] = []
        for k in range(shape.words):
            inside = offset + 4 * k + min(shape.size, 4) <= end
            value = np.zeros(waves.count, np.uint32)
            [loaded] = each.load(waves, waves.environment.memory, (first + offset + 4 * k)[inside], None)
            value[inside] = loaded
            words.append(value)
        deliver(waves, words)

    chosen: Callable[[Waves], None] = buffer_step if buffer else step
    return chosen
