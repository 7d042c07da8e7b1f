"""Runs every kernel of a bundle on a device and holds the results against numpy.

The bundle is opened as a deployment host would open it: iq's runtime selects and loads the artifact, and launches what lies in it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from iq.bundle import Bundle, find
from iq.errors import IqError, TargetError
from iq.inspect import inspect_vmfb
from iq.kernels import KernelSpec, plan
from iq.runtime import Device as RuntimeDevice
from iq.runtime.dtypes import dtype_of
from iq.targets import Target, parse_targets
from iq.verify.case import UNWRITTEN, Case, Check
from iq.verify.cases import cases
from iq.verify.devices import Opened, Opener
from iq.verify.peaks import Work, peaks_of, roofline
from iq.verify.references import Array
from iq.verify.results import CaseReport, Executed, KernelReport, TargetReport

# Bytes before and after an output that no kernel may write.
_GUARD = 256

# Classes of instructions (iq.inspect.classes) that a SIMD spends its issue slots on; matrix instructions have a rate of their own.
_VECTOR_CLASSES = ("valu", "dot")

# Progress callback: (kernels done, kernels in all, names of those being run).
Progress = Callable[[int, int, Sequence[str]], None]


def verify(path: str | Path, open_device: Opener, targets: str | None = None, progress: Progress | None = None) -> list[TargetReport]:
    """Run every kernel of the bundles at `path`, or of those for `targets` (comma-separated), on the devices that `open_device` opens.

    Without `targets`, a bundle whose device cannot be opened is reported as not run.
    Raises TargetError when a named target has no bundle there, or when none at all can be run; what Bundle.open raises; and for a named
    target what `open_device` raises.
    """
    bundles = [Bundle.open(p) for p in find(path)]
    if targets:
        wanted = [t.id for t in parse_targets(targets)]
        have = {b.target.id for b in bundles}
        if missing := [t for t in wanted if t not in have]:
            raise TargetError(f"{path} holds no bundle for {', '.join(missing)}; it has {', '.join(sorted(have)) or 'none'}")
        bundles = sorted((b for b in bundles if b.target.id in wanted), key=lambda b: wanted.index(b.target.id))
    refusals: dict[Path, str] = {}
    for bundle in bundles:
        try:
            open_device(bundle.target, bundle.path)
        except IqError as error:
            if targets:
                raise
            refusals[bundle.path] = str(error)
    if len(refusals) == len(bundles):
        raise TargetError("\n".join([f"{path} holds no bundle that can be run here", *refusals.values()]))

    total = sum(len(b.manifest.kernels) for b in bundles if b.path not in refusals)
    reports: list[TargetReport] = []
    for bundle in bundles:
        if bundle.path in refusals:
            reports.append(TargetReport(str(bundle.path), bundle.manifest.target, not_run=refusals[bundle.path]))
            continue
        done = sum(len(r.kernels) for r in reports)
        step = (lambda n, name, done=done: progress(done + n, total, (name,) if name else ())) if progress else None
        reports.append(verify_bundle(bundle, open_device, step=step))
    return reports


def verify_bundle(
    bundle: Bundle,
    open_device: Opener,
    specs: Iterable[KernelSpec] | None = None,
    step: Callable[[int, str], None] | None = None,
) -> TargetReport:
    """Run kernels of one bundle, all of them by default. A kernel that fails is reported; only what keeps all from running is raised."""
    started = time.perf_counter()
    manifest = bundle.manifest
    chosen = list(specs) if specs is not None else [KernelSpec.parse(k.key) for k in manifest.kernels]
    runner = Runner(bundle.target, bundle.path, open_device)
    opened = runner.opened
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
    return TargetReport(
        bundle=str(bundle.path),
        target=manifest.target,
        how=opened.how,
        approximations=opened.approximations,
        gpu=gpu.name if gpu else "",
        kernels=tuple(reports),
        dispatches=dispatches,
        seconds=time.perf_counter() - started,
    )


class Runner:
    """Runs kernels on a device; on a fresh one after each failure, which leaves an emulated GPU unusable as it would a real one."""

    def __init__(self, target: Target, bundle: Path, open_device: Opener) -> None:
        self._target, self._bundle, self._open = target, bundle, open_device
        self._opened: Opened | None = None

    @property
    def opened(self) -> Opened:
        """The device that the next case runs on. Raises what opening it raises."""
        self._opened = self._opened or self._open(self._target, self._bundle)
        return self._opened

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
        opened, executed = self.opened, Executed()
        before = len(opened.launches)
        try:
            outputs, stray = run(opened.device, spec, case)
            checks = (*case.check(outputs), Check("bytes written outside the outputs", stray, 0))
        except Exception as error:  # whatever a kernel does, the others are run
            self._opened = None
            return CaseReport(case.name, (), executed, case.operations, f"{type(error).__name__}: {error}")
        for launch in opened.launches[before:]:
            executed.add_launch(launch)
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
        whole = device.put(np.full(nbytes + 2 * _GUARD, UNWRITTEN, np.uint8))
        wholes.append(whole)
        outputs.append(whole[_GUARD : _GUARD + nbytes].view(dtype).reshape(shape))
    device.library.kernel(spec)(inputs, case.sizes, outputs)
    guards = [np.r_[held[:_GUARD], held[-_GUARD:]] for held in (whole.numpy() for whole in wholes)]
    return [output.numpy() for output in outputs], sum(int((guard != UNWRITTEN).sum()) for guard in guards)
