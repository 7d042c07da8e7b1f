"""The machine: all waves of a dispatch, in batches of whole workgroups, until every one has ended.

Waves at the same instruction execute it together, as numpy operations over [waves, lanes]. Each wave has a program counter of its own; of
those that have diverged, the ones at the lowest address go first, so that they reconverge after a loop or a branch.

Real waves of a workgroup run in no particular order between barriers. Here, the waves of each workgroup are split at random into wave
groups; one runs for a time slice of random length, then another does. A kernel that lacks a barrier fails under some seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from iq.emulator.alu import MatrixOperandError, Mode, UnsupportedMode
from iq.emulator.compiler import compile_step
from iq.emulator.dispatch import Dispatch
from iq.emulator.faults import BarrierDeadlock, EmulationError, InstructionLimit
from iq.emulator.kernargs import Dim3
from iq.emulator.program import LoadedCode
from iq.emulator.registers import Environment, Waves
from iq.emulator.spaces import DeviceMemory, GlobalSpace, PartitionedSpace
from iq.emulator.statistics import Statistics
from iq.emulator.steps import STOP, Step
from iq.emulator.words import Indices
from iq.inspect.classes import classify
from iq.inspect.disassembly import mnemonics

__all__ = ["Options", "launch"]

# Lanes of a batch: enough for numpy to be busy, few enough for its registers to stay in the processor's cache.
_BATCH_LANES = 1 << 16
# A time slice: instructions that a wave group executes before another one may, at random between these.
_SHORTEST_SLICE, _LONGEST_SLICE = 64, 4096
_NEVER = 1 << 62


@dataclass(frozen=True)
class Options:
    """How to run a launch.

    seed: of the order in which waves run. instruction_limit: wave instructions that the launch may execute.
    wave_groups: how many the waves of a workgroup are split into; more find a missing barrier sooner, and take longer where workgroups are
    few. preload: whether the firmware preloads kernel arguments into SGPRs where a kernel asks for that.
    """

    seed: int = 0
    instruction_limit: int = 1_000_000_000
    wave_groups: int = 2
    preload: bool = True


def launch(
    code: LoadedCode, kernel: str, grid: Dim3, workgroup: Dim3, kernarg: bytes, memory: DeviceMemory, options: Options | None = None
) -> Statistics:
    """Run a kernel to its end: `grid` workgroups of `workgroup` work items each, with the bytes of its kernel arguments.

    Raises UnknownInstruction, MemoryFault, LdsFault, ScratchFault, InstructionLimit, BarrierDeadlock, LaunchError, each with the kernel
    and the instruction.
    """
    options = options or Options()
    dispatch = Dispatch(code, kernel, grid, workgroup, kernarg, options.preload)
    return Machine(dispatch, memory, options).run()


class Machine:
    """One launch."""

    def __init__(self, dispatch: Dispatch, memory: DeviceMemory, options: Options) -> None:
        self._dispatch = dispatch
        self._code = dispatch.code
        self._steps: list[Step | None] = self._code.compiled[dispatch.lanes]
        self._executed = [0] * len(self._steps)
        self._left = options.instruction_limit
        self._limit = options.instruction_limit
        self._statistics = Statistics()
        self._memory = GlobalSpace(memory, dispatch.readable())
        self._random = np.random.default_rng(options.seed)
        self._group_count = options.wave_groups
        self._modes: dict[int, Mode] = {}

    def run(self) -> Statistics:
        """All workgroups, batch by batch, in random order."""
        dispatch = self._dispatch
        size = max(_BATCH_LANES // (dispatch.waves_per_workgroup * dispatch.lanes), 1)
        order = self._random.permutation(dispatch.workgroups)
        with np.errstate(all="ignore"):
            for first in range(0, len(order), size):
                self._run_batch(np.sort(order[first : first + size]))
        self._statistics.waves = dispatch.workgroups * dispatch.waves_per_workgroup
        self._count_classes()
        return self._statistics

    def _count_classes(self) -> None:
        """A dual-issue instruction counts as two, as in the static mix."""
        for index, count in enumerate(self._executed):
            for mnemonic in mnemonics(self._code.program.text(index)) if count else ():
                self._statistics.instructions[classify(mnemonic, "rocm")] += count

    def _run_batch(self, workgroups: Indices) -> None:
        groups = self._wave_groups(workgroups)
        while True:
            able = [group for group in groups if not (group.ended | group.waiting).all()]
            if able:
                self._run_slice(able[self._random.integers(len(able))])
            elif all(group.ended.all() for group in groups):
                return
            else:
                self._release(groups, len(workgroups))

    def _wave_groups(self, workgroups: Indices) -> list[Waves]:
        """The waves of some workgroups, split at random."""
        per_workgroup = self._dispatch.waves_per_workgroup
        total = len(workgroups) * per_workgroup
        environment = Environment(
            self._memory,
            PartitionedSpace.lds(len(workgroups), self._dispatch.lds),
            PartitionedSpace.scratch(total * self._dispatch.lanes, self._dispatch.scratch),
            self._statistics,
            self._modes,
        )
        slot, number = np.divmod(np.arange(total), per_workgroup)
        # Ranks within the workgroup, shuffled: each wave group gets its share of every workgroup.
        rank = self._random.random((len(workgroups), per_workgroup)).argsort(axis=1).ravel()
        group = (rank + self._random.integers(self._group_count, size=len(workgroups))[slot]) % self._group_count
        found = []
        for members in (np.flatnonzero(group == k) for k in range(self._group_count)):
            if members.size:
                waves = Waves(self._dispatch.lanes, slot[members], members, environment)
                self._dispatch.initialise(waves, workgroups[slot[members]], number[members])
                found.append(waves)
        return found

    def _release(self, groups: list[Waves], workgroups: int) -> None:
        """Let waves go on whose workgroup has arrived at the barrier. Waves that have ended are not waited for."""
        fewest = np.full(workgroups, _NEVER)
        for group in groups:
            running = ~group.ended
            np.minimum.at(fewest, group.slots[running], group.arrivals[running])
        released = False
        for group in groups:
            ready = group.waiting & (fewest[group.slots] >= group.waits)
            group.waiting &= ~ready
            released |= bool(ready.any())
        if not released:
            stuck = next(group for group in groups if group.waiting.any())
            at = int(stuck.pc[stuck.waiting.argmax()]) - 1
            raise BarrierDeadlock("waves wait at a barrier that others of their workgroup never reach", self._code.program.place(at))

    def _run_slice(self, group: Waves) -> None:
        """Run a wave group for a time slice, or until all its waves wait or have ended."""
        left = int(self._random.integers(_SHORTEST_SLICE, _LONGEST_SLICE))
        while left > 0:
            chosen, index, stop = _lowest(group)
            if chosen is not None and not chosen.size:
                return
            group.choose(chosen)
            left -= self._run_together(group, index, stop, left)

    def _run_together(self, group: Waves, index: int, stop: int, time_slice: int) -> int:
        """Run the chosen waves until they diverge, meet the next ones, wait, end, or jump after `time_slice` instructions.

        Returns how many instructions that were.
        """
        steps, executed, count = self._steps, self._executed, group.count
        done = 0
        try:
            while index < stop:
                step = steps[index]
                if step is None:
                    step = steps[index] = compile_step(self._code, index, self._dispatch.target)
                executed[index] += count
                done += 1
                result = step(group)
                if result is None:
                    index += 1
                elif isinstance(result, np.ndarray):
                    group.pc[group.rows] = result
                    return self._account(done, count)
                elif result == STOP:
                    self._arrived(group)
                    return self._account(done, count)
                else:
                    index = result
                    if done >= time_slice:
                        break
            group.pc[group.rows] = index
            return self._account(done, count)
        except EmulationError as error:
            raise error.at(self._code.program.place(index)) from error
        except (UnsupportedMode, MatrixOperandError) as error:
            raise EmulationError(str(error), self._code.program.place(index)) from error
        except IndexError as error:
            if index < len(steps):
                raise
            raise EmulationError("execution past the end of the code", self._code.program.place(index)) from error

    def _arrived(self, group: Waves) -> None:
        if group.waiting[group.rows].any():
            self._statistics.barriers += group.count

    def _account(self, instructions: int, waves: int) -> int:
        self._left -= instructions * waves
        if self._left < 0:
            name = self._dispatch.kernel.name
            raise InstructionLimit(f"{name} has executed more than {self._limit} wave instructions: most likely a loop that does not end")
        return instructions


def _lowest(group: Waves) -> tuple[Indices | None, int, int]:
    """The waves at the lowest instruction (None: all of the group), that instruction, and the one where the next waves are."""
    able: NDArray[np.bool_] = ~(group.ended | group.waiting)
    counters = np.where(able, group.pc, _NEVER)
    lowest = int(counters.min())
    if lowest == _NEVER:
        return np.empty(0, np.intp), 0, 0
    at = counters == lowest
    if at.all() and not group.modes_differ:
        return None, lowest, _NEVER
    chosen = np.flatnonzero(at)
    if group.modes_differ:
        agreeing = group.of_one_mode(chosen)
        if agreeing.size < chosen.size:
            return agreeing, lowest, lowest + 1
    return chosen, lowest, int(counters[~at].min()) if not at.all() else _NEVER
