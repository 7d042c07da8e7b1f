"""The machine: all waves of a dispatch, in batches of whole workgroups, until every one has ended.

Waves at the same instruction execute it together, as numpy operations over [waves, lanes]. Each wave has a program counter of its own; of
those that have parted, the ones at the lowest address go first, so that they meet again after a loop or a branch.

Real waves of a workgroup run in no particular order between barriers. Here, the waves of each workgroup are dealt at random into crews;
a crew runs for a random time, then another one does. A kernel that lacks a barrier computes something else under some seed.
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
from iq.emulator.registers import Indices, Surroundings, Waves
from iq.emulator.spaces import DeviceMemory, GlobalSpace, PartedSpace, Statistics
from iq.emulator.steps import STOP, Step
from iq.inspect.classes import classify
from iq.inspect.disassembly import mnemonics

__all__ = ["Options", "Statistics", "launch"]

# Lanes of a batch: enough for numpy to be busy, few enough for its registers to stay in the processor's cache.
_BATCH_LANES = 1 << 16
# Instructions that a crew executes before another one may, at random between these.
_SHORTEST_TURN, _LONGEST_TURN = 64, 4096
_NEVER = 1 << 62


@dataclass(frozen=True)
class Options:
    """How to run a launch.

    seed: of the order in which waves run. instruction_limit: wave instructions that the launch may execute. crews: into how many parts
    the waves of a workgroup are dealt; more find a missing barrier sooner, and take longer where workgroups are few. preload: whether the
    firmware preloads kernel arguments into SGPRs where a kernel asks for that.
    """

    seed: int = 0
    instruction_limit: int = 1_000_000_000
    crews: int = 2
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
        self._crew_count = options.crews
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
        crews = self._crews(workgroups)
        while True:
            able = [crew for crew in crews if not (crew.ended | crew.waiting).all()]
            if able:
                self._turn(able[self._random.integers(len(able))])
            elif all(crew.ended.all() for crew in crews):
                return
            else:
                self._release(crews, len(workgroups))

    def _crews(self, workgroups: Indices) -> list[Waves]:
        """The waves of some workgroups, dealt at random."""
        per_workgroup = self._dispatch.waves_per_workgroup
        total = len(workgroups) * per_workgroup
        around = Surroundings(
            self._memory,
            PartedSpace.lds(len(workgroups), self._dispatch.lds),
            PartedSpace.scratch(total * self._dispatch.lanes, self._dispatch.scratch),
            self._statistics,
            self._modes,
        )
        slot, number = np.divmod(np.arange(total), per_workgroup)
        # Ranks within the workgroup, shuffled: each crew gets its share of every workgroup.
        rank = self._random.random((len(workgroups), per_workgroup)).argsort(axis=1).ravel()
        crew = (rank + self._random.integers(self._crew_count, size=len(workgroups))[slot]) % self._crew_count
        found = []
        for members in (np.flatnonzero(crew == k) for k in range(self._crew_count)):
            if members.size:
                waves = Waves(self._dispatch.lanes, slot[members], members, around)
                self._dispatch.initialise(waves, workgroups[slot[members]], number[members])
                found.append(waves)
        return found

    def _release(self, crews: list[Waves], workgroups: int) -> None:
        """Let waves go on whose workgroup has arrived at the barrier. Waves that have ended are not waited for."""
        fewest = np.full(workgroups, _NEVER)
        for crew in crews:
            running = ~crew.ended
            np.minimum.at(fewest, crew.slots[running], crew.arrivals[running])
        released = False
        for crew in crews:
            ready = crew.waiting & (fewest[crew.slots] >= crew.waits)
            crew.waiting &= ~ready
            released |= bool(ready.any())
        if not released:
            stuck = next(crew for crew in crews if crew.waiting.any())
            at = int(stuck.pc[stuck.waiting.argmax()]) - 1
            raise BarrierDeadlock("waves wait at a barrier that others of their workgroup never reach", self._code.program.place(at))

    def _turn(self, crew: Waves) -> None:
        """Run a crew until it waits, has ended, or its time is up."""
        left = int(self._random.integers(_SHORTEST_TURN, _LONGEST_TURN))
        while left > 0:
            chosen, index, stop = _lowest(crew)
            if chosen is not None and not chosen.size:
                return
            crew.choose(chosen)
            left -= self._run_together(crew, index, stop, left)

    def _run_together(self, crew: Waves, index: int, stop: int, turn: int) -> int:
        """Run the chosen waves from an instruction on until they part, meet the next ones, wait, end, or jump after `turn` instructions.

        Returns how many instructions that were.
        """
        steps, executed, count = self._steps, self._executed, crew.count
        done = 0
        try:
            while index < stop:
                step = steps[index]
                if step is None:
                    step = steps[index] = compile_step(self._code, index, self._dispatch.target)
                executed[index] += count
                done += 1
                result = step(crew)
                if result is None:
                    index += 1
                elif isinstance(result, np.ndarray):
                    crew.pc[crew.rows] = result
                    return self._account(done, count)
                elif result == STOP:
                    self._arrived(crew)
                    return self._account(done, count)
                else:
                    index = result
                    if done >= turn:
                        break
            crew.pc[crew.rows] = index
            return self._account(done, count)
        except EmulationError as error:
            raise error.at(self._code.program.place(index)) from error
        except (UnsupportedMode, MatrixOperandError) as error:
            raise EmulationError(str(error), self._code.program.place(index)) from error
        except IndexError as error:
            if index < len(steps):
                raise
            raise EmulationError("execution past the end of the code", self._code.program.place(index)) from error

    def _arrived(self, crew: Waves) -> None:
        if crew.waiting[crew.rows].any():
            self._statistics.barriers += crew.count

    def _account(self, instructions: int, waves: int) -> int:
        self._left -= instructions * waves
        if self._left < 0:
            name = self._dispatch.kernel.name
            raise InstructionLimit(f"{name} has executed more than {self._limit} wave instructions: most likely a loop that does not end")
        return instructions


def _lowest(crew: Waves) -> tuple[Indices | None, int, int]:
    """The waves at the lowest instruction (None: all of the crew), that instruction, and the one where the next waves are."""
    able: NDArray[np.bool_] = ~(crew.ended | crew.waiting)
    counters = np.where(able, crew.pc, _NEVER)
    lowest = int(counters.min())
    if lowest == _NEVER:
        return np.empty(0, np.intp), 0, 0
    at = counters == lowest
    if at.all() and not crew.modes_differ:
        return None, lowest, _NEVER
    chosen = np.flatnonzero(at)
    if crew.modes_differ:
        agreeing = crew.of_one_mode(chosen)
        if agreeing.size < chosen.size:
            return agreeing, lowest, lowest + 1
    return chosen, lowest, int(counters[~at].min()) if not at.all() else _NEVER
