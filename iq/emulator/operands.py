"""Operands as functions of the waves: reading registers and constants as the types that arithmetic wants, writing results back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iq.emulator.alu import types
from iq.emulator.decoder import VCC, Instruction, Operand
from iq.emulator.registers import Waves
from iq.emulator.words import Mask, Words

Reader = Callable[[Waves], NDArray[Any]]
Writer = Callable[[Waves, NDArray[Any]], None]

_U64 = np.dtype("u8")
_SIGN = {bits: np.dtype(f"u{bits // 8}").type(1 << bits - 1) for bits in (8, 16, 32, 64)}
_NOT_SIGN = {bits: np.invert(sign) for bits, sign in _SIGN.items()}


def constant_bits(operand: Operand, code: str) -> int:
    """The bits of a constant read as a type code (ISA manuals, "Scalar and vector ALU operands: constants").

    Inline floats have the instruction's own float type. A 32-bit literal is the upper half of an f64, sign extended to i64, else zero
    extended. Inline integers are sign extended.
    """
    width = 64 if code in ("u64", "i64", "f64") else 32
    if operand.kind == "float":
        kind = {"f16": "f2", "f64": "f8", "u64": "f8", "i64": "f8"}.get(code, "f4")
        if code == "bf16":
            return int(np.float32(operand.value).view(np.uint32)) >> 16
        return int(np.array(operand.value, kind).view(f"u{kind[1]}"))
    value = int(operand.value)
    if operand.kind == "literal" and code == "f64":
        return value << 32
    if operand.kind == "literal" and code == "i64" and value >> 31 & 1:
        value -= 1 << 32
    return value & ((1 << width) - 1)


def is_constant(operand: Operand) -> bool:
    return operand.kind in ("integer", "literal", "float", "address")


# Scalar operands: [waves].


def scalar(instruction: Instruction, operand: Operand, code: str) -> Reader:
    """A scalar operand read as a type code: [waves], or [1] for a constant."""
    if operand.negate or operand.absolute or operand.sext:
        raise instruction.unknown(f"operand {operand.text}")
    wide = types.registers(code) == 2
    dtype = types.dtype(code)
    if is_constant(operand):
        if operand.kind == "address" and not wide:
            raise instruction.unknown(f"operand {operand.text} of 32 bits")
        fixed = np.array([constant_bits(operand, code)], _U64).astype(f"u{dtype.itemsize}").view(dtype)
        return lambda waves: fixed
    if operand.kind == "state":
        state = _state(instruction, operand)
        return lambda waves: state(waves).astype(f"u{dtype.itemsize}").view(dtype)
    if operand.kind != "s" or (wide and operand.count == 1):
        raise instruction.unknown(f"operand {operand.text}")
    register = operand.register
    if wide:
        return lambda waves: waves.scalar64(register).view(dtype)
    if dtype.itemsize == 4:
        return lambda waves: waves.scalar(register).view(dtype)
    return lambda waves: waves.scalar(register).astype(f"u{dtype.itemsize}").view(dtype)


def _state(instruction: Instruction, operand: Operand) -> Callable[[Waves], Mask]:
    if operand.text == "scc":
        return lambda waves: waves.scc
    if operand.text == "execz":
        return lambda waves: np.logical_not(waves.any_active())
    if operand.text == "vccz":
        return lambda waves: np.logical_not(waves.any_in(VCC))
    raise instruction.unknown(f"operand {operand.text}")


def scalar_writer(instruction: Instruction, operand: Operand, code: str) -> Writer:
    """Writing a result of a type code to a scalar register (pair)."""
    if operand.kind != "s":
        raise instruction.unknown(f"destination {operand.text}")
    register = operand.register
    if types.registers(code) == 2:
        return lambda waves, value: waves.write_scalar64(register, value)
    if types.dtype(code).itemsize == 4:
        return lambda waves, value: waves.write_scalar(register, value.view(np.uint32))
    bits = f"u{types.dtype(code).itemsize}"
    return lambda waves, value: waves.write_scalar(register, value.view(bits).astype(np.uint32))


# Vector operands: [waves, lanes], or what broadcasts to it.


def raw(instruction: Instruction, operand: Operand, code: str = "u32", word: int = 0) -> Reader:
    """32 bits of an operand: those of its register, plus `word` for a wide one. A constant has its bits as a type code."""
    if is_constant(operand):
        if operand.kind == "address" and types.registers(code) == 1:
            raise instruction.unknown(f"operand {operand.text} of 32 bits")
        fixed = np.array([[constant_bits(operand, code) >> 32 * word & 0xFFFF_FFFF]], np.uint32)
        return lambda waves: fixed
    if operand.kind == "state":
        state = _state(instruction, operand)
        return lambda waves: state(waves).astype(np.uint32)[:, None]
    register = operand.register + word
    if operand.kind == "v":
        return lambda waves: waves.vector(register)
    if operand.kind == "s":
        if operand.is_null:
            register = operand.register
        return lambda waves: waves.scalar(register)[:, None]
    raise instruction.unknown(f"operand {operand.text}")


def pair(low: Reader, high: Reader) -> Reader:
    """Two readers of 32 bits as one of 64."""

    def read(waves: Waves) -> NDArray[Any]:
        first, second = low(waves), high(waves)
        both = np.empty((*(first.shape if first.size >= second.size else second.shape), 2), np.uint32)
        both[..., 0] = first
        both[..., 1] = second
        return both.view(np.uint64)[..., 0]

    return read


def typed(words: Reader, code: str, *, high: bool = False, negate: bool = False, absolute: bool = False) -> Reader:
    """32-bit (for a wide code: 64-bit) words as a type code, with source modifiers. `high`: the upper half for a 16-bit code."""
    dtype = types.dtype(code)
    bits = 8 * dtype.itemsize
    unsigned = np.dtype(f"u{dtype.itemsize}")
    sign, rest = _SIGN[bits], _NOT_SIGN[bits]

    def narrowed(waves: Waves) -> NDArray[Any]:
        value = words(waves)
        return (value >> np.uint32(16) if high else value).astype(unsigned)

    plain: Reader = words if bits >= 32 else narrowed
    if not negate and not absolute:
        return lambda waves: plain(waves).view(dtype)

    def modified(waves: Waves) -> NDArray[Any]:
        value = plain(waves)
        if absolute:
            value = value & rest
        return (value ^ sign if negate else value).view(dtype)

    return modified


def vector_writer(instruction: Instruction, operand: Operand, code: str) -> Callable[[Waves, NDArray[Any], Mask | None], None]:
    """Writing a 32- or 64-bit result to vector registers under a lane mask."""
    if operand.kind != "v":
        raise instruction.unknown(f"destination {operand.text}")
    register = operand.register
    if types.registers(code) == 1:
        return lambda waves, value, mask: waves.write_vector(register, value.view(np.uint32), mask)

    def write(waves: Waves, value: NDArray[Any], mask: Mask | None) -> None:
        wide = value.view(np.uint64)
        waves.write_vector(register, wide.astype(np.uint32), mask)
        waves.write_vector(register + 1, (wide >> np.uint64(32)).astype(np.uint32), mask)

    return write


def half_merged(waves: Waves, register: int, value: NDArray[Any], high: bool, keep: bool) -> Words:
    """A 16-bit result in its half of a register, the other half kept or zero."""
    words: Words = value.view(np.uint16).astype(np.uint32)
    if high:
        words = words << np.uint32(16)
    if not keep:
        return words
    return words | (waves.vector(register) & np.uint32(0x0000_FFFF if high else 0xFFFF_0000))
