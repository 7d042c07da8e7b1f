"""Vector arithmetic: a row of the tables, its sources with their modifiers, and where the result goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iq.emulator import operands
from iq.emulator.alu import types
from iq.emulator.alu.types import Op
from iq.emulator.decoder import EXEC, VCC, Instruction, Operand
from iq.emulator.lanes import DPP_MODIFIERS, Dpp
from iq.emulator.operands import Reader
from iq.emulator.registers import Waves
from iq.emulator.steps import Step, Target
from iq.emulator.words import Mask, Words

Compute = Callable[[Waves], Any]
Store = Callable[[Waves, Any], None]

# Bits that an SDWA selector takes from a register: shift and width.
_SELECT: Mapping[str, tuple[int, int]] = {
    **{f"BYTE_{k}": (8 * k, 8) for k in range(4)},
    "WORD_0": (0, 16),
    "WORD_1": (16, 16),
    "DWORD": (0, 32),
}
_SDWA_MODIFIERS = ("src0_sel", "src1_sel", "dst_sel", "dst_unused")
_OUTPUT_MODIFIERS = ("clamp", "mul", "div")
_FLOATS = ("f16", "bf16", "f32", "f64")


def arithmetic(instruction: Instruction, op: Op, target: Target) -> Step:
    """A step for a row of VECTOR."""
    compute, store = split(instruction, op, target)
    return lambda waves: store(waves, compute(waves))


def dual(first: tuple[Compute, Store], second: tuple[Compute, Store]) -> Step:
    """Dual issue: both halves read their sources before either writes."""

    def step(waves: Waves) -> None:
        one, other = first[0](waves), second[0](waves)
        first[1](waves, one)
        second[1](waves, other)

    return step


def split(instruction: Instruction, op: Op, target: Target) -> tuple[Compute, Store]:
    """The two halves of an arithmetic instruction: computing its result, storing it."""
    allowed = [*_OUTPUT_MODIFIERS, "op_sel", *(("op_sel_hi",) if "mix" in op.sources else ()), *(s for s in ("bitop3",) if s in op.sources)]
    instruction.allow(*allowed, *_encoding_modifiers(instruction))
    dpp = Dpp(instruction, target.lanes) if instruction.encoding == "dpp" else None
    destination, *printed = instruction.operands
    carry = printed.pop(0) if op.carries else None
    readers = sources(instruction, op, destination, printed, dpp)
    compute = computed(instruction, op, readers)
    return compute, storing(instruction, op, destination, carry, len(printed), dpp, target)


def _encoding_modifiers(instruction: Instruction) -> tuple[str, ...]:
    return {"dpp": DPP_MODIFIERS, "sdwa": _SDWA_MODIFIERS}.get(instruction.encoding, ())


def sources(instruction: Instruction, op: Op, destination: Operand, printed: list[Operand], dpp: Dpp | None) -> list[Reader]:
    """Readers of a row's sources, in its order."""
    remaining = list(printed)
    readers: list[Reader] = []
    for position, code in enumerate(op.sources):
        if code == "lane":
            readers.append(lambda waves: waves.lane)
        elif code == "bitop3":
            table = instruction.integer("bitop3")
            readers.append(lambda waves, table=table: table)  # type: ignore[misc]
        elif op.tied and position == len(op.sources) - 1:
            readers.append(_source(instruction, destination, code, len(printed), None))
        elif code == "mask":
            register = _scalar_register(instruction, remaining.pop(0)) if remaining else VCC
            readers.append(lambda waves, register=register: waves.mask(register))  # type: ignore[misc]
        elif not remaining:
            raise instruction.unknown("too few operands")
        else:
            at = len(printed) - len(remaining)
            readers.append(_source(instruction, remaining.pop(0), code, at, dpp if at == 0 else None))
    if remaining:
        raise instruction.unknown("too many operands")
    return readers


def _scalar_register(instruction: Instruction, operand: Operand) -> int:
    if operand.kind != "s" or operand.negate or operand.absolute:
        raise instruction.unknown(f"operand {operand.text}")
    return operand.register


