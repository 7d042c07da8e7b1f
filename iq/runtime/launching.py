"""Launching: all dispatches of a call on a stream, by one call into C.

A plan holds what is the same each time a kernel is called for given sizes: functions, grids, constants, and which of the call's pointers
goes where. It is bytes that nobody changes, so any number of threads may run it. `run` is `_launch.run` (_launch.c) where that is built,
else `run_ctypes`, which takes some 10 us longer a call; IQ_LAUNCH=ctypes or IQ_LAUNCH=extension insists on one of them.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable, Sequence
from ctypes import CFUNCTYPE, addressof, byref, c_int, c_uint, c_uint64, c_void_p
from dataclasses import astuple, dataclass
from functools import partial
from importlib import import_module
from typing import NoReturn, Protocol

from iq.errors import DeviceError

# What `run` returns where a call that may not become part of a graph meets a stream that is being captured. No API has negative statuses.
CAPTURING = -1

# The status of get_current in a thread that has no device; CUDA has a null context for that, and in AMD's HIP every thread has one.
INVALID_CONTEXT = 201

MAX_ARGUMENTS, MAX_VALUES, MAX_POINTERS = 16, 64, 16

# The layout that _launch.c reads: a header, the steps, the values.
_HEADER = struct.Struct("<5Q4I")  # the entry points; numbers of steps, pointers and values; 0
_STEP = struct.Struct(f"<Q8I{MAX_ARGUMENTS}B")  # function; grid, block, dynamic shared memory, number of arguments; which values they are
_VALUE = struct.Struct("<QQ")  # a base, and which of the call's pointers is added to it, or none
_NO_POINTER = 0xFFFFFFFF


@dataclass(frozen=True)
class EntryPoints:
    """What a plan calls: addresses of functions that CUDA and HIP have under different names and with one signature.

    launch: cuLaunchKernel. get_current and set_current: cuCtxGetCurrent, or hipGetDevice, and the like. current: what set_current takes, a
    context's handle or HIP's number of the device. is_capturing: cuStreamIsCapturing.
    """

    launch: int
    get_current: int
    set_current: int
    current: int
    is_capturing: int


@dataclass(frozen=True)
class Step:
    """A dispatch.

    shared: bytes of dynamic shared memory. pointers: for each binding of the kernel the number of the call's pointer, and an offset in
    bytes. constants: 32-bit values, which follow the pointers.
    """

    function: int
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    pointers: tuple[tuple[int, int], ...]
    constants: tuple[int, ...]


class Run(Protocol):
    """`run(plan, stream, exclusive, *pointers)`: see `run_ctypes`."""

    def __call__(self, plan: bytes, stream: int, exclusive: int, /, *pointers: int) -> int: ...


def pack(entry: EntryPoints, steps: Sequence[Step], pointers: int) -> bytes:
    """The plan of these steps. Those with an empty grid are left out, which cuLaunchKernel would refuse.

    pointers: how many the call has. Raises ValueError beyond the limits: 16 pointers and 64 different arguments a call, 16 a dispatch.
    """
    if pointers > MAX_POINTERS:
        raise ValueError(f"a call with {pointers} pointers; a plan has room for {MAX_POINTERS}")
    slots: dict[tuple[int, int], int] = {}  # the number of each value
    packed = []
    for step in steps:
        if 0 in step.grid:
            continue
        if unknown := [number for number, _ in step.pointers if not 0 <= number < pointers]:
            raise ValueError(f"a dispatch with the pointer {unknown[0]} of a call that has {pointers}")
        arguments = [(offset, number) for number, offset in step.pointers] + [(c & 0xFFFFFFFF, _NO_POINTER) for c in step.constants]
        if len(arguments) > MAX_ARGUMENTS:
            raise ValueError(f"a dispatch with {len(arguments)} arguments; a plan has room for {MAX_ARGUMENTS}")
        numbers = [slots.setdefault(argument, len(slots)) for argument in arguments]
        if len(slots) > MAX_VALUES:
            raise ValueError(f"a call with more than {MAX_VALUES} different arguments")
        padding = bytes(MAX_ARGUMENTS - len(numbers))
        try:
            packed.append(_STEP.pack(step.function, *step.grid, *step.block, step.shared, len(numbers), *numbers, *padding))
        except struct.error as error:
            raise ValueError(f"a dispatch that does not fit a plan ({error}): {step}") from None
    try:
        header = _HEADER.pack(*astuple(entry), len(packed), pointers, len(slots), 0)
        return b"".join([header, *packed, *(_VALUE.pack(*value) for value in slots)])
    except struct.error as error:
        raise ValueError(f"numbers that do not fit a plan ({error}): {entry}, {list(slots)}") from None


# ---- Without the extension


class _Ready(threading.local):
    """The plans that a thread has run, as ctypes wants them."""

    def __init__(self) -> None:
        self.plans: dict[bytes, _Plan] = {}


_READY = _Ready()
_PLANS_KEPT = 4096


class _Plan:
    """A plan with its arguments in place, but for what differs from call to call. It is one thread's own."""

    def __init__(self, plan: bytes) -> None:
        """Raises ValueError for bytes that are no plan."""
        if len(plan) < _HEADER.size:
            raise ValueError(_NO_PLAN)
        launch, get_current, set_current, self.current, is_capturing, steps, self.pointers, count, zero = _HEADER.unpack_from(plan)
        start = _HEADER.size + steps * _STEP.size
        if zero or self.pointers > MAX_POINTERS or count > MAX_VALUES or len(plan) != start + count * _VALUE.size:
            raise ValueError(_NO_PLAN)
        values = list(_VALUE.iter_unpack(plan[start:]))
        if any(number >= self.pointers and number != _NO_POINTER for _, number in values):
            raise ValueError(_NO_PLAN)
        # Which values are which pointer of the call, plus how much; the others stay as they are.
        self.varying = [(at, number, base) for at, (base, number) in enumerate(values) if number != _NO_POINTER]
        self.filled = (c_uint64 * count)(*(0 if number != _NO_POINTER else base for base, number in values))
        self.stream, self.before, self.capturing = c_void_p(), c_uint64(), c_int()
        self.check = struct.Struct(f"{2 + self.pointers}Q").pack  # which refuses what is no address
        self.set_current = _FUNCTION(set_current)
        self.get_current = partial(_FUNCTION(get_current), byref(self.before))
        self.is_capturing = partial(_FUNCTION(is_capturing), self.stream, byref(self.capturing))
        self.launches: list[Callable[[], int]] = []
        for function, *numbers in _STEP.iter_unpack(plan[_HEADER.size : start]):
            used = numbers[8 : 8 + numbers[7]]
            if numbers[7] > MAX_ARGUMENTS or any(slot >= count for slot in used):
                raise ValueError(_NO_PLAN)
            arguments = (c_void_p * len(used))(*(addressof(self.filled) + 8 * slot for slot in used))
            dims = map(c_uint, numbers[:7])
            self.launches.append(partial(_FUNCTION(launch), c_void_p(function), *dims, self.stream, arguments, c_void_p()))


