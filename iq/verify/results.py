"""What came of running a bundle's kernels: of each case, of each kernel, of the bundle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from iq.emulator.statistics import Statistics
from iq.verify.case import Check
from iq.verify.peaks import Roofline

if TYPE_CHECKING:
    from iq.emulator.device import Launch


@dataclass
class Executed(Statistics):
    """What all launches of a case executed, as an emulated GPU counts it; nothing on other devices.

    launches: of each dispatch, by name. The other fields are those of a launch's Statistics, added up.
    """

    launches: Counter[str] = field(default_factory=Counter)

    def add_launch(self, launch: Launch) -> None:
        self.launches[launch.kernel] += 1
        self.add(launch.statistics)


@dataclass(frozen=True)
class CaseReport:
    """A case: what it measured and what was executed for it. failure: the error that ended it, "" where none did."""

    name: str
    checks: tuple[Check, ...]
    executed: Executed
    operations: int
    failure: str = ""

    @property
    def passed(self) -> bool:
        return not self.failure and all(check.passed for check in self.checks)


@dataclass(frozen=True)
class KernelReport:
    """A kernel: its cases, and the roofline position of the largest, a model.

    roofline: None where nothing was counted or the GPU's peaks are unknown.
    """

    key: str
    cases: tuple[CaseReport, ...]
    seconds: float
    roofline: Roofline | None = None

    @property
    def passed(self) -> bool:
        return all(case.passed for case in self.cases)

    @property
    def worst(self) -> str:
        """The error that ended a case, else the check that came nearest to its tolerance or went farthest beyond."""
        if failures := [case.failure for case in self.cases if case.failure]:
            return failures[0]
        checks = [check for case in self.cases for check in case.checks]
        worst = max(checks, key=lambda c: (not c.passed, c.error / c.tolerance if c.tolerance else c.error))
        return f"{worst.error:.2g} {worst.measure}"

    @property
    def largest(self) -> CaseReport:
        """The case that executed most; where nothing was counted, the one with most operations."""
        return max(self.cases, key=lambda c: (c.executed.wave_instructions, c.operations))

    @property
    def instructions(self) -> int:
        """Wave instructions executed in all cases."""
        return sum(case.executed.wave_instructions for case in self.cases)


@dataclass(frozen=True)
class TargetReport:
    """A bundle's kernels on one device.

    how: how they were run, a sentence; approximations: where that differs from the hardware the kernels are for.
    not_run: why this machine cannot run them, "" where they were run. gpu: whose peaks the rooflines are drawn with, "" for none.
    dispatches: what the executables record of each, by format and name (registers, LDS: see iq.compile.inspect).
    """

    bundle: str
    target: str
    how: str = ""
    approximations: tuple[str, ...] = ()
    not_run: str = ""
    gpu: str = ""
    kernels: tuple[KernelReport, ...] = ()
    dispatches: Mapping[str, Mapping[str, Mapping[str, int | tuple[int, ...]]]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether every kernel that was run passed."""
        return all(kernel.passed for kernel in self.kernels)

    @property
    def counted(self) -> bool:
        """Whether it is known what the kernels executed."""
        return any(kernel.instructions for kernel in self.kernels)
