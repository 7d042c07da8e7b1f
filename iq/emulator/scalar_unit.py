"""Scalar arithmetic, control flow, barriers and the mode register."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from iq.emulator import operands
from iq.emulator.alu.types import Op
from iq.emulator.decoder import EXEC, VCC, Instruction, Operand
from iq.emulator.operands import Reader
from iq.emulator.program import LoadedCode
from iq.emulator.registers import Waves
from iq.emulator.steps import STOP, Result, Step, Target
from iq.emulator.vector_unit import applied
from iq.emulator.words import Mask

# What has no effect here: waiting for results that are there already, hints, caches (all waves see one memory), messages to the driver.
# The timing that they are for is not modelled: a missing s_waitcnt goes unnoticed.
NO_OPERATION = re.compile(
    r"s_(waitcnt\w*|wait_\w+|nop|delay_alu|clause|code_end|sendmsg|setprio|sleep|inst_prefetch|set_inst_prefetch_distance"
    r"|icache_inv|dcache_(inv|wb)(_vol)?|prefetch_\w+|sched_\w+|ttracedata\w*|incperflevel|decperflevel|version)"
    r"|v_nop|buffer_(inv|wbl2|wbinvl1(_vol)?|gl[01]_inv)|global_(inv|wb|wbinv)|ds_nop"
)

_MODE_REGISTERS = ("HW_REG_MODE", "HW_REG_WAVE_MODE")
# Set by prologues and by compilers; scratch memory is found otherwise, and nothing is scheduled.
_IGNORED_REGISTERS = ("HW_REG_FLAT_SCR_LO", "HW_REG_FLAT_SCR_HI", "HW_REG_SCHED_MODE", "HW_REG_WAVE_SCHED_MODE")


def arithmetic(instruction: Instruction, op: Op, target: Target) -> Step:
    """A step for a row of SCALAR."""
    instruction.allow()
    printed = list(instruction.operands)
    destination = None if op.result == "none" else printed.pop(0)
    readers: list[Reader] = []
    for position, code in enumerate(op.sources):
        if code == "scc":
            readers.append(lambda waves: waves.scc)
        elif op.tied and position == len(op.sources) - 1:
            readers.append(operands.scalar(instruction, instruction.operands[0], code))
        elif not printed:
            raise instruction.unknown("too few operands")
        else:
            operand = printed.pop(0)
            readers.append(_immediate(instruction, operand, code) or operands.scalar(instruction, operand, code))
    if printed:
        raise instruction.unknown("too many operands")
    write = operands.scalar_writer(instruction, destination, op.result) if destination else None
    compute = applied(op, readers)

    def step(waves: Waves) -> None:
        value, scc = compute(waves)
        if write:
            write(waves, value)
        if scc is not None:
            waves.scc = scc

    return step


def _immediate(instruction: Instruction, operand: Operand, code: str) -> Reader | None:
    """A 16-bit immediate, if the row wants one."""
    if code not in ("simm16", "uimm16"):
        return None
    if operand.kind not in ("integer", "literal"):
        raise instruction.unknown(f"operand {operand.text}")
    value = int(operand.value) & 0xFFFF
    fixed = np.array([value], np.uint32) if code == "uimm16" else np.array([value], np.uint16).view(np.int16).astype(np.int32)
    return lambda waves: fixed


def save_exec(instruction: Instruction, op: Op, target: Target) -> Step:
    """s_*_saveexec: the destination gets EXEC, EXEC the result. s_*_wrexec: both get the result."""
    instruction.allow()
    destination, source = instruction.operands
    code = "u64" if instruction.mnemonic.endswith("b64") else "u32"
    wrexec = "_wrexec_" in instruction.mnemonic
    exec_operand = Operand("s", "exec", register=EXEC, count=2)
    read, current = operands.scalar(instruction, source, code), operands.scalar(instruction, exec_operand, code)
    write, change = operands.scalar_writer(instruction, destination, code), operands.scalar_writer(instruction, exec_operand, code)

    def step(waves: Waves) -> None:
        before = current(waves)
        after, scc = op.function(read(waves), before)
        write(waves, after if wrexec else before)
        change(waves, after)
        waves.scc = scc

    return step


# Control flow.


def _all_or_each(taken: Mask, here: int, there: int) -> Result:
    if taken.all():
        return there
    return np.where(taken, there, here + 1) if taken.any() else None


_CONDITIONS: Mapping[str, Callable[[Waves], Mask]] = {
    "s_cbranch_scc0": lambda waves: ~waves.scc,
    "s_cbranch_scc1": lambda waves: waves.scc,
    "s_cbranch_vccz": lambda waves: ~waves.any_in(VCC),
    "s_cbranch_vccnz": lambda waves: waves.any_in(VCC),
    "s_cbranch_execz": lambda waves: ~waves.any_active(),
    "s_cbranch_execnz": lambda waves: waves.any_active(),
}


def _relative(instruction: Instruction, operand: Operand, code: LoadedCode) -> int:
    """The number of the instruction that a branch's 16-bit offset leads to."""
    if operand.kind not in ("integer", "literal"):
        raise instruction.unknown(f"operand {operand.text}")
    words = (int(operand.value) + 0x8000) % 0x10000 - 0x8000
    return code.program.index(instruction.address + 4 + 4 * words)


