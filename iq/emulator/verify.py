"""Runs every kernel of a bundle on an emulated GPU and holds the results against numpy.

The bundle is opened as a deployment host would: IREE's own hip driver selects and loads the artifact, and launches what lies in it.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from iq.bundle import Bundle, find
from iq.device import Device
from iq.emulator.cases import Case, Check, cases
from iq.emulator.device import Launch
from iq.emulator.machine import Statistics
from iq.emulator.peaks import Roofline, Work, peaks_of, roofline
from iq.emulator.references import Array
from iq.errors import IqError, TargetError
from iq.inspect import inspect_vmfb
from iq.kernels import KernelSpec, plan
from iq.runtime import Device as RuntimeDevice
from iq.runtime.dtypes import dtype_of
from iq.targets import Target, parse_targets

# What a reader of a result has to know.
HOW = "Executed under ISA emulation, not validated on hardware."
APPROXIMATIONS = (
    "Reciprocals, roots, exponentials, logarithms, sines: rounded correctly; hardware is off by an ulp or so.",
    "MFMA and WMMA: products and C are added up in f64 and rounded once; hardware's order and internal precision are not documented.",
    "No timing: s_waitcnt, s_delay_alu and the waits between dependent instructions do nothing, so one that is missing does not show.",
    "Memory is coherent and without caches; waves run one instruction at a time, in an order drawn at random.",
)

# What output buffers hold before a kernel runs: a number in every type, and never the right one.
_UNWRITTEN = 0x7B
# Bytes before and after an output that no kernel may write.
_GUARD = 256

# Classes of instructions (iq.inspect.classes) that a SIMD spends its issue slots on; matrix instructions have a rate of their own.
_VECTOR_CLASSES = ("valu", "dot")


@dataclass
class Executed(Statistics):
    """What all launches of a case executed. launches: of each dispatch, by name."""

    launches: Counter[str] = field(default_factory=Counter)

    def add(self, launch: Launch) -> None:
        self.launches[launch.kernel] += 1
        self.instructions.update(launch.statistics.instructions)
        self.bytes_read.update(launch.statistics.bytes_read)
        self.bytes_written.update(launch.statistics.bytes_written)
        self.lds_read += launch.statistics.lds_read
        self.lds_written += launch.statistics.lds_written
        self.waves += launch.statistics.waves
        self.barriers += launch.statistics.barriers


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
    """A kernel: its cases, and the roofline position of the largest, a model; None where the GPU is not in the table of peaks."""

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
        return max(self.cases, key=lambda c: c.executed.wave_instructions)

    @property
    def instructions(self) -> int:
        """Wave instructions executed in all cases."""
        return sum(case.executed.wave_instructions for case in self.cases)


@dataclass(frozen=True)
class TargetReport:
    """A bundle's kernels on one emulated GPU.

    dispatches: what the executables record of each, by format and name (registers, LDS: see iq.inspect.facts).
    """

    bundle: str
    target: str
    gpu: str
    kernels: tuple[KernelReport, ...]
    dispatches: Mapping[str, Mapping[str, Mapping[str, int | tuple[int, ...]]]]
    seconds: float
    how: str = HOW
    approximations: tuple[str, ...] = APPROXIMATIONS

    @property
    def passed(self) -> bool:
        return all(kernel.passed for kernel in self.kernels)


class Opener(Protocol):
    """Opens a GPU on the artifacts at a path: the device, and the list that it adds its launches to."""

    def __call__(self, target: Target, bundle: Path) -> tuple[RuntimeDevice, Sequence[Launch]]: ...


def open_emulated(target: Target, bundle: Path) -> tuple[RuntimeDevice, Sequence[Launch]]:
    device = Device(f"emulated:{target.id}", bundle=bundle)
    assert device.emulated
    return device, device.emulated.launches


# Told of each step: kernels done, kernels in all, the names of those being run.
Progress = Callable[[int, int, Sequence[str]], None]


def verify(path: str | Path, targets: str | None = None, progress: Progress | None = None) -> list[TargetReport]:
    """Run every kernel of the ROCm bundles at `path`; of those for `targets`, where it names some (comma-separated).

    Raises TargetError when a target is not ROCm or has no bundle there, and what Bundle.open and opening a device raise.
    """
    opened = [Bundle.open(p) for p in find(path)]
    bundles = {b.manifest.device_id.processor: b for b in opened if b.target.family == "rocm"}
    wanted = [t.id for t in parse_targets(targets)] if targets else list(bundles)
    if missing := [t for t in wanted if t not in bundles]:
        raise TargetError(f"{path} holds no bundle to emulate for {', '.join(missing)}; it has {', '.join(bundles) or 'none'}")
    if not wanted:
        raise TargetError(f"{path} holds no ROCm bundle; only those can be emulated")
    total = sum(len(bundles[t].manifest.kernels) for t in wanted)
    reports: list[TargetReport] = []
    for target in wanted:
        done = sum(len(r.kernels) for r in reports)
        step = (lambda n, name, done=done: progress(done + n, total, (name,) if name else ())) if progress else None
        reports.append(verify_bundle(bundles[target], step=step))
    return reports


def verify_bundle(
    bundle: Bundle,
    specs: Iterable[KernelSpec] | None = None,
    open_device: Opener = open_emulated,
    step: Callable[[int, str], None] | None = None,
) -> TargetReport:
    """Run kernels of one bundle, all of them by default. A kernel that fails is reported; only what keeps all from running is raised."""
    started = time.perf_counter()
    manifest = bundle.manifest
    chosen = list(specs) if specs is not None else [KernelSpec.parse(k.key) for k in manifest.kernels]
    runner = Runner(bundle.target, bundle.path, open_device)
    reports = []
    for n, spec in enumerate(chosen):
        if step:
            step(n, f"{bundle.target.id}/{spec.key}")
        reports.append(runner.kernel(spec))
    if step:
        step(len(chosen), "")
    dispatches = {
        file.name.removesuffix(".vmfb"): {d.name: d.facts for d in inspect_vmfb(bundle.data(file.name), file.name).dispatches}
        for file in manifest.files
    }
    gpu = peaks_of(manifest.target)
    seconds = time.perf_counter() - started
    return TargetReport(str(bundle.path), manifest.target, gpu.name if gpu else "", tuple(reports), dispatches, seconds)


class Runner:
    """Runs kernels on a device; on a fresh one after each failure, which leaves an emulated GPU unusable as it would a real one."""

    def __init__(self, target: Target, bundle: Path, open_device: Opener) -> None:
        self._target, self._bundle, self._open = target, bundle, open_device
        self._opened: tuple[RuntimeDevice, Sequence[Launch]] | None = None

    def kernel(self, spec: KernelSpec, first_failure: bool = False) -> KernelReport:
        """Run the cases of a kernel; with `first_failure`, those after a failed one are left out. Raises IqError when no device opens."""
        started = time.perf_counter()
        reports: list[CaseReport] = []
        for case in cases(spec, self._target):
            reports.append(self._case(spec, case))
            if first_failure and not reports[-1].passed:
                break
        return self._placed(spec, KernelReport(spec.key, tuple(reports), time.perf_counter() - started))

    def _placed(self, spec: KernelSpec, report: KernelReport) -> KernelReport:
        """The report with the roofline position of its largest case."""
        gpu = peaks_of(self._target.id)
        if not gpu or not report.instructions:
            return report
        largest = report.largest
        executed = largest.executed
        work = Work(
            operations=largest.operations,
            unit=plan(spec, self._target)[-1].kernel.unit,
            bytes=executed.bytes_read.total() + executed.bytes_written.total(),
            lds_bytes=executed.lds_read + executed.lds_written,
            lanes=self._target.wave * sum(executed.instructions[name] for name in _VECTOR_CLASSES),
        )
        return replace(report, roofline=roofline(gpu, work))

    def _case(self, spec: KernelSpec, case: Case) -> CaseReport:
        executed = Executed()
        device, launches = self._opened = self._opened or self._open(self._target, self._bundle)
        before = len(launches)
        try:
            outputs, stray = run(device, spec, case)
        except IqError as error:
            self._opened = None
            return CaseReport(case.name, (), executed, case.operations, f"{type(error).__name__}: {error}")
        for launch in launches[before:]:
            executed.add(launch)
        checks = (*case.check(outputs), Check("bytes written outside the outputs", stray, 0))
        return CaseReport(case.name, checks, executed, case.operations)


def run(device: RuntimeDevice, spec: KernelSpec, case: Case) -> tuple[list[Array], int]:
    """What a kernel's outputs come to hold, and how many bytes around them it wrote.

    Raises IqError when the kernel cannot be had, or fails.
    """
    inputs = [device.put(array) for array in case.inputs]
    outputs, wholes = [], []
    for shape, dtype in case.outputs:
        nbytes = math.prod(shape) * dtype_of(dtype).itemsize
        # Devices give more memory than is asked for, so a store just beyond an output would not show without guards.
        whole = device.put(np.full(nbytes + 2 * _GUARD, _UNWRITTEN, np.uint8))
        wholes.append(whole)
        outputs.append(whole[_GUARD : _GUARD + nbytes].view(dtype).reshape(shape))
    device.library.kernel(spec)(inputs, case.sizes, outputs)
    guards = [np.r_[held[:_GUARD], held[-_GUARD:]] for held in (whole.numpy() for whole in wholes)]
    return [output.numpy() for output in outputs], sum(int((guard != _UNWRITTEN).sum()) for guard in guards)
