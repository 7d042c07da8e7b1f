"""Packed arithmetic and dot products (VOP3P): halves of registers, chosen by op_sel (low element) and op_sel_hi (high element)."""

from __future__ import annotations

import numpy as np

from iq.emulator import operands
from iq.emulator.alu import types
from iq.emulator.alu.types import Op
from iq.emulator.decoder import Instruction, Operand
from iq.emulator.lanes import DPP_MODIFIERS, Dpp
from iq.emulator.operands import Reader
from iq.emulator.registers import Waves
from iq.emulator.steps import Step, Target
from iq.emulator.vector_unit import Compute, Store, computed, storing
from iq.emulator.words import Words

_HALVES = ("op_sel", "op_sel_hi", "neg_lo", "neg_hi")
_LOW, _HIGH = np.uint32(0x0000_FFFF), np.uint32(0xFFFF_0000)
_SIXTEEN = np.uint32(16)


def packed(instruction: Instruction, op: Op, target: Target) -> Step:
    """A step for a row of PACKED: its function for the low elements, then for the high ones."""
    instruction.allow(*_HALVES, "clamp")
    destination, *printed = instruction.operands
    if op.tied:
        printed.append(destination)
    if len(printed) != len(op.sources) or destination.kind != "v":
        raise instruction.unknown("operands")
    halves = []
    for selector, default, negation in (("op_sel", 0, "neg_lo"), ("op_sel_hi", 1, "neg_hi")):
        # The tied source is not printed and has no bits: it is the destination, element by element.
        high = instruction.bits(selector, default, len(printed))
        if op.tied:
            high = (*high[:-1], default)
        negate = instruction.bits(negation, 0, len(printed))
        readers = [
            _element(instruction, operand, code, bool(h), bool(n))
            for operand, code, h, n in zip(printed, op.sources, high, negate, strict=True)
        ]
        halves.append(computed(instruction, op, readers))
    low, high_half = halves
    register = destination.register
    if op.result == "f32":

        def step_pair(waves: Waves) -> None:
            first, second, mask = low(waves), high_half(waves), waves.active()
            waves.write_vector(register, first.view(np.uint32), mask)
            waves.write_vector(register + 1, second.view(np.uint32), mask)

        return step_pair

    def step(waves: Waves) -> None:
        first = low(waves).view(np.uint16).astype(np.uint32)
        second = high_half(waves).view(np.uint16).astype(np.uint32)
        waves.write_vector(register, first | second << _SIXTEEN, waves.active())

    return step


def _element(instruction: Instruction, operand: Operand, code: str, high: bool, negate: bool) -> Reader:
    if operand.negate or operand.absolute or operand.sext or operand.half:
        raise instruction.unknown(f"operand {operand.text}")
    if code == "f32":
        # A constant is the same for both elements.
        word = int(high and not operands.is_constant(operand))
        return operands.typed(operands.raw(instruction, operand, code, word), code, negate=negate)
    return operands.typed(operands.raw(instruction, operand, code), code, high=high, negate=negate)


def move_pair(instruction: Instruction, target: Target) -> Step:
    """v_pk_mov_b32: op_sel names the word of each source."""
    instruction.allow("op_sel", "op_sel_hi")
    destination, *printed = instruction.operands
    low, high = (
        operands.raw(instruction, operand, "u32", 0 if operands.is_constant(operand) else word)
        for operand, word in zip(printed, instruction.bits("op_sel", 0, 2), strict=True)
    )
    register = destination.register

    def step(waves: Waves) -> None:
        first, second, mask = low(waves), high(waves), waves.active()
        waves.write_vector(register, first, mask)
        waves.write_vector(register + 1, second, mask)

    return step


def dot(instruction: Instruction, op: Op, target: Target) -> Step:
    """A step for a row of DOT. neg_lo says which sources of an iu8 or iu4 instruction are signed."""
    compute, store = split_dot(instruction, op, target)
    return lambda waves: store(waves, compute(waves))


def split_dot(instruction: Instruction, op: Op, target: Target) -> tuple[Compute, Store]:
    """The two halves of a dot product: computing, storing."""
    dpp = Dpp(instruction, target.lanes) if instruction.encoding == "dpp" else None
    instruction.allow(*_HALVES, "clamp", *(DPP_MODIFIERS if dpp else ()))
    destination, *printed = instruction.operands
    if op.tied:
        printed.append(destination)
    if len(printed) != len(op.sources) or destination.kind != "v":
        raise instruction.unknown("operands")
    readers = [
        _dot_source(instruction, operand, code, position, dpp if position == 0 else None)
        for position, (operand, code) in enumerate(zip(printed, op.sources, strict=True))
    ]
    return computed(instruction, op, readers), storing(instruction, op, destination, None, len(printed), dpp, target)


def _dot_source(instruction: Instruction, operand: Operand, code: str, position: int, dpp: Dpp | None) -> Reader:
    """Elements of a register, [waves, lanes, count], or the accumulator."""
    low, high = (instruction.bits(name, default, 3)[position] for name, default in (("op_sel", 0), ("op_sel_hi", 1)))
    neg_low, neg_high = (instruction.bits(name, 0, 3)[position] for name in ("neg_lo", "neg_hi"))
    mixed_sign = code.startswith("iu")
    if code in types.SCALAR_TYPES:
        if neg_high:
            raise instruction.unknown("neg_hi of an accumulator")
        accumulator = operands.raw(instruction, operand, code)
        negate = operand.negate or bool(neg_low)
        return operands.typed(accumulator, code, high=operand.half == "h", negate=negate, absolute=operand.absolute)
    elements = types.signed(code, bool(neg_low))
    if operand.negate or operand.absolute or operand.half or (neg_high and mixed_sign):
        raise instruction.unknown(f"operand {operand.text}")
    words = operands.raw(instruction, operand, "f16" if code == "f16x2" else "bf16" if code == "bf16x2" else "u32")
    if dpp:
        words = dpp.source(words)
    if code.endswith("x2"):
        flip = np.uint32((0x8000 if neg_low else 0) | (0x8000_0000 if neg_high else 0))
        words = _rearranged(words, bool(low), bool(high), flip)
    elif (low, high) != (0, 1) and instruction.modifiers.get("op_sel_hi") is not None:
        raise instruction.unknown("op_sel of a dot product of bytes")
    return lambda waves: types.unpack(words(waves), elements)


def _rearranged(words: Reader, low: bool, high: bool, flip: np.uint32) -> Reader:
    """A register with its halves as op_sel and op_sel_hi pick them, and some of their signs flipped."""
    if not low and high and not flip:
        return words

    def read(waves: Waves) -> Words:
        value = words(waves)
        first = value >> _SIXTEEN if low else value & _LOW
        second = value & _HIGH if high else value << _SIXTEEN
        return (first | second) ^ flip

    return read
