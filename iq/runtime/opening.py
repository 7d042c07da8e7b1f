"""Opening devices: from "cpu", "cuda:1" or "hip" to a device and what it says it is."""

from __future__ import annotations

import difflib
import re
from typing import Any

from iq.errors import DeviceError
from iq.runtime.amd_gpus import what_is_seen
from iq.runtime.backend import Backend
from iq.runtime.hip import HipRuntime

KINDS = ("cpu", "hip", "cuda")
RUNTIMES = ("launch", "iree")

# What people call them elsewhere.
_MEANT = {"rocm": "hip", "amd": "hip", "amdgpu": "hip", "nvidia": "cuda", "gpu": "hip or cuda", "host": "cpu"}

_ALLOWED = "cpu, hip, hip:N, cuda, cuda:N or emulated:gfx..."


def parse(name: Any) -> tuple[str, int]:
    """The kind and number of a device's name; a CPU's number is 0. Raises DeviceError, with the name that may be meant."""
    parsed = re.fullmatch(r"(cpu)|(cuda|hip)(?::([0-9]{1,9}))?", name) if isinstance(name, str) else None
    if parsed:
        return parsed[1] or parsed[2], int(parsed[3] or 0)
    if isinstance(name, int) and not isinstance(name, bool) and name >= 0:
        raise DeviceError(f"unknown device {name!r}: a number alone does not say which; say 'hip:{name}' or 'cuda:{name}'")
    if not isinstance(name, str):
        raise DeviceError(f"unknown device {name!r}: expected a name ({_ALLOWED}) or a Device, got a {type(name).__name__}")
    meant = _meant(*name.strip().lower().partition(":"))
    raise DeviceError(f"unknown device {name!r}; expected {_ALLOWED}" + (f"; is {meant} meant?" if meant else ""))


def _meant(kind: str, colon: str, number: str) -> str:
    """What somebody may have meant who named a device so, "" where there is no telling."""
    if kind.startswith("gfx"):
        return f"hip, or emulated:{kind}{colon}{number}"
    if re.fullmatch(r"sm_?[0-9]+", kind):
        return "cuda"
    close = difflib.get_close_matches(kind, (*KINDS, "emulated", *_MEANT), 1, 0.5)
    meant = _MEANT.get(close[0], close[0]) if close else ""
    if meant == "emulated":
        return f"emulated:{number or 'gfx1100'}"
    if meant in ("hip", "cuda") and re.fullmatch(r"[0-9]{1,9}", number):
        return f"{meant}:{int(number)}"
    return meant


def open_backend(spec: str | HipRuntime, threads: int | None = None, runtime: str | None = None) -> Backend:
    """Open "cpu", "cuda", "cuda:N", "hip" or "hip:N", or a device of another HIP runtime than this machine's.

    threads: how many a CPU device has of its own; 1 runs kernels in the calling thread. None is one for each core.
    runtime: "launch" drives a GPU through its driver, "iree" through IREE's runtime; None is "launch" for GPUs, and a CPU only has "iree".
    Raises DeviceError when the device cannot be had; never opens another one instead.
    """
    if runtime not in (None, *RUNTIMES):
        raise DeviceError(f"runtime={runtime!r}: expected 'launch', 'iree' or None")
    kind, index = ("hip", spec.index) if isinstance(spec, HipRuntime) else parse(spec)
    name = spec.name if isinstance(spec, HipRuntime) else spec
    if kind != "cpu" and threads is not None:
        raise DeviceError(f"threads={threads} is for the device cpu, not for {name}")
    if kind == "cpu" and runtime == "launch":
        raise DeviceError("runtime='launch' is for GPUs; a CPU runs kernels through IREE's runtime")
    try:
        return _open(spec, kind, index, threads, runtime)
    except DeviceError as error:
        if kind == "hip" and isinstance(spec, str) and (seen := what_is_seen()):
            raise DeviceError(f"{error}\n{seen}") from error
        raise


def _open(spec: str | HipRuntime, kind: str, index: int, threads: int | None, runtime: str | None) -> Backend:
    if kind == "cpu" or runtime == "iree":
        return _open_iree(spec, kind, index, threads)
    # Imported here, so that each way to run does without the other.
    from iq.runtime.driver import CUDA, HIP, load
    from iq.runtime.gpu.gpu import Gpu

    if isinstance(spec, HipRuntime):
        spec.defer()
        return Gpu(spec.name, load(HIP, str(spec.library)).open(spec.index), spec.pending_error)
    name = f"{kind}:{index}"
    try:
        driver = load(HIP if kind == "hip" else CUDA)
    except DeviceError as error:
        raise DeviceError(f"cannot open {name}: {error}") from error
    if index >= (count := driver.device_count()):
        there = "\n".join(f"  {kind}:{i} {driver.device_name(i)}" for i in range(count)) or "  none"
        raise DeviceError(f"cannot open {name}: there is no such device; this machine has\n{there}")
    return Gpu(name, driver.open(index))


def _open_iree(spec: str | HipRuntime, kind: str, index: int, threads: int | None) -> Backend:
    try:
        from iq.runtime.iree import opening
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "iree":
            raise
        name = spec if isinstance(spec, str) else spec.name
        raise DeviceError(f"{name} runs through IREE's runtime, which is not installed: pip install iree-base-runtime") from error
    if isinstance(spec, HipRuntime):
        return opening.open_hip(spec)
    return opening.open_cpu(threads) if kind == "cpu" else opening.open_gpu(kind, index)