def branch(instruction: Instruction, target: Target, code: LoadedCode) -> Step:
    """s_branch and s_cbranch_*."""
    instruction.allow()
    there = _relative(instruction, instruction.operands[0], code)
    if instruction.mnemonic == "s_branch":
        return lambda waves: there
    condition = _CONDITIONS[instruction.mnemonic]
    here = code.program.index(instruction.address)
    if instruction.mnemonic in ("s_cbranch_execz", "s_cbranch_execnz"):
        full = there if instruction.mnemonic == "s_cbranch_execnz" else None
        return lambda waves: full if waves.active() is None else _all_or_each(condition(waves), here, there)
    return lambda waves: _all_or_each(condition(waves), here, there)


def jump(instruction: Instruction, target: Target, code: LoadedCode) -> Step:
    """s_getpc, s_setpc, s_swappc and s_call: the program counter as an address."""
    instruction.allow()
    following = code.base + instruction.address + 4
    name, given = instruction.mnemonic, list(instruction.operands)
    save = None if name == "s_setpc_b64" else operands.scalar_writer(instruction, given.pop(0), "u64")
    there = _relative(instruction, given.pop(0), code) if name == "s_call_b64" else None
    address = operands.scalar(instruction, given.pop(0), "u64") if given else None

    def step(waves: Waves) -> Result:
        to = address(waves) if address else None
        if save:
            save(waves, np.full(waves.count, following, np.uint64))
        if to is None:
            return there
        each = np.array([code.program.index(int(a) - code.base) for a in np.broadcast_to(to, (waves.count,))], np.intp)
        return int(each[0]) if (each == each[0]).all() else each

    return step


def end(instruction: Instruction, target: Target) -> Step:
    """s_endpgm."""

    def step(waves: Waves) -> Result:
        waves.finish()
        return STOP

    return step


def barrier(instruction: Instruction, target: Target, code: LoadedCode) -> Step:
    """s_barrier, and gfx12's split barrier of the whole workgroup (-1): signal, then wait until all waves have signalled."""
    instruction.allow()
    name = instruction.mnemonic
    if name != "s_barrier" and (not instruction.operands or instruction.operands[0].value not in (-1, 0xFFFF)):
        raise instruction.unknown("a barrier other than the workgroup's")
    following = code.program.index(instruction.address) + 1

    def step(waves: Waves) -> Result:
        if name != "s_barrier_wait":
            waves.signal()
        if name == "s_barrier_signal":
            return None
        waves.wait(following)
        return STOP

    return step


# The mode register.


def set_register(instruction: Instruction, target: Target) -> Step:
    """s_setreg_b32 and s_setreg_imm32_b32: of the registers, MODE's floating-point byte."""
    instruction.allow()
    where, source = instruction.operands
    name, first, size = _hardware_register(instruction, where)
    if name in _IGNORED_REGISTERS:
        return lambda waves: None
    if name not in _MODE_REGISTERS or first + size > 8:
        raise instruction.unknown(where.text)
    value = operands.scalar(instruction, source, "u32")
    return lambda waves: _set_mode(instruction, waves, first, size, value(waves))


def set_mode(instruction: Instruction, target: Target) -> Step:
    """s_round_mode and s_denorm_mode: four bits each of MODE."""
    instruction.allow()
    value = np.array([int(instruction.operands[0].value) & 15], np.uint32)
    first = 0 if instruction.mnemonic == "s_round_mode" else 4
    return lambda waves: _set_mode(instruction, waves, first, 4, value)


def _set_mode(instruction: Instruction, waves: Waves, first: int, size: int, value: Any) -> None:
    if (value != value[0]).any():
        raise instruction.unknown("waves that set different modes at once")
    within = (1 << size) - 1
    waves.mode_bits = waves.mode_bits & ~(within << first) | (int(value[0]) & within) << first


def get_register(instruction: Instruction, target: Target) -> Step:
    """s_getreg_b32 of MODE's floating-point byte."""
    instruction.allow()
    destination, where = instruction.operands
    name, first, size = _hardware_register(instruction, where)
    if name not in _MODE_REGISTERS or first + size > 8:
        raise instruction.unknown(where.text)
    write = operands.scalar_writer(instruction, destination, "u32")
    return lambda waves: write(waves, np.full(waves.count, waves.mode_bits >> first & (1 << size) - 1, np.uint32))


def _hardware_register(instruction: Instruction, operand: Operand) -> tuple[str, int, int]:
    found = re.fullmatch(r"hwreg\((\w+)(?:, (\d+), (\d+))?\)", operand.text)
    if not found:
        raise instruction.unknown(f"operand {operand.text}")
    return found[1], int(found[2] or 0), int(found[3] or 32)


STEPS: Mapping[str, Callable[[Instruction, Target], Step]] = {
    "s_endpgm": end,
    "s_setreg_b32": set_register,
    "s_setreg_imm32_b32": set_register,
    "s_getreg_b32": get_register,
    "s_round_mode": set_mode,
    "s_denorm_mode": set_mode,
}
# Those that go by the code's addresses as well.
CODE_STEPS: Mapping[str, Callable[[Instruction, Target, LoadedCode], Step]] = {
    "s_branch": branch,
    **dict.fromkeys(_CONDITIONS, branch),
    **dict.fromkeys(("s_getpc_b64", "s_setpc_b64", "s_swappc_b64", "s_call_b64"), jump),
    **dict.fromkeys(("s_barrier", "s_barrier_signal", "s_barrier_wait"), barrier),
}
