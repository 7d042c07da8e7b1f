"""Atomic operations on global memory and LDS. The lanes of a wave come in order; the waves' order is the scheduler's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iq.emulator import operands
from iq.emulator.alu import types
from iq.emulator.buffer_unit import Buffer
from iq.emulator.decoder import Instruction, Operand
from iq.emulator.memory_unit import CACHE_HINTS, Access, Shape, addresses, compress, delivery, stored
from iq.emulator.registers import Waves
from iq.emulator.spaces import Addresses, Space
from iq.emulator.steps import Step, Target
from iq.emulator.words import Mask, Words

NAME = re.compile(r"(global|flat|buffer)_atomic_(\w+)|ds_(\w+)")

Values = NDArray[Any]


@dataclass(frozen=True)
class Operation:
    """What becomes of the old value. compares: with a second source, the expected value."""

    code: str
    function: Callable[..., Values]
    compares: bool = False


def _increment(old: Values, limit: Values) -> Values:
    new: Values = np.where(old >= limit, old.dtype.type(0), old + old.dtype.type(1))
    return new


def _decrement(old: Values, limit: Values) -> Values:
    new: Values = np.where((old == 0) | (old > limit), limit, old - old.dtype.type(1))
    return new


def _exchange(old: Values, data: Values, expected: Values) -> Values:
    new: Values = np.where(old == expected, data, old)
    return new


def _add_halves(code: str) -> Callable[[Values, Values], Values]:
    dtype = types.dtype(code)

    def add(old: Values, data: Values) -> Values:
        one, other = (np.ascontiguousarray(v).view(dtype) for v in (old, data))
        return np.asarray(one + other, dtype).view(np.uint32)

    return add


def _integers() -> dict[str, Operation]:
    plain: Mapping[str, tuple[str, Callable[..., Values]]] = {
        "add": ("u", lambda old, data: old + data),
        "sub": ("u", lambda old, data: old - data),
        "rsub": ("u", lambda old, data: data - old),
        "inc": ("u", _increment),
        "dec": ("u", _decrement),
        "min_i": ("i", np.minimum),
        "max_i": ("i", np.maximum),
        "min_u": ("u", np.minimum),
        "max_u": ("u", np.maximum),
        "and": ("b", lambda old, data: old & data),
        "or": ("b", lambda old, data: old | data),
        "xor": ("b", lambda old, data: old ^ data),
        "swap": ("b", lambda old, data: data),
    }
    table: dict[str, Operation] = {}
    for name, (sign, function) in plain.items():
        for size in (32, 64):
            code = f"{'i' if sign == 'i' else 'u'}{size}"
            table[f"{name}{size}" if name[-2:] in ("_i", "_u") else f"{name}_{sign}{size}"] = Operation(code, function)
    for size in (32, 64):
        table[f"cmpswap_b{size}"] = Operation(f"u{size}", _exchange, compares=True)
    return table


def _floats() -> dict[str, Operation]:
    table: dict[str, Operation] = {}
    for code in ("f32", "f64"):
        for name, function in (("add", np.add), ("min", np.fmin), ("max", np.fmax), ("min_num", np.fmin), ("max_num", np.fmax)):
            table[f"{name}_{code}"] = Operation(code, function)
    for code in ("f16", "bf16"):
        table[f"pk_add_{code}"] = Operation("u32", _add_halves(code))
    return table


OPERATIONS: Mapping[str, Operation] = {**_integers(), **_floats()}

# gfx9 and gfx10 name global operations without a type ("_x2" for 64 bits), DS ones with other verbs.
_OLD_NAMES: Mapping[str, str] = {
    "swap": "swap_b", "cmpswap": "cmpswap_b", "add": "add_u", "sub": "sub_u", "smin": "min_i", "umin": "min_u", "smax": "max_i",
    "umax": "max_u", "and": "and_b", "or": "or_b", "xor": "xor_b", "inc": "inc_u", "dec": "dec_u",
}  # fmt: skip
_DS_VERBS: Mapping[str, str] = {"wrxchg": "swap", "storexchg": "swap", "cmpst": "cmpswap", "cmpstore": "cmpswap"}


def operation(instruction: Instruction) -> Operation:
    """The operation that a mnemonic names. Raises UnknownInstruction."""
    found = NAME.fullmatch(instruction.mnemonic)
    if not found:
        raise instruction.unknown()
    if found[2]:
        name, _, wide = found[2].partition("_x2")
        name = f"{_OLD_NAMES[name]}{64 if found[2].endswith('_x2') else 32}" if name in _OLD_NAMES and not wide else name
    else:
        verb, _, rest = found[3].replace("_rtn", "").partition("_")
        name = f"{_DS_VERBS.get(verb, verb)}_{rest}"
    if name not in OPERATIONS:
        raise instruction.unknown()
    return OPERATIONS[name]


def apply(space: Space, position: Addresses, what: Operation, data: list[Values]) -> Values:
    """Perform an operation at positions, one lane after the other where they are the same. Returns the old values."""
    dtype = types.dtype(what.code)
    old = np.zeros(position.shape, dtype)
    left = np.arange(position.size)
    while left.size:
        # All first lanes of their addresses at once, then all second ones...
        first = np.sort(np.unique(position[left], return_index=True)[1])
        now = left[first]
        words = space.views.load(position[now], dtype.itemsize)
        current = np.stack(words, axis=-1).view(dtype)[..., 0]
        new = np.ascontiguousarray(what.function(current, *(d[now] for d in data)), dtype)
        space.views.store(position[now], dtype.itemsize, list(new.view(np.uint32).reshape(len(now), -1).T))
        old[now] = current
        left = np.delete(left, first)
    return old


def _returns(instruction: Instruction) -> bool:
    temporal = str(instruction.modifiers.get("th", ""))
    return "glc" in instruction.modifiers or "sc0" in instruction.modifiers or "RETURN" in temporal


def atomic(instruction: Instruction, target: Target) -> Step:
    """global_, flat_ and buffer_atomic_* and the DS operations. flat ones reach global memory only."""
    what = operation(instruction)
    size = types.dtype(what.code).itemsize
    kind = instruction.mnemonic.split("_")[0]
    given = list(instruction.operands)
    destination: Operand | None = None
    if kind == "ds":
        instruction.allow("offset")
        destination = given.pop(0) if "_rtn" in instruction.mnemonic else None
        address, *sources = given
        # cmpst has the expected value first, cmpstore (gfx11 and later) last.
        if "cmpst_" in instruction.mnemonic:
            sources.reverse()
        locate = _ds_address(instruction, address)
    elif kind == "buffer":
        data, vector, resource, scalar = given
        buffer = Buffer(instruction, vector, resource, scalar)
        destination = data if _returns(instruction) else None
        sources, locate = [data], _buffer_address(buffer, size)
    else:
        instruction.allow("offset", *CACHE_HINTS)
        destination = given.pop(0) if _returns(instruction) else None
        pointer, data, *more = given
        sources, locate = [data], _global_address(instruction, pointer, more)
    readers = [stored(instruction, o, Shape(size)) for o in _values(instruction, what, sources, size)]
    deliver = delivery(instruction, destination, Shape(size)) if destination else None
    access = Access(instruction, size)
    dtype = types.dtype(what.code)

    def step(waves: Waves) -> None:
        space, address, mask = locate(waves)
        data = [np.stack([w.ravel() for w in read(waves, mask)], axis=-1).view(dtype)[..., 0] for read in readers]
        position = access.positions(waves, space, address, mask)
        old = apply(space, np.ravel(position), what, data)
        if deliver:
            shape = (waves.count, waves.lanes) if mask is None else (old.size,)
            words: list[Words] = list(old.view(np.uint32).reshape(*shape, -1).transpose(-1, *range(len(shape))))
            deliver(waves, words, mask)

    return step


def _values(instruction: Instruction, what: Operation, sources: list[Operand], size: int) -> list[Operand]:
    """The operand of each source. A global compare-and-swap has the new and the expected value in registers one after the other."""
    if not what.compares or len(sources) == 2:
        if len(sources) != 1 + what.compares:
            raise instruction.unknown("operands")
        return sources
    [both] = sources
    words = size // 4
    return [Operand(both.kind, both.text, register=both.register + k * words, count=words) for k in range(2)]


Locate = Callable[[Waves], tuple[Space, Addresses, Mask | None]]


def _ds_address(instruction: Instruction, address: Operand) -> Locate:
    read, offset = operands.raw(instruction, address), instruction.integer("offset")

    def locate(waves: Waves) -> tuple[Space, Addresses, Mask | None]:
        mask = waves.active()
        return waves.environment.lds, compress(read(waves), (waves.count, waves.lanes), mask).astype(np.int64) + offset, mask

    return locate


def _global_address(instruction: Instruction, pointer: Operand, more: list[Operand]) -> Locate:
    where = addresses(instruction, pointer, more[0] if more else None)

    def locate(waves: Waves) -> tuple[Space, Addresses, Mask | None]:
        mask = waves.active()
        return waves.environment.memory, compress(where(waves), (waves.count, waves.lanes), mask), mask

    return locate


def _buffer_address(buffer: Buffer, size: int) -> Locate:
    def locate(waves: Waves) -> tuple[Space, Addresses, Mask | None]:
        offset = buffer.offset(waves)
        if buffer.is_private(waves):
            raise buffer.instruction.unknown("an atomic operation on private memory")
        within = np.logical_and.reduce(buffer.inside(waves, offset, size))
        return waves.environment.memory, (buffer.base(waves) + offset)[within], within

    return locate
