"""The registers of many waves at once, and which of the waves the next instruction is for.

A register holds one array over all waves ([waves] or [waves, lanes], uint32). Arrays in registers are values: whole-array writes replace
the array, so a v_mov costs nothing, a broadcast constant stays a broadcast, and a register can be recognised by identity. The one
exception, writing few waves into a big array, first makes a copy that nobody else can hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iq.emulator.alu.types import Mode
from iq.emulator.decoder import EXEC, NULL, SCALAR_REGISTERS, VECTOR_REGISTERS
from iq.emulator.spaces import GlobalSpace, PartitionedSpace
from iq.emulator.statistics import Statistics
from iq.emulator.words import POISON, Indices, Mask, Words


@dataclass(frozen=True)
class Environment:
    """What waves work on besides their registers. modes: one object for each floating-point mode, which instructions are prepared for."""

    memory: GlobalSpace
    lds: PartitionedSpace
    scratch: PartitionedSpace
    statistics: Statistics
    modes: dict[int, Mode]

    def mode(self, bits: int) -> Mode:
        """The mode of a MODE[7:0]."""
        if bits not in self.modes:
            self.modes[bits] = Mode.of_float_mode(bits)
        return self.modes[bits]


class Waves:
    """Waves that are scheduled together.

    lanes: 32 or 64. slots: the workgroup of each wave, by its part of LDS. total: how many waves. pc: the number of each wave's next
    instruction. chosen: the waves that execute now, None for all; count: how many they are. Reads give [count] or [count, lanes], in the
    order of `chosen`.
    """

    def __init__(self, lanes: int, slots: Indices, scratch_slots: Indices, environment: Environment) -> None:
        """scratch_slots: the number of each wave, by its lanes' parts of private memory."""
        total = len(slots)
        self.environment = environment
        self.lanes = lanes
        self.total = total
        self.slots = slots
        self._scratch_slots = scratch_slots[:, None] * lanes + np.arange(lanes)
        self.pc: Indices = np.zeros(total, np.intp)
        self.chosen: Indices | None = None
        self.count = total
        self.lane: Words = np.arange(lanes, dtype=np.uint32)[None, :]
        self._s: list[Words] = [np.broadcast_to(POISON, (total,))] * SCALAR_REGISTERS
        self._s[NULL] = self._s[NULL + 1] = np.zeros(total, np.uint32)
        self._v: list[Words] = [np.broadcast_to(POISON, (total, lanes))] * VECTOR_REGISTERS
        # Vector registers whose array is this register's alone, so that rows of it may be overwritten.
        self._own = bytearray(VECTOR_REGISTERS)
        self._scc: Mask = np.zeros(total, bool)
        # Lane masks and pairs as they were last written or read: valid while the registers hold the very arrays they came from.
        self._masks: dict[int, tuple[Words, Words, Indices | None, Mask]] = {}
        self._active: tuple[Words | None, Words | None, Indices | None, Mask | None] = (None, None, None, None)
        self._derived: dict[tuple[str, int], tuple[list[Words], NDArray[Any]]] = {}
        # The low byte of MODE for each wave, and as the chosen waves have it: they are chosen so that they agree.
        self._modes: NDArray[np.uint8] = np.zeros(total, np.uint8)
        self.modes_differ = False
        self.mode = environment.mode(0)
        self.dx10_clamp = True
        # How far each wave has come at barriers: how often it has arrived, how often it has waited for the others, whether it does now.
        self.arrivals: Indices = np.zeros(total, np.intp)
        self.waits: Indices = np.zeros(total, np.intp)
        self.waiting: Mask = np.zeros(total, bool)
        self.ended: Mask = np.zeros(total, bool)

    def choose(self, waves: Indices | None) -> None:
        """Let these waves execute, all for None."""
        self.chosen = waves
        self.count = self.total if waves is None else len(waves)
        if self.modes_differ:
            self.mode = self.environment.mode(self.mode_bits)

    @property
    def rows(self) -> Indices | slice:
        """An index of the chosen waves into arrays over all."""
        return slice(None) if self.chosen is None else self.chosen

    @property
    def scratch_slots(self) -> Indices:
        """The part of private memory of each chosen lane, [count, lanes]."""
        return self._scratch_slots[self.rows]

    def finish(self) -> None:
        """The chosen waves have ended."""
        self.ended[self.rows] = True

    def signal(self) -> None:
        """The chosen waves arrive at a barrier."""
        self.arrivals[self.rows] += 1

    def wait(self, then: int) -> None:
        """The chosen waves wait until all of their workgroups have arrived as often as they wait, then go on at an instruction."""
        self.waits[self.rows] += 1
        self.waiting[self.rows] = True
        self.pc[self.rows] = then

    # Scalar registers.

    def scalar(self, register: int) -> Words:
        """A scalar register, [count]."""
        value = self._s[register]
        return value if self.chosen is None else value[self.chosen]

    def scalar64(self, register: int) -> NDArray[np.uint64]:
        """A pair of scalar registers, [count]."""
        pair = np.empty((self.count, 2), np.uint32)
        pair[:, 0] = self.scalar(register)
        pair[:, 1] = self.scalar(register + 1)
        return pair.view(np.uint64)[:, 0]

    def write_scalar(self, register: int, value: Words | np.uint32 | int) -> None:
        """Write a scalar register; `value` broadcasts to [count]."""
        if register == NULL:
            return
        if self.chosen is None:
            if not isinstance(value, np.ndarray) or value.shape != (self.total,):
                value = np.full(self.total, value, np.uint32)
            self._s[register] = value
        else:
            changed = self._s[register].copy()
            changed[self.chosen] = value
            self._s[register] = changed

    def write_scalar64(self, register: int, value: NDArray[Any]) -> None:
        """Write a pair of scalar registers from 64-bit values."""
        if register == NULL:
            return
        wide = np.asarray(value).view(np.uint64)
        self.write_scalar(register, wide.astype(np.uint32))
        self.write_scalar(register + 1, (wide >> np.uint64(32)).astype(np.uint32))

    @property
    def scc(self) -> Mask:
        return self._scc if self.chosen is None else self._scc[self.chosen]

    @scc.setter
    def scc(self, value: Mask) -> None:
        if self.chosen is None:
            self._scc = value if value.shape == (self.total,) else np.full(self.total, value, bool)
        else:
            changed = self._scc.copy()
            changed[self.chosen] = value
            self._scc = changed

    # Lane masks.

    def mask(self, register: int) -> Mask:
        """A lane mask held in scalar registers, [count, lanes]."""
        low, high = self._s[register], self._s[register + 1]
        known = self._masks.get(register)
        if known and known[0] is low and known[1] is high and known[2] is self.chosen:
            return known[3]
        words = np.empty((self.count, self.lanes // 32), np.uint32)
        words[:, 0] = self.scalar(register)
        if self.lanes == 64:
            words[:, 1] = self.scalar(register + 1)
        mask = np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little").view(bool)
        self._masks[register] = (low, high, self.chosen, mask)
        return mask

    def write_mask(self, register: int, mask: Mask) -> None:
        """Write a lane mask, [count, lanes], to scalar registers."""
        if register == NULL:
            return
        if mask.shape != (self.count, self.lanes):
            mask = np.ascontiguousarray(np.broadcast_to(mask, (self.count, self.lanes)))
        words = np.packbits(mask, axis=-1, bitorder="little").view(np.uint32)
        self.write_scalar(register, words[:, 0])
        if self.lanes == 64:
            self.write_scalar(register + 1, words[:, 1])
        self._masks[register] = (self._s[register], self._s[register + 1], self.chosen, mask)

    def active(self) -> Mask | None:
        """EXEC of the chosen waves, [count, lanes]; None when every lane is on."""
        low, high, chosen, mask = self._active
        if low is self._s[EXEC] and high is self._s[EXEC + 1] and chosen is self.chosen:
            return mask
        found = self.mask(EXEC)
        mask = None if found.all() else found
        self._active = (self._s[EXEC], self._s[EXEC + 1], self.chosen, mask)
        return mask

    def active_lanes(self) -> Mask:
        """EXEC of the chosen waves, [count, lanes]."""
        mask = self.active()
        return np.broadcast_to(np.True_, (self.count, self.lanes)) if mask is None else mask

    def any_in(self, register: int) -> Mask:
        """Whether a lane mask has any bit set, [count]."""
        words = self.scalar(register)
        if self.lanes == 64:
            words = words | self.scalar(register + 1)
        found: Mask = words != 0
        return found

    def any_active(self) -> Mask:
        """Whether any lane is active, [count]."""
        return self.any_in(EXEC)

    # Vector registers.

    def vector(self, register: int) -> Words:
        """A vector register, [count, lanes]. Not to be written to."""
        value = self._v[register]
        if self.chosen is None:
            self._own[register] = 0
            return value
        return value[self.chosen]

    def derived(self, key: str, register: int, count: int, compute: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """What `compute` makes of vector registers, under a name for how; kept while they hold the same arrays. Not to be written to."""
        if self.chosen is not None:
            return compute()
        known = self._derived.get((key, register))
        # Read, so that they count as shared and a later write to some rows replaces the array.
        arrays = [self.vector(register + k) for k in range(count)]
        if known and all(now is then for now, then in zip(arrays, known[0], strict=True)):
            return known[1]
        value = compute()
        self._derived[key, register] = arrays, value
        return value

    def write_vector(self, register: int, value: Words, mask: Mask | None) -> None:
        """Write a vector register where `mask` (None: everywhere); `value` broadcasts to [count, lanes]."""
        if self.chosen is None:
            if mask is not None:
                value = np.where(mask, value, self._v[register])
            elif value.shape != (self.total, self.lanes):
                value = np.broadcast_to(value, (self.total, self.lanes))
            self._v[register] = value
            self._own[register] = 0
            return
        if not self._own[register]:
            self._v[register] = self._v[register].copy()
            self._own[register] = 1
        rows = self._v[register]
        rows[self.chosen] = value if mask is None else np.where(mask, value, rows[self.chosen])

    # The floating-point mode.

    @property
    def mode_bits(self) -> int:
        """MODE[7:0] of the chosen waves."""
        return int(self._modes[0 if self.chosen is None else self.chosen[0]])

    @mode_bits.setter
    def mode_bits(self, bits: int) -> None:
        self._modes[self.rows] = bits
        self.modes_differ = self.chosen is not None and bool((self._modes != bits).any())
        self.mode = self.environment.mode(bits)

    def of_one_mode(self, waves: Indices) -> Indices:
        """Those of the waves whose mode is that of the first. The machine chooses them, then takes over their mode."""
        agreeing: Indices = waves[self._modes[waves] == self._modes[waves[0]]]
        return agreeing
