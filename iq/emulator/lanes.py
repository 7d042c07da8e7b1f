"""Data that moves between lanes: DPP on a vector instruction's first source, v_readlane and its kin, permutes and swizzles."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from iq.emulator import operands
from iq.emulator.decoder import Instruction, Operand
from iq.emulator.operands import Reader
from iq.emulator.registers import Waves
from iq.emulator.steps import Step, Target
from iq.emulator.words import Indices, Mask, Words

# Modifiers of DPP, all of which `Dpp` reads.
DPP_PATTERNS = (
    "quad_perm", "row_shl", "row_shr", "row_ror", "row_mirror", "row_half_mirror", "row_bcast", "row_share", "row_newbcast", "row_xmask",
    "wave_shl", "wave_shr", "wave_rol", "wave_ror", "dpp8",
)  # fmt: skip
DPP_MODIFIERS = (*DPP_PATTERNS, "row_mask", "bank_mask", "bound_ctrl", "fi")


def pattern(instruction: Instruction, lanes: int) -> tuple[Indices, Mask]:
    """DPP's source lane of each lane, and whether there is one (ISA manuals, "DPP")."""
    lane = np.arange(lanes)
    row, column = lane & ~15, lane & 15
    everywhere = np.ones(lanes, bool)
    [name] = [name for name in DPP_PATTERNS if name in instruction.modifiers] or [""]
    if name in ("quad_perm", "dpp8"):
        selectors = np.array(instruction.modifiers[name])
        return lane - lane % len(selectors) + selectors[lane % len(selectors)], everywhere
    by = instruction.integer(name) if name else 0
    shifted: Mapping[str, tuple[Indices, Mask]] = {
        "": (lane, everywhere),
        "row_shl": (lane + by, column + by < 16),
        "row_shr": (lane - by, column >= by),
        "row_ror": (row + (column - by & 15), everywhere),
        "row_mirror": (row + 15 - column, everywhere),
        "row_half_mirror": (row + (column & 8) + 7 - (column & 7), everywhere),
        "row_share": (row + by, everywhere),
        "row_newbcast": (row + by, everywhere),
        "row_xmask": (row + (column ^ by), everywhere),
        "wave_shl": (lane + 1, lane + 1 < lanes),
        "wave_shr": (lane - 1, lane >= 1),
        "wave_rol": ((lane + 1) % lanes, everywhere),
        "wave_ror": ((lane - 1) % lanes, everywhere),
        # The last lane of each row to all of the next; lane 31 to the upper 32.
        "row_bcast": (row - 1, lane >= 16) if by == 15 else (np.full(lanes, 31), lane >= 32),
    }
    source, valid = shifted[name]
    return np.where(valid, source, 0), valid


class Dpp:
    """DPP of one instruction: its first source comes from other lanes, and some lanes may stay unwritten.

    A lane whose source lane does not exist, or is inactive without fi:1, reads 0 with bound_ctrl and is not written without it.
    """

    def __init__(self, instruction: Instruction, lanes: int) -> None:
        lane = np.arange(lanes)
        self._source, self._valid = pattern(instruction, lanes)
        self._every = bool(self._valid.all())
        rows = instruction.integer("row_mask", 15) >> (lane >> 4) & 1
        banks = instruction.integer("bank_mask", 15) >> (lane >> 2 & 3) & 1
        self._enabled: Mask = (rows & banks).astype(bool)
        self._all_enabled = bool(self._enabled.all())
        self._fetch_inactive = bool(instruction.integer("fi"))
        self._zero = bool(instruction.integer("bound_ctrl")) or "dpp8" in instruction.modifiers

    def _readable(self, waves: Waves) -> Mask | None:
        """Lanes with a source lane to read, None for all."""
        active = None if self._fetch_inactive else waves.active()
        if active is not None:
            return self._valid & active[:, self._source]
        return None if self._every else self._valid[None, :]

    def source(self, words: Reader) -> Reader:
        """A reader of 32 bits, through the permutation."""

        def read(waves: Waves) -> Words:
            value = words(waves)
            if value.shape[1] > 1:
                value = value.take(self._source, axis=1)
            readable = self._readable(waves)
            return value if readable is None else np.where(readable, value, np.uint32(0))

        return read

    def mask(self, waves: Waves) -> Mask | None:
        """Lanes that the instruction writes, None for all."""
        mask = waves.active()
        readable = None if self._zero else self._readable(waves)
        for more in (readable, None if self._all_enabled else self._enabled[None, :]):
            if more is not None:
                mask = more if mask is None else mask & more
        return mask if mask is None or len(mask) == waves.count else np.repeat(mask, waves.count, axis=0)


def _lane_number(waves: Waves, value: Words) -> Indices:
    return np.broadcast_to(value, (waves.count,)).astype(np.intp) % waves.lanes


def _vector(instruction: Instruction, operand: Operand) -> int:
    if operand.kind != "v" or operand.negate or operand.absolute:
        raise instruction.unknown(f"operand {operand.text}")
    return operand.register


