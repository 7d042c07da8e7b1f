"""Finding and loading the driver's library."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from iq.errors import DeviceError
from iq.runtime.driver import hip_library
from iq.runtime.driver.api import HIP, Api
from iq.runtime.driver.driver import Driver

_CUDA_NAMES = ("libcuda.so.1", "libcuda.so")


def candidates(api: Api, environ: Mapping[str, str]) -> list[str]:
    """What to load the library from, in this order: paths, and names for the loader."""
    if api is not HIP:
        return list(_CUDA_NAMES)
    entries = [entry for entry in hip_library.search_path(environ).split(";") if entry]
    return [e.removeprefix("file:") if e.startswith("file:") else str(Path(e) / hip_library.NAME) for e in entries]


def _places(api: Api, environ: Mapping[str, str]) -> str:
    """Where that is, and what to do, for people."""
    if api is not HIP:
        return f"no CUDA driver that loads. Looked on the loader's path for {', '.join(_CUDA_NAMES)}; it comes with NVIDIA's driver."
    return f"no libamdhip64 that loads. Looked in\n{hip_library.places(environ)}\nSet {hip_library.VARIABLE}=file:/path/of/it."


def load(api: Api, path: str | Path | None = None) -> Driver:
    """The driver: the library at a path or, without one, the first of those in the usual places that loads. One for each API and path.

    Raises DeviceError, with the places, where there is none; DriverError where the library finds nothing to work with.
    """
    return _load(api, None if path is None else str(path))


@lru_cache
def _load(api: Api, path: str | None) -> Driver:
    failures = []
    for candidate in [path] if path else candidates(api, os.environ):
        try:
            library = ctypes.CDLL(candidate)  # whose calls let other Python threads run
        except OSError as error:
            failures.append(f"  {error}")
        else:
            return Driver(api, library, candidate)
    where = f"{path} does not load." if path else _places(api, os.environ)
    raise DeviceError("\n".join([f"no driver for {api.name}: {where}", *failures]))
