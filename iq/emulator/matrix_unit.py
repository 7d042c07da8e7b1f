"""Matrix instructions: whole registers of a wave go to `iq.emulator.alu.matrix` and back."""

from __future__ import annotations

import numpy as np

from iq.emulator import operands
from iq.emulator.alu import MatrixOp, MatrixOperandError, Modifiers
from iq.emulator.decoder import Instruction, Operand
from iq.emulator.faults import EmulationError
from iq.emulator.operands import Reader
from iq.emulator.registers import Waves, Words
from iq.emulator.steps import Step, Target


def multiply(instruction: Instruction, op: MatrixOp, target: Target) -> Step:
    """v_mfma_* and v_wmma_*. MFMA ignores EXEC; for WMMA every lane has to be active (RDNA3 ISA, "WMMA")."""
    instruction.allow("neg_lo", "neg_hi", "op_sel", "op_sel_hi", "clamp")
    destination, a, b, c = instruction.operands
    wmma = instruction.mnemonic.startswith("v_wmma")
    neg_lo, neg_hi, op_sel = (_three(instruction, name) for name in ("neg_lo", "neg_hi", "op_sel"))
    modifiers = Modifiers(neg_lo, neg_hi, op_sel, "clamp" in instruction.modifiers)
    if destination.kind != "v" or destination.count != op.registers_d:
        raise instruction.unknown(f"destination {destination.text}")
    read_a, read_b = (_registers(instruction, o, n) for o, n in ((a, op.registers_a), (b, op.registers_b)))
    read_c, read_old = (_registers(instruction, o, op.registers_d, op.d) for o in (c, destination))
    register = destination.register

    def step(waves: Waves) -> None:
        if wmma and waves.active() is not None:
            raise instruction.unknown("WMMA with inactive lanes")
        try:
            result = op(_stacked(waves, read_a), _stacked(waves, read_b), _stacked(waves, read_c), _stacked(waves, read_old), modifiers)
        except MatrixOperandError as error:
            raise EmulationError(str(error)) from error
        for k in range(op.registers_d):
            waves.write_vector(register + k, np.ascontiguousarray(result[..., k]), None)

    return step


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
    """[waves, lanes, registers]."""
    words = np.empty((waves.count, waves.lanes, len(readers)), np.uint32)
    for k, read in enumerate(readers):
        words[..., k] = read(waves)
    return words