def readlane(instruction: Instruction, target: Target) -> Step:
    """v_readlane_b32 and v_readfirstlane_b32; the latter reads lane 0 where no lane is active."""
    instruction.allow()
    destination, source, *which = instruction.operands
    words = operands.raw(instruction, source)
    write = operands.scalar_writer(instruction, destination, "u32")
    number = operands.scalar(instruction, which[0], "u32") if which else None

    def step(waves: Waves) -> None:
        value = np.broadcast_to(words(waves), (waves.count, waves.lanes))
        if number is not None:
            lane = _lane_number(waves, number(waves))
        elif waves.active() is None:
            return write(waves, np.ascontiguousarray(value[:, 0]))
        else:
            lane = waves.active_lanes().argmax(axis=1)
        return write(waves, value[np.arange(waves.count), lane])

    return step


def writelane(instruction: Instruction, target: Target) -> Step:
    """v_writelane_b32: writes one lane, active or not."""
    instruction.allow()
    destination, source, which = instruction.operands
    value = operands.scalar(instruction, source, "u32")
    number = operands.scalar(instruction, which, "u32")
    register = _vector(instruction, destination)

    def step(waves: Waves) -> None:
        mask = np.arange(waves.lanes) == _lane_number(waves, number(waves))[:, None]
        waves.write_vector(register, np.broadcast_to(value(waves)[:, None], mask.shape), mask)

    return step


def permlane16(instruction: Instruction, target: Target) -> Step:
    """v_permlane16_b32, v_permlanex16_b32 (from the other row of 16), and gfx12's _var forms (selectors in a vector register).

    op_sel[0] is fi (read inactive lanes), op_sel[1] is bound_ctrl (0 rather than the old value for lanes that are not read).
    """
    instruction.allow("op_sel")
    fetch_inactive, zero = instruction.bits("op_sel", 0, 2)
    destination, source, *selectors = instruction.operands
    register, words = _vector(instruction, destination), operands.raw(instruction, source)
    lane = np.arange(target.lanes)
    row = (lane & ~15) ^ (16 if "permlanex16" in instruction.mnemonic else 0)
    if "var" in instruction.mnemonic:
        indices: Callable[[Waves], NDArray[np.uint32]] = operands.raw(instruction, selectors[0])
    else:
        low, high = (operands.scalar(instruction, s, "u32") for s in selectors)
        shift = (4 * (lane & 7)).astype(np.uint32)

        def indices(waves: Waves) -> NDArray[np.uint32]:
            return np.where(lane & 8, high(waves)[:, None], low(waves)[:, None]) >> shift

    def step(waves: Waves) -> None:
        shape = (waves.count, waves.lanes)
        chosen = row + np.broadcast_to(indices(waves) & np.uint32(15), shape).astype(np.intp)
        value = np.take_along_axis(np.broadcast_to(words(waves), shape), chosen, axis=1)
        mask = waves.active()
        if mask is not None and not fetch_inactive:
            readable = np.take_along_axis(mask, chosen, axis=1)
            value = np.where(readable, value, np.uint32(0))
            mask = mask if zero else mask & readable
        waves.write_vector(register, value, mask)

    return step


def permlane64(instruction: Instruction, target: Target) -> Step:
    """v_permlane64_b32: the halves of a wave64 change places, inactive lanes included; a move in wave32."""
    instruction.allow()
    destination, source = instruction.operands
    register, words = _vector(instruction, destination), operands.raw(instruction, source)
    chosen = np.arange(target.lanes) ^ (32 if target.lanes == 64 else 0)

    def step(waves: Waves) -> None:
        value = np.broadcast_to(words(waves), (waves.count, waves.lanes))
        waves.write_vector(register, value[:, chosen], waves.active())

    return step


def swap(instruction: Instruction, target: Target) -> Step:
    """v_swap_b32."""
    instruction.allow()
    one, other = (_vector(instruction, o) for o in instruction.operands)

    def step(waves: Waves) -> None:
        first, second, mask = waves.vector(one), waves.vector(other), waves.active()
        waves.write_vector(one, second, mask)
        waves.write_vector(other, first, mask)

    return step


