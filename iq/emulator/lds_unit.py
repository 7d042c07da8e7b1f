"""Loads and stores of LDS (DS instructions)."""

from __future__ import annotations

import re

import numpy as np

from iq.emulator import operands
from iq.emulator.decoder import Instruction
from iq.emulator.memory_unit import Access, Shape, compress, delivery, expand, stored
from iq.emulator.registers import Waves
from iq.emulator.steps import Step, Target
from iq.emulator.words import Words

# The spellings of gfx9/gfx10 and of gfx11/gfx12.
_NAME = re.compile(r"ds_(read|load|write|store)(2|_2addr)?(st64|_stride64)?_(\w+)")


def access(instruction: Instruction, target: Target) -> Step:
    """ds_read_*, ds_write_*, and their forms with two addresses, whose offsets count in elements or in 64 of them."""
    found = _NAME.fullmatch(instruction.mnemonic)
    if not found or (found[3] and not found[2]):
        raise instruction.unknown()
    if "_tr_" in instruction.mnemonic:
        return _load_transposed(instruction, target)
    two, reads = bool(found[2]), found[1] in ("read", "load")
    skipped = [part for part in instruction.mnemonic.split("_") if part in ("2addr", "stride64")]
    shape = Shape.parse(instruction, *skipped)
    scale = shape.size * (64 if found[3] else 1)
    if two:
        instruction.allow("offset0", "offset1")
        offsets = [instruction.integer(name) * scale for name in ("offset0", "offset1")]
    else:
        instruction.allow("offset")
        offsets = [instruction.integer("offset")]
    return _read(instruction, shape, offsets) if reads else _write(instruction, shape, offsets)


def _read(instruction: Instruction, shape: Shape, offsets: list[int]) -> Step:
    destination, address = instruction.operands
    where = operands.raw(instruction, address)
    each = Access(instruction, shape.size)
    whole = shape if len(offsets) == 1 else Shape(2 * shape.size)
    deliver = delivery(instruction, destination, whole)

    def step(waves: Waves) -> None:
        mask = waves.active()
        base = compress(where(waves), (waves.count, waves.lanes), mask).astype(np.int64)
        words: list[Words] = []
        for offset in offsets:
            words += each.load(waves, waves.environment.lds, base + offset, mask)
        deliver(waves, words, mask)

    return step


def _write(instruction: Instruction, shape: Shape, offsets: list[int]) -> Step:
    address, *data = instruction.operands
    if len(data) != len(offsets):
        raise instruction.unknown("operands")
    where = operands.raw(instruction, address)
    each = Access(instruction, shape.size)
    values = [stored(instruction, source, shape) for source in data]

    def step(waves: Waves) -> None:
        mask = waves.active()
        base = compress(where(waves), (waves.count, waves.lanes), mask).astype(np.int64)
        for offset, read in zip(offsets, values, strict=True):
            each.store(waves, waves.environment.lds, base + offset, mask, read(waves, mask))

    return step


def _load_transposed(instruction: Instruction, target: Target) -> Step:
    """gfx950's ds_read_b64_tr_b16 and _b8: 16 lanes read rows of 16 elements and each gets a column of them.

    Of the 16 lanes' 64 bits each, taken as rows of 16 elements one after the other, lane k receives element k of every row.
    """
    instruction.allow("offset")
    found = re.fullmatch(r"ds_read_b64_tr_b(8|16)", instruction.mnemonic)
    if not found:
        raise instruction.unknown()
    element = np.dtype(f"u{int(found[1]) // 8}")
    count = 8 // element.itemsize
    destination, address = instruction.operands
    where, offset = operands.raw(instruction, address), instruction.integer("offset")
    each, deliver = Access(instruction, 8), delivery(instruction, destination, Shape(8))

    def step(waves: Waves) -> None:
        mask, shape = waves.active(), (waves.count, waves.lanes)
        base = compress(where(waves), shape, mask).astype(np.int64)
        loaded = [expand(word, mask) for word in each.load(waves, waves.environment.lds, base + offset, mask)]
        rows = np.stack(loaded, axis=-1).view(element).reshape(waves.count, waves.lanes // 16, count, 16)
        columns = np.ascontiguousarray(rows.swapaxes(2, 3)).view(np.uint32).reshape(*shape, 2)
        deliver(waves, [compress(columns[..., k], shape, mask) for k in range(2)], mask)

    return step
