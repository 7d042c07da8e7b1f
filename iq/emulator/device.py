"""An emulated GPU, for a runtime device to be opened on: `iq.Device("emulated:gfx1100")`.

Several can be open in one process, of the same or of different processors; each has memory of its own. A kernel that fails leaves the
device unusable, as it would a GPU: open another one, which starts afresh.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, replace
from typing import Protocol

from iq.emulator import hip, machine
from iq.emulator.faults import EmulationError
from iq.emulator.kernargs import Dim3, fill_hidden
from iq.emulator.machine import Options
from iq.emulator.memory import Memory
from iq.emulator.program import LoadedCode
from iq.emulator.statistics import Statistics
from iq.errors import DeviceError
from iq.runtime.hip import HipRuntime
from iq.targets import DeviceId

PREFIX = "emulated:"

# Processors that can be emulated, and the features that such a GPU shows as its default.
PROCESSORS: dict[str, tuple[str, ...]] = {
    "gfx900": ("xnack-",),
    **dict.fromkeys(("gfx906", "gfx908", "gfx90a", "gfx942", "gfx950"), ("sramecc+", "xnack-")),
    **dict.fromkeys(("gfx1010", "gfx1011", "gfx1012"), ("xnack-",)),
    **dict.fromkeys(("gfx1030", "gfx1031", "gfx1032", "gfx1033", "gfx1034", "gfx1035", "gfx1036"), ()),
    **dict.fromkeys(("gfx1100", "gfx1101", "gfx1102", "gfx1103", "gfx1150", "gfx1151", "gfx1152", "gfx1153"), ()),
    **dict.fromkeys(("gfx1200", "gfx1201"), ()),
}


class WrongProcessor(EmulationError):
    """A code object for another processor, or with other features, than the emulated GPU has."""


class Launcher(Protocol):
    """Runs a kernel to its end: `iq.emulator.machine.launch`."""

    def __call__(
        self, code: LoadedCode, kernel: str, grid: Dim3, workgroup: Dim3, kernarg: bytes, memory: Memory, options: Options
    ) -> Statistics: ...


@dataclass(frozen=True)
class Launch:
    """A kernel that ran: its name, how many workgroups of which size, and what was counted."""

    kernel: str
    grid: Dim3
    workgroup: Dim3
    statistics: Statistics


@dataclass(frozen=True)
class _Function:
    code: LoadedCode
    kernel: str


def _identify(name: str) -> DeviceId:
    """What a device of this name says it is. Raises DeviceError."""
    processor, *settings = name.removeprefix(PREFIX).split(":")
    if processor not in PROCESSORS:
        raise DeviceError(f"unknown device {name!r}: no such GPU can be emulated; these can: {', '.join(PROCESSORS)}")
    shown = PROCESSORS[processor]
    known = {f"{feature[:-1]}{sign}" for feature in shown for sign in "+-"}
    if not known.issuperset(settings) or len({s[:-1] for s in settings}) < len(settings):
        raise DeviceError(f"unknown device {name!r}: a {processor} has the settings {', '.join(sorted(known)) or 'none'}, each once")
    defaults = {feature for feature in shown if feature[:-1] not in {s[:-1] for s in settings}}
    return DeviceId(processor, frozenset({*settings, *defaults}))


class EmulatedGpu:
    """A GPU that IREE's hip driver finds in the fake HIP runtime.

    name: as it was asked for, "emulated:gfx1100". id: what it says it is. memory: its allocations, the host's pinned ones included.
    launches: what ran, in order. runtime: for `iq.runtime.Device`.
    """

    def __init__(self, name: str, options: Options | None = None, launch: Launcher = machine.launch) -> None:
        """Open "emulated:PROCESSOR", or with features that differ from a GPU's default, "emulated:gfx942:sramecc+:xnack+".

        Raises DeviceError for a processor that cannot be emulated, NoCCompilerError.
        """
        self.name = name
        self.id = _identify(name)
        self.memory = Memory()
        self.launches: list[Launch] = []
        self._options = options or Options()
        self._launch = launch
        self._codes: dict[str, tuple[int, LoadedCode]] = {}
        self._functions: list[_Function] = []
        self._failure: BaseException | None = None
        self._lock = threading.Lock()
        described = hip.Properties(
            name=f"Emulated {self.id.processor}",
            arch=str(self.id),
            lds=163840 if self.id.processor == "gfx950" else 65536,
            wave=64 if self.id.processor.startswith("gfx9") else 32,
        )
        self._attached = hip.Attached(self, described, self.memory)
        self.runtime = HipRuntime(name, self._attached.library, self._attached.index, self.take_failure, self.defer)

    def take_failure(self) -> BaseException | None:
        """Why a call of the HIP runtime failed, for the first that did since the last time; None where none did."""
        with self._lock:
            failure, self._failure = self._failure, None
        return failure or self.memory.take_fault()

    @property
    def handles(self) -> int:
        """How many streams, events, modules, kernels, pools and graphs are open on it."""
        return self._attached.handles

    def defer(self, seed: int = 1) -> None:
        """Run what is enqueued from now on only when somebody waits, the streams in an order drawn from `seed`; with 0, at once."""
        self._attached.defer(seed)

    # ---- For the fake HIP runtime (hip.Gpu)

    def load(self, elf: bytes) -> int:
        digest = hashlib.sha256(elf).hexdigest()
        with self._lock:
            if digest not in self._codes:
                loaded = LoadedCode.load(elf)
                built_for = loaded.code.device_id
                if built_for.processor != self.id.processor or not built_for.features <= self.id.features:
                    raise WrongProcessor(f"the code object is for {built_for}, this device is an emulated {self.id}")
                self._codes[digest] = len(self._codes) + 1, loaded
            return self._codes[digest][0]

    def function(self, module: int, name: str) -> hip.Function:
        with self._lock:
            code = list(self._codes.values())[module - 1][1]
            kernel = code.kernel(name)
            self._functions.append(_Function(code, name))
            given = tuple((a.offset, a.size) for a in kernel.arguments if not a.hidden)
            return hip.Function(len(self._functions) - 1, kernel.lds, kernel.kernarg, given)

    def launch(self, function: int, grid: Dim3, workgroup: Dim3, kernarg: bytes) -> None:
        found = self._functions[function]
        segment = fill_hidden(kernarg, found.code.kernels[found.kernel].arguments, grid, workgroup)
        # Waves run in another order each time, so that a race which one order hides shows in another.
        options = replace(self._options, seed=self._options.seed + len(self.launches))
        statistics = self._launch(found.code, found.kernel, grid, workgroup, segment, self.memory, options)
        self.launches.append(Launch(found.kernel, grid, workgroup, statistics))

    def failed(self, error: BaseException) -> None:
        with self._lock:
            self._failure = self._failure or error
