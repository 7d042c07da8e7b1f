"""Opening devices of IREE: CPUs, and GPUs through IREE's own drivers, which is the other way to run the same kernels."""

from __future__ import annotations

import ctypes
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

# Not in IREE's public API, whose drivers are one for each process and name: those could not have threads of their own.
from iree.runtime._binding import create_hal_driver
from iree.runtime.flags import parse_flags

from iq.errors import DeviceError
from iq.runtime.driver import hip_library
from iq.runtime.hip import HipRuntime
from iq.runtime.host import cpu_flags
from iq.runtime.iree.backend import IreeBackend
from iq.runtime.iree.hal import Hal
from iq.runtime.iree.ownership import iree_errors
from iq.targets import DeviceId

# IREE takes the number of threads and the place of libamdhip64 from settings of the whole process, when it makes a driver.
_PROCESS_SETTINGS = threading.Lock()
# Held over a fork, so that the child does not find it held by a thread that it lacks.
os.register_at_fork(before=_PROCESS_SETTINGS.acquire, after_in_parent=_PROCESS_SETTINGS.release, after_in_child=_PROCESS_SETTINGS.release)


def open_gpu(driver: str, index: int) -> IreeBackend:
    """Open a GPU of this machine through IREE's driver "cuda" or "hip". Raises DeviceError."""
    return _open_gpu(driver, index, f"{driver}:{index}", hip_library.search_path(os.environ))


def open_hip(runtime: HipRuntime) -> IreeBackend:
    """Open a device of another HIP runtime through IREE's hip driver. Raises DeviceError."""
    return _open_gpu("hip", runtime.index, runtime.name, f"file:{runtime.library}", runtime)


def open_cpu(threads: int | None) -> IreeBackend:
    """The CPU, with so many threads; 1 runs kernels in the calling thread. None is one for each core. Raises DeviceError."""
    if threads is not None and threads < 1:
        raise DeviceError(f"a device with {threads} threads cannot run; expected 1 or more, or None for one a core")
    with _PROCESS_SETTINGS:
        # Read when the driver is made, so every device has its own threads, and changing them means another device. 0 is one a core.
        parse_flags(f"--task_topology_group_count={threads or 0}")
        hal = Hal(create_hal_driver("local-sync" if threads == 1 else "local-task").create_default_device())
    return IreeBackend("cpu", hal, DeviceId("cpu"), cpu_flags())


def _open_gpu(driver_name: str, index: int, spec: str, hip_path: str, emulated: HipRuntime | None = None) -> IreeBackend:
    """emulated: the HIP runtime, where it is not this machine's own."""
    try:
        with _PROCESS_SETTINGS, _hip_search_path(hip_path) if driver_name == "hip" else nullcontext():
            # Whether memory of kernels' temporaries is kept for later ones. Where it is not, its use after the end shows.
            parse_flags(f"--hip_async_caching={'false' if emulated else 'true'}")
            driver = create_hal_driver(driver_name)
        devices = driver.query_available_devices()
    except Exception as error:  # IREE's statuses come as various built-in exceptions
        raise DeviceError(f"cannot open {spec}: {_where_looked(driver_name)}\n{error}") from error
    if index >= len(devices):
        there = "\n".join(f"  {driver_name}:{i} {device['name']}" for i, device in enumerate(devices)) or "  none"
        raise DeviceError(f"cannot open {spec}: there is no such device; this machine has\n{there}")
    with iree_errors(DeviceError, f"cannot open {spec}, {devices[index]['name']}"):
        identity = _identify(driver_name, driver.dump_device_info(devices[index]["device_id"]))
        device = driver.create_device(devices[index]["device_id"])
        # One call at a time: IREE's hip driver waits forever for a temporary whose allocation was queued behind another call that failed.
        if emulated:
            return IreeBackend(spec, Hal(device, pending_error=emulated.pending_error, calls_at_once=False), identity)
        make_current = _cuda_context() if driver_name == "cuda" else lambda: None
        return IreeBackend(spec, Hal(device, make_current, calls_at_once=driver_name != "hip", outlives_failure=False), identity)


def _cuda_context() -> Callable[[], None]:
    """`Hal.make_current` for the CUDA device that this thread has just opened.

    IREE makes a device's context current when it opens the device, in that thread, and relies on it from then on. In any other thread, or
    when a second device has been opened, its calls would fail or go to the wrong device.
    """
    cuda = ctypes.PyDLL("libcuda.so")
    context = ctypes.c_void_p()
    if status := cuda.cuCtxGetCurrent(ctypes.byref(context)):
        raise RuntimeError(f"cuCtxGetCurrent gives error {status}")

    def make_current() -> None:
        if status := cuda.cuCtxSetCurrent(context):
            raise DeviceError(f"the device is lost: cuCtxSetCurrent gives CUDA error {status}")

    return make_current


def _identify(driver_name: str, info: str) -> DeviceId:
    """What a GPU says it is, from the driver's description of it."""
    if driver_name == "hip" and (found := re.search(r"gpu-arch-name: (\S+)", info)):
        return DeviceId.parse(found[1])
    if driver_name == "cuda" and (found := re.search(r"gpu-compute-capability: (\d+)\.(\d+)", info)):
        return DeviceId(f"sm_{found[1]}{found[2]}")
    raise DeviceError(f"the {driver_name} driver does not say what the device is; it says\n{info}")


@contextmanager
def _hip_search_path(path: str) -> Iterator[None]:
    """IREE's environment variable for libamdhip64, set while the hip driver is made."""
    before = os.environ.get(hip_library.VARIABLE)
    os.environ[hip_library.VARIABLE] = path
    try:
        yield
    finally:
        del os.environ[hip_library.VARIABLE]
        if before is not None:
            os.environ[hip_library.VARIABLE] = before


def _where_looked(driver_name: str) -> str:
    if driver_name == "hip":
        return f"no libamdhip64 that works. Looked in\n{hip_library.places(os.environ)}\nSet {hip_library.VARIABLE}=file:/path/of/it."
    return "no libcuda.so that works on the loader's path. It comes with NVIDIA's driver; libcuda.so.1 alone needs a link of that name."
