"""The public device: opens one, and finds out where its kernels come from."""

from __future__ import annotations

import os
import threading
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from iq import runtime
from iq.bundle import Bundles
from iq.errors import DeviceError, NoCompilerError
from iq.extras import missing
from iq.runtime.library import ModuleSource, Provider
from iq.targets import DeviceId, Target

if TYPE_CHECKING:
    from iq.emulator.device import EmulatedGpu


class Device(runtime.Device):
    """A device to put tensors on: "cpu", "cuda", "cuda:1", "hip", "hip:1"; or "emulated:gfx1100", an AMD GPU emulated on the CPU.

    It is the device that was asked for or an error, never another one. `alloc`, `zeros` and `put` make buffers on it.
    emulated: the GPU of an emulated device, with what it counted of each launch; None on others. A kernel that fails there raises what
    stopped it and leaves the device unusable, as on a GPU; opening one again gives a fresh one.
    """

    def __init__(self, spec: str | None = None, *, bundle: str | Path | None = None, threads: int | None = None) -> None:
        """Open a device.

        spec: which; by default what the environment variable IQ_DEVICE says, else "cpu".
        bundle: the directory or zip with its kernels; by default what IQ_BUNDLE_PATH says, else kernels are compiled when they are first
        needed, if the compiler is installed and IQ_DISABLE_COMPILE is not set; else using one raises NoCompilerError.
        threads: of a CPU device; 1 runs kernels in the calling thread, None is one for each core.
        Raises DeviceError, or a BundleError when there is no bundle at the path.
        """
        path = bundle or os.environ.get("IQ_BUNDLE_PATH")
        provider: Provider = Bundles(path) if path else _OnDemand()
        spec = spec or _default_name()
        self.emulated = _emulated(spec, threads)
        super().__init__(self.emulated.runtime if self.emulated else spec, provider=provider, threads=threads)


_NAMED: dict[str, Device] = {}
_OPENING = threading.Lock()
# A forked child opens devices of its own. The lock is held over the fork, so that the child does not find it held by a thread that it lacks.
os.register_at_fork(before=_OPENING.acquire, after_in_parent=_OPENING.release, after_in_child=lambda: (_OPENING.release(), _NAMED.clear()))


def default_device() -> Device:
    """The device of tensors that are not given one: the one that IQ_DEVICE names, else "cpu", opened once."""
    return device_named(_default_name())


def device_named(name: str) -> Device:
    """`Device(name)`, opened once: the device of every tensor that names it. Raises as `Device` does."""
    if name in ("cuda", "hip"):
        name += ":0"
    with _OPENING:
        if name not in _NAMED:
            _NAMED[name] = Device(name)
        return _NAMED[name]


def _default_name() -> str:
    return os.environ.get("IQ_DEVICE") or "cpu"


def _emulated(spec: str, threads: int | None) -> EmulatedGpu | None:
    """The GPU of an emulated device; None for other devices. Only it imports iq.emulator, which needs the extra `emulate`."""
    if spec.partition(":")[0] != "emulated":
        return None
    if threads is not None:
        raise DeviceError(f"threads={threads} is for the device cpu, not for {spec}")
    if lacking := missing("emulate"):
        raise DeviceError(f"{spec} cannot be emulated: {lacking}")
    from iq.emulator.device import EmulatedGpu

    return EmulatedGpu(spec)


class _OnDemand:
    """Compiles kernels when they are needed. Only then is iq.compile imported, which deployment hosts cannot."""

    @cached_property
    def _compiler(self) -> Provider:
        why = "IQ_DISABLE_COMPILE is set" if os.environ.get("IQ_DISABLE_COMPILE") else missing("compile")
        if why:
            raise NoCompilerError(
                f"a kernel is needed, no bundle is named, and compiling is not possible: {why}. "
                "Name a bundle with IQ_BUNDLE_PATH or Device(bundle=...); `iq compile` makes one on a machine with the compiler"
            )
        from iq.compile.ondemand import CompileOnDemand

        return CompileOnDemand()

    def target(self, device_id: DeviceId, cpu_flags: frozenset[str]) -> Target:
        return self._compiler.target(device_id, cpu_flags)

    def module(self, target: Target, format: str) -> ModuleSource:
        return self._compiler.module(target, format)