# Called with ctypes' own values alone, which need no conversion.
_FUNCTION = CFUNCTYPE(c_int)
_NO_PLAN = "these bytes are not a plan"


def run_ctypes(plan: bytes, stream: int, exclusive: int, /, *pointers: int) -> int:
    """Launch a plan on a stream, with the call's pointers; the status that the API gives, 0 for success.

    The plan's device is made the thread's current one, and the thread gets back what it had; one that had none keeps it. exclusive: 1
    where the call may not become part of a graph; CAPTURING is returned, and nothing launched, where the stream is being captured.
    Raises TypeError for other things than numbers, or another number of pointers than the plan has; OverflowError for numbers that are
    no addresses; ValueError for bytes that are no plan.
    """
    ready = _READY.plans.get(plan) or _make_ready(plan)
    try:
        ready.check(stream, exclusive, *pointers)
    except struct.error:
        _refuse(ready, stream, exclusive, *pointers)
    ready.stream.value = stream
    filled = ready.filled
    for at, number, base in ready.varying:
        filled[at] = base + pointers[number]
    if not ready.launches:
        return 0
    status: int = ready.get_current()
    if not status and ready.before.value == ready.current:
        return _launch_all(ready, exclusive)
    none = status == INVALID_CONTEXT
    if status and not none:
        return status
    before = c_uint64(ready.before.value)
    if status := int(ready.set_current(c_uint64(ready.current))):
        return status
    status = _launch_all(ready, exclusive)
    restored: int = 0 if none else ready.set_current(before)
    return status or restored


def _refuse(ready: _Plan, *numbers: int) -> NoReturn:
    if len(numbers) != ready.pointers + 2:
        raise TypeError(f"the plan takes {ready.pointers} pointers, not {len(numbers) - 2}")
    for number in numbers:
        if not isinstance(number, int):
            raise TypeError(f"an address is an int, not {type(number).__name__}")
    raise OverflowError(f"an address takes 64 bits without sign; got {numbers}")


def _make_ready(plan: bytes) -> _Plan:
    if not isinstance(plan, bytes):
        raise TypeError(f"a plan is bytes, not {type(plan).__name__}")
    if len(_READY.plans) >= _PLANS_KEPT:
        _READY.plans.clear()
    ready = _READY.plans[plan] = _Plan(plan)
    return ready


def _launch_all(ready: _Plan, exclusive: int) -> int:
    if exclusive:
        if failed := ready.is_capturing():
            return int(failed)
        if ready.capturing.value:
            return CAPTURING
    for launch in ready.launches:
        if status := launch():
            return status
    return 0


def _choose() -> tuple[str, Run]:
    """IMPLEMENTATION and `run`, as IQ_LAUNCH and what is installed have it."""
    wanted = os.environ.get("IQ_LAUNCH", "")
    if wanted not in ("", "ctypes", "extension"):
        raise DeviceError(f"IQ_LAUNCH={wanted} is neither ctypes nor extension; leave it unset for the extension where it is built")
    if wanted == "ctypes":
        return "ctypes", run_ctypes
    try:
        return "extension", import_module("iq.runtime._launch").run
    except ImportError as error:
        if wanted:
            raise DeviceError(f"IQ_LAUNCH={wanted}, but iq.runtime._launch is not built: {error}") from error
    return "ctypes", run_ctypes


run: Run
IMPLEMENTATION: str
IMPLEMENTATION, run = _choose()