def _source(instruction: Instruction, operand: Operand, code: str, position: int, dpp: Dpp | None) -> Reader:
    """One source: its words (through DPP or SDWA), then its type, neg and abs."""
    high = operand.half == "h"
    if code == "mix":
        [selected, half] = [instruction.bits(name, 0, 3)[position] for name in ("op_sel", "op_sel_hi")]
        words = operands.raw(instruction, operand, "f16" if half else "f32")
        value = operands.typed(words, "f16" if half else "f32", high=bool(selected), negate=operand.negate, absolute=operand.absolute)
        return (lambda waves: value(waves).astype(np.float32)) if half else value

    def word(number: int) -> Reader:
        reader = operands.raw(instruction, operand, code, number)
        return dpp.source(reader) if dpp else reader

    words = word(0)
    if types.registers(code) == 2:
        words = operands.pair(words, word(1))
    elif types.dtype(code).itemsize == 2 and not operand.half:
        high = bool(instruction.bits("op_sel", 0, 4)[position])
    if instruction.encoding == "sdwa" and position < 2:
        words = _selected(instruction, operand, words, f"src{position}_sel")
    elif operand.sext:
        raise instruction.unknown("sext outside SDWA")
    return operands.typed(words, code, high=high, negate=operand.negate, absolute=operand.absolute)


def _selected(instruction: Instruction, operand: Operand, words: Reader, modifier: str) -> Reader:
    """An SDWA source: a byte or word of the register, zero or sign extended."""
    name = instruction.modifiers.get(modifier, "DWORD")
    if name not in _SELECT:
        raise instruction.unknown(f"{modifier}:{name}")
    shift, width = _SELECT[str(name)]
    if width == 32:
        return words
    up, down = np.uint32(32 - width - shift), np.uint32(32 - width)
    if operand.sext:
        return lambda waves: ((words(waves) << up).view(np.int32) >> down.view(np.int32)).view(np.uint32)
    return lambda waves: (words(waves) << up) >> down


def computed(instruction: Instruction, op: Op, readers: list[Reader]) -> Compute:
    """A row's function on its sources, then the output modifiers."""
    clamp = "clamp" in instruction.modifiers
    is_float = op.result in _FLOATS
    if clamp and not is_float:
        if op.saturating is None:
            raise instruction.unknown("clamp")
        op = replace(op, function=op.saturating)
    factor = {2: 2.0, 4: 4.0}.get(instruction.integer("mul"), 0.5 if instruction.integer("div") == 2 else None)
    compute = applied(op, readers)
    if ("mul" in instruction.modifiers or "div" in instruction.modifiers) and (factor is None or not is_float):
        raise instruction.unknown("output modifier")
    if op.carries and (factor is not None or (clamp and is_float)):
        raise instruction.unknown("output modifier of an instruction with a carry")
    if factor is not None:
        unscaled, scale = compute, types.dtype(op.result).type(factor)
        compute = lambda waves: unscaled(waves) * scale  # noqa: E731
    return clamped(compute, op.result) if clamp and is_float else compute


def clamped(compute: Compute, code: str) -> Compute:
    """A float result within 0 and 1; NaN becomes 0 with DX10_CLAMP."""
    zero, one = types.dtype(code).type(0), types.dtype(code).type(1)

    def clamp(waves: Waves) -> NDArray[Any]:
        value = compute(waves)
        within = np.minimum(np.maximum(value, zero), one)
        clean: NDArray[Any] = np.where(np.isnan(value), zero, within) if waves.dx10_clamp else within
        return clean

    return clamp


def applied(op: Op, readers: list[Reader]) -> Compute:
    """A row's function on its sources."""
    if op.moded:
        return _moded(op, readers)
    function = op.function
    if len(readers) == 1:
        [a] = readers
        return lambda waves: function(a(waves))
    if len(readers) == 2:
        a, b = readers
        return lambda waves: function(a(waves), b(waves))
    return lambda waves: function(*[read(waves) for read in readers])


def _moded(op: Op, readers: list[Reader]) -> Compute:
    """As `applied`, for a function that depends on the floating-point mode; kept until the mode changes."""
    bound: list[Any] = [None, None]

    def compute(waves: Waves) -> Any:
        if bound[0] is not waves.mode:
            bound[:] = waves.mode, op.bind(waves.mode)
        return bound[1](*[read(waves) for read in readers])

    return compute


