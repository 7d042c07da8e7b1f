"""Matrix instructions: whole registers of a wave go to `iq.emulator.alu.matrix` and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iq.emulator import operands
from iq.emulator.alu import MatrixOp, Modifiers
from iq.emulator.decoder import Instruction, Operand
from iq.emulator.operands import Reader
from iq.emulator.registers import Waves
from iq.emulator.steps import Step, Target
from iq.emulator.words import Words


def multiply(instruction: Instruction, op: MatrixOp, target: Target) -> Step:
    """v_mfma_* and v_wmma_*. MFMA ignores EXEC; for WMMA every lane has to be active (RDNA3 ISA, "WMMA")."""
    instruction.allow("neg_lo", "neg_hi", "op_sel", "op_sel_hi", "clamp")
    destination, a, b, c = instruction.operands
    wmma = instruction.mnemonic.startswith("v_wmma")
    neg_lo, neg_hi, op_sel = (_three(instruction, name) for name in ("neg_lo", "neg_hi", "op_sel"))
    modifiers = Modifiers(neg_lo, neg_hi, op_sel, "clamp" in instruction.modifiers)
    if destination.kind != "v" or destination.count != op.registers_d:
        raise instruction.unknown(f"destination {destination.text}")
    rows = _source(instruction, a, op.registers_a, lambda registers: op.rows(registers, modifiers), f"A {modifiers}")
    columns = _source(instruction, b, op.registers_b, lambda registers: op.columns(registers, modifiers), f"B {modifiers}")
    read_c, read_old = (_registers(instruction, o, op.registers_d, op.d) for o in (c, destination))
    register = destination.register

    def step(waves: Waves) -> None:
        if wmma and waves.active() is not None:
            raise instruction.unknown("WMMA with inactive lanes")
        old = _stacked(waves, read_old) if op.spread_d else None
        result = op.multiply(rows(waves), columns(waves), _stacked(waves, read_c), modifiers, old)
        for k in range(op.registers_d):
            waves.write_vector(register + k, result[:, k], None)

    return step


def _source(
    instruction: Instruction, operand: Operand, count: int, convert: Callable[[Words], NDArray[Any]], name: str
) -> Callable[[Waves], NDArray[Any]]:
    """A or B as a matrix. Tiles multiply each several times, so a conversion is kept while the registers stay as they are."""
    readers = _registers(instruction, operand, count)
    if operands.is_constant(operand):
        return lambda waves: convert(_stacked(waves, readers))
    key = f"{instruction.mnemonic} {name}"
    return lambda waves: waves.derived(key, operand.register, count, lambda: convert(_stacked(waves, readers)))


def _three(instruction: Instruction, modifier: str) -> tuple[int, int, int]:
    a, b, c = instruction.bits(modifier, 0, 3)
    return a, b, c


def _registers(instruction: Instruction, operand: Operand, count: int, code: str = "u32") -> list[Reader]:
    if operand.negate or operand.absolute:
        raise instruction.unknown(f"operand {operand.text}")
    if operands.is_constant(operand):
        # The constant is every element; an f64 takes two registers.
        words = 2 if code == "f64" else 1
        return [operands.raw(instruction, operand, code, k % words) for k in range(count)]
    if operand.kind != "v" or operand.count != count:
        raise instruction.unknown(f"operand {operand.text}")
    return [operands.raw(instruction, operand, word=k) for k in range(count)]


def _stacked(waves: Waves, readers: list[Reader]) -> Words:
    """[waves, registers, lanes]."""
    words = np.empty((waves.count, len(readers), waves.lanes), np.uint32)
    for k, read in enumerate(readers):
        words[:, k] = read(waves)
    return words
