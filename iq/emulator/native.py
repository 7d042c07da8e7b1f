"""The fake HIP runtime as a library: built from fakehip/ at first use, kept in iq's cache directory."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from iq.atomic import replacing
from iq.cache import Cache
from iq.emulator.faults import EmulationError

SOURCES = Path(__file__).parent / "fakehip"

_FLAGS = ("-O2", "-std=gnu11", "-shared", "-fPIC", "-pthread", "-fvisibility=hidden")


class NoCCompilerError(EmulationError):
    """There is no C compiler to build the emulator's HIP runtime with, or it failed."""


def library_path(cache: Cache | None = None) -> Path:
    """The library, built unless this source has been built before. Raises NoCCompilerError.

    IREE takes it for libamdhip64.so. A process that loads it twice has it once: its devices are the same for IREE and for Python.
    """
    sources = sorted(SOURCES.glob("*.c"))
    digest = hashlib.sha256(b"\0".join([*(p.read_bytes() for p in sorted(SOURCES.glob("*.[ch]"))), *(f.encode() for f in _FLAGS)]))
    path = (cache or Cache()).directory / f"libamdhip64-emulated-{digest.hexdigest()[:16]}.so"
    if not path.exists():
        _build(sources, path)
    return path


def load(cache: Cache | None = None) -> ctypes.CDLL:
    """The library, loaded. Calls into it let other Python threads run. Raises as `library_path` does."""
    return ctypes.CDLL(str(library_path(cache)))


def _build(sources: list[Path], path: Path) -> None:
    named = os.environ.get("CC", "cc")
    compiler = shutil.which(named)
    if compiler is None:
        raise NoCCompilerError(
            f"the emulator builds its HIP runtime at first use and needs a C compiler: there is no {named} on PATH. "
            "Install the package gcc (Debian and Ubuntu: apt-get install gcc libc6-dev), or name one with CC"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as built:
        done = subprocess.run([compiler, *_FLAGS, "-o", built, *sources], capture_output=True, text=True, check=False)
        if done.returncode:
            raise NoCCompilerError(f"{compiler} cannot build the emulator's HIP runtime:\n{done.stderr.strip()[:2000]}")
