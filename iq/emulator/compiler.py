"""Which unit an instruction belongs to."""

from __future__ import annotations

import re

from iq.emulator import (
    atomic_unit,
    buffer_unit,
    lanes,
    lds_unit,
    matrix_unit,
    memory_unit,
    packed_unit,
    scalar_memory,
    scalar_unit,
    vector_unit,
)
from iq.emulator.alu import COMPARE, DOT, PACKED, SAVEEXEC, SCALAR, VECTOR, matrix
from iq.emulator.decoder import Instruction
from iq.emulator.program import LoadedCode
from iq.emulator.registers import Waves
from iq.emulator.steps import Step, Target

_VECTOR_ACCESS = re.compile(r"(global|flat|scratch)_(load|store)_.*")
_BUFFER_ACCESS = re.compile(r"buffer_(load|store)_.*")
_DS_ACCESS = re.compile(r"ds_(read|load|write|store)(2|_).*")


def compile_step(code: LoadedCode, index: int, target: Target) -> Step:
    """What runs an instruction of a program. Raises UnknownInstruction."""
    mnemonic = code.program.text(index).split(maxsplit=1)[0]
    if scalar_unit.NO_OPERATION.fullmatch(mnemonic):
        return _nothing
    instruction = code.program.instruction(index)
    if instruction.second:
        return vector_unit.dual(_split(instruction, target), _split(instruction.second, target))
    if instruction.mnemonic in scalar_unit.CODE_STEPS:
        return scalar_unit.CODE_STEPS[instruction.mnemonic](instruction, target, code)
    try:
        return _compile(instruction, target)
    except ValueError as error:  # operands that do not unpack
        raise instruction.unknown(f"operands ({error})") from error


def _nothing(waves: Waves) -> None:
    pass


def _split(instruction: Instruction, target: Target) -> tuple[vector_unit.Compute, vector_unit.Store]:
    if instruction.mnemonic in VECTOR:
        return vector_unit.split(instruction, VECTOR[instruction.mnemonic], target)
    if instruction.mnemonic in DOT:
        return packed_unit.split_dot(instruction, DOT[instruction.mnemonic], target)
    raise instruction.unknown()


def _compile(instruction: Instruction, target: Target) -> Step:
    name = instruction.mnemonic
    for steps in (lanes.STEPS, scalar_unit.STEPS):
        if name in steps:
            return steps[name](instruction, target)
    if name in VECTOR:
        return vector_unit.arithmetic(instruction, VECTOR[name], target)
    comparison = name.replace("v_cmpx_", "v_cmp_", 1)
    if comparison in COMPARE:
        return vector_unit.comparison(instruction, COMPARE[comparison], target)
    if name in PACKED:
        return packed_unit.packed(instruction, PACKED[name], target)
    if name in DOT:
        return packed_unit.dot(instruction, DOT[name], target)
    if name == "v_pk_mov_b32":
        return packed_unit.move_pair(instruction, target)
    if multiplication := matrix(name, target.processor, target.lanes):
        return matrix_unit.multiply(instruction, multiplication, target)
    if name in SCALAR:
        return scalar_unit.arithmetic(instruction, SCALAR[name], target)
    if name in SAVEEXEC:
        return scalar_unit.save_exec(instruction, SAVEEXEC[name], target)
    if scalar_memory.NAME.fullmatch(name):
        return scalar_memory.load(instruction, target)
    if _DS_ACCESS.fullmatch(name):
        return lds_unit.access(instruction, target)
    if _VECTOR_ACCESS.fullmatch(name):
        return memory_unit.vector_access(instruction, target)
    if _BUFFER_ACCESS.fullmatch(name):
        return buffer_unit.access(instruction, target)
    if atomic_unit.NAME.fullmatch(name):
        return atomic_unit.atomic(instruction, target)
    raise instruction.unknown()
