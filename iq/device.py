"""The public device: opens one, and finds out where its kernels come from."""

from __future__ import annotations

import os
import threading
import weakref
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from iq import runtime
from iq.bundle import Bundles, Module
from iq.errors import DeviceError, NoCompilerError
from iq.extras import missing
from iq.kernels import KernelSpec
from iq.runtime.library import Provider
from iq.runtime.opening import parse
from iq.targets import DeviceId, Target

if TYPE_CHECKING:
    from iq.emulator.device import EmulatedGpu


class Device(runtime.Device):
    """A device to put tensors on: "cpu", "cuda", "cuda:1", "hip", "hip:1"; or "emulated:gfx1100", an AMD GPU emulated on the CPU.

    It is the device that was asked for or an error, never another one. Opened again with equal arguments it is the same device, for as
    long as something holds it. `alloc`, `zeros` and `put` make buffers on it.
    emulated: the GPU of an emulated device, with what it counted of each launch; None on others. A kernel that fails there raises what
    stopped it, at the latest when its results are waited for, and leaves the device unusable, as on a GPU; opening one again gives a fresh
    one.
    """

    emulated: EmulatedGpu | None

    def __new__(
        cls,
        spec: str | None = None,
        *,
        bundle: str | Path | None = None,
        threads: int | None = None,
        runtime: str | None = None,
    ) -> Device:
        """Open a device.

        spec: which; by default what the environment variable IQ_DEVICE says, else "cpu".
        bundle: the directory or zip with its kernels; by default what IQ_BUNDLE_PATH says, else kernels are compiled when they are first
        needed, if the compiler is installed and IQ_DISABLE_COMPILE is not set; else using one raises NoCompilerError.
        threads: of a CPU device; 1 runs kernels in the calling thread, None is one for each core.
        runtime: "iree" runs a GPU's kernels through IREE's runtime rather than through the GPU's driver.
        Raises DeviceError, or a BundleError when there is no bundle at the path.
        """
        name = _full_name(_default_name() if spec is None else spec)
        path = bundle or os.environ.get("IQ_BUNDLE_PATH")
        key = (name, str(Path(path).resolve()) if path else None, threads, runtime)
        with _OPENING:
            found = _OPENED.get(key)
            if found is None or not found.usable:
                found = _OPENED[key] = cls._open(name, path, threads, runtime)
            return found

    def __init__(self, *args: object, **kwargs: object) -> None:
        """See `__new__`, which may return a device that is open already."""

    @classmethod
    def _open(cls, name: str, path: str | Path | None, threads: int | None, how: str | None) -> Device:
        device = object.__new__(cls)
        provider: Provider = Bundles(path) if path else _OnDemand()
        device.emulated = _emulated(name, threads)
        runtime.Device.__init__(
            device, device.emulated.runtime if device.emulated else name, provider=provider, threads=threads, runtime=how
        )
        return device


_Key = tuple[str, str | None, int | None, str | None]
_OPENED: weakref.WeakValueDictionary[_Key, Device] = weakref.WeakValueDictionary()
# Devices that were named where a Device could be given stay open.
_NAMED: dict[str, Device] = {}
_OPENING = threading.RLock()


def _after_fork() -> None:
    _OPENED.clear()  # the child opens its own
    _NAMED.clear()
    _OPENING.release()


# Held over a fork, so that the child does not find it held by a thread that it lacks.
os.register_at_fork(before=_OPENING.acquire, after_in_parent=_OPENING.release, after_in_child=_after_fork)


def default_device() -> Device:
    """The device of tensors that are not given one: the one that IQ_DEVICE names, else "cpu"."""
    return device_named(_default_name())


def device_named(name: str) -> Device:
    """`Device(name)`, which stays open: the device of every tensor that names it. Raises as `Device` does."""
    found = _NAMED.get(name) if isinstance(name, str) else None
    if found is None or not found.usable:
        found = _NAMED[name] = Device(name)
    return found


def given_device(device: runtime.Device | str | None) -> runtime.Device:
    """The device that a caller gave, named, or left out. Raises DeviceError for anything else, with what may be meant."""
    if device is None:
        return default_device()
    return device if isinstance(device, runtime.Device) else device_named(device)


def _default_name() -> str:
    return os.environ.get("IQ_DEVICE") or "cpu"


def _full_name(spec: str) -> str:
    """ "hip:0" for "hip". Raises DeviceError for what is no device's name."""
    if isinstance(spec, str) and spec.partition(":")[0] == "emulated":
        return spec
    kind, number = parse(spec)
    return kind if kind == "cpu" else f"{kind}:{number}"


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

    def module(self, target: Target, spec: KernelSpec) -> Module:
        return self._compiler.module(target, spec)