def row_swap(instruction: Instruction, target: Target) -> Step:
    """gfx950's v_permlane16_swap_b32 and v_permlane32_swap_b32: odd rows of the first register, even ones of the second."""
    instruction.allow("bound_ctrl", "fi")
    size = 16 if "permlane16" in instruction.mnemonic else 32
    one, other = (_vector(instruction, o) for o in instruction.operands)

    def step(waves: Waves) -> None:
        if waves.active() is not None:
            raise instruction.unknown("with inactive lanes")
        shape = (waves.count, waves.lanes // (2 * size), 2, size)
        first, second = (np.array(waves.vector(r)).reshape(shape) for r in (one, other))
        kept = first[:, :, 1].copy()
        first[:, :, 1], second[:, :, 0] = second[:, :, 0], kept
        waves.write_vector(one, first.reshape(waves.count, waves.lanes), None)
        waves.write_vector(other, second.reshape(waves.count, waves.lanes), None)

    return step


def ds_permute(instruction: Instruction, target: Target) -> Step:
    """ds_bpermute_b32 (each lane pulls) and ds_permute_b32 (each lane pushes; the highest lane wins). Addresses are bytes."""
    instruction.allow("offset")
    if target.lanes == 64 and target.generation >= 10:
        raise instruction.unknown("across the halves of a wave64 on gfx10 and later")
    destination, address, source = instruction.operands
    register, offset = _vector(instruction, destination), np.uint32(instruction.integer("offset"))
    where, words = operands.raw(instruction, address), operands.raw(instruction, source)
    pull = instruction.mnemonic == "ds_bpermute_b32"

    def step(waves: Waves) -> None:
        shape = (waves.count, waves.lanes)
        chosen = ((np.broadcast_to(where(waves), shape) + offset) >> np.uint32(2)).astype(np.intp) % waves.lanes
        value = np.broadcast_to(words(waves), shape)
        mask = waves.active()
        if pull:
            value = np.take_along_axis(value if mask is None else np.where(mask, value, np.uint32(0)), chosen, axis=1)
        else:
            pushed = np.zeros(shape, np.uint32)
            wave, lane = np.nonzero(waves.active_lanes())
            pushed[wave, chosen[wave, lane]] = value[wave, lane]
            value = pushed
        waves.write_vector(register, value, mask)

    return step


def swizzle_lanes(instruction: Instruction) -> Indices:
    """ds_swizzle_b32's source lane of each of 32 lanes."""
    given = instruction.modifiers.get("offset", 0)
    if isinstance(given, int):
        return _swizzled_by_bits(given)
    if not isinstance(given, str) or not given.startswith("swizzle("):
        raise instruction.unknown(f"offset {given}")
    lane = np.arange(32, dtype=np.intp)
    mode, *rest = (word.strip().strip('"') for word in given[len("swizzle(") : -1].split(","))
    if mode == "BITMASK_PERM":
        # A letter for each bit of the lane, highest first: 0, 1, preserved, inverted.
        letters = list(zip((16, 8, 4, 2, 1), rest[0], strict=True))
        kept, ones, inverted = (sum(bit for bit, letter in letters if letter in which) for which in ("pi", "1", "i"))
        return _swizzled_by_bits(kept | ones << 5 | inverted << 10)
    numbers = [int(word, 0) for word in rest]
    if mode == "QUAD_PERM":
        return _swizzled_by_bits(1 << 15 | sum(n << 2 * k for k, n in enumerate(numbers)))
    if mode == "SWAP":
        return _swizzled_by_bits(31 | numbers[0] << 10)
    if mode == "REVERSE":
        return _swizzled_by_bits(31 | numbers[0] - 1 << 10)
    if mode == "BROADCAST":
        return (lane & -numbers[0]) + numbers[1]
    raise instruction.unknown(f"swizzle {mode}")


def _swizzled_by_bits(offset: int) -> Indices:
    """Bit 15: a permutation of each four lanes, two bits a lane. Else and-mask, or-mask and xor-mask of five bits each."""
    lane = np.arange(32, dtype=np.intp)
    if offset >> 15:
        quad: Indices = np.array([offset >> 2 * k & 3 for k in range(4)], np.intp)
        permuted: Indices = (lane & ~3) + quad[lane & 3]
        return permuted
    source: Indices = (lane & (offset & 31) | offset >> 5 & 31) ^ (offset >> 10 & 31)
    return source


def ds_swizzle(instruction: Instruction, target: Target) -> Step:
    """ds_swizzle_b32: a fixed permutation within 32 lanes; inactive lanes give 0."""
    instruction.allow("offset")
    destination, source = instruction.operands
    register, words = _vector(instruction, destination), operands.raw(instruction, source)
    within = swizzle_lanes(instruction)
    chosen = np.concatenate([within + first for first in range(0, target.lanes, 32)])

    def step(waves: Waves) -> None:
        value = np.broadcast_to(words(waves), (waves.count, waves.lanes))
        mask = waves.active()
        if mask is not None:
            value = np.where(mask, value, np.uint32(0))
        waves.write_vector(register, value[:, chosen], mask)

    return step


STEPS: Mapping[str, Callable[[Instruction, Target], Step]] = {
    "v_readlane_b32": readlane,
    "v_readfirstlane_b32": readlane,
    "v_writelane_b32": writelane,
    "v_permlane16_b32": permlane16,
    "v_permlanex16_b32": permlane16,
    "v_permlane16_var_b32": permlane16,
    "v_permlanex16_var_b32": permlane16,
    "v_permlane64_b32": permlane64,
    "v_permlane16_swap_b32": row_swap,
    "v_permlane32_swap_b32": row_swap,
    "v_swap_b32": swap,
    "ds_bpermute_b32": ds_permute,
    "ds_permute_b32": ds_permute,
    "ds_swizzle_b32": ds_swizzle,
}