def storing(
    instruction: Instruction, op: Op, destination: Operand, carry: Operand | None, inputs: int, dpp: Dpp | None, target: Target
) -> Store:
    """Writing a row's result, and with `carry` its carry, to the lanes that are on. inputs: how many sources are printed."""
    lanes_written: Callable[[Waves], Mask | None] = dpp.mask if dpp else Waves.active
    if instruction.encoding == "sdwa":
        write = _sdwa_writer(instruction, destination, op.result)
    elif types.dtype(op.result).itemsize == 2:
        write = _half_writer(instruction, op, destination, inputs, target)
    else:
        write = operands.vector_writer(instruction, destination, op.result)
    if carry is None:
        return lambda waves, value: write(waves, value, lanes_written(waves))
    register = _scalar_register(instruction, carry)

    def store(waves: Waves, value: tuple[NDArray[Any], Mask]) -> None:
        result, carried = value
        mask = lanes_written(waves)
        write(waves, result, mask)
        waves.write_mask(register, carried if mask is None else carried & mask)

    return store


def _half_writer(instruction: Instruction, op: Op, destination: Operand, inputs: int, target: Target) -> Any:
    """A 16-bit result: into the half that the operand, op_sel or the row names."""
    if destination.kind != "v":
        raise instruction.unknown(f"destination {destination.text}")
    selected = not destination.half and bool(instruction.bits("op_sel", 0, inputs + 1)[inputs]) and "mix" not in op.sources
    high = destination.half == "h" or op.half == "high" or selected
    keep = high or op.half == "low" or op.keeps or target.generation >= 10
    register = destination.register

    def write(waves: Waves, value: NDArray[Any], mask: Mask | None) -> None:
        waves.write_vector(register, operands.half_merged(waves, register, value, high, keep), mask)

    return write


def _sdwa_writer(instruction: Instruction, destination: Operand, code: str) -> Any:
    name, unused = instruction.modifiers.get("dst_sel", "DWORD"), instruction.modifiers.get("dst_unused", "UNUSED_PAD")
    if name not in _SELECT or unused not in ("UNUSED_PAD", "UNUSED_PRESERVE", "UNUSED_SEXT") or destination.kind != "v":
        raise instruction.unknown(f"dst_sel:{name} dst_unused:{unused}")
    shift, width = (np.uint32(bits) for bits in _SELECT[str(name)])
    register, unsigned = destination.register, np.dtype(f"u{types.dtype(code).itemsize}")
    if unsigned.itemsize == 8:
        raise instruction.unknown("a 64-bit result with SDWA")

    def write(waves: Waves, value: NDArray[Any], mask: Mask | None) -> None:
        words: Words = value.view(unsigned).astype(np.uint32, copy=False)
        if width < 32:
            within = np.uint32((1 << int(width)) - 1)
            if unused == "UNUSED_SEXT":
                down = (np.uint32(32) - width).view(np.int32)
                words = ((words << (np.uint32(32) - width)).view(np.int32) >> down).view(np.uint32) << shift
            else:
                words = (words & within) << shift
            if unused == "UNUSED_PRESERVE":
                words = words | (waves.vector(register) & ~(within << shift))
        waves.write_vector(register, words, mask)

    return write


def comparison(instruction: Instruction, op: Op, target: Target) -> Step:
    """A step for a row of COMPARE: inactive lanes give 0. v_cmpx writes EXEC, on gfx9 its destination as well."""
    instruction.allow("op_sel", *_encoding_modifiers(instruction))
    dpp = Dpp(instruction, target.lanes) if instruction.encoding == "dpp" else None
    printed = list(instruction.operands)
    to_exec = instruction.mnemonic.startswith("v_cmpx")
    registers = [EXEC] if to_exec else []
    if len(printed) > len(op.sources):
        registers.insert(0, _scalar_register(instruction, printed.pop(0)))
    readers = sources(instruction, op, instruction.operands[0], printed, dpp)
    compute = applied(op, readers)

    def step(waves: Waves) -> None:
        result = compute(waves)
        mask = dpp.mask(waves) if dpp else waves.active()
        if mask is not None:
            result = result & mask
        for register in registers:
            waves.write_mask(register, result)

    return step
