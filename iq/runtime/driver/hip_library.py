"""Where AMD's HIP runtime (libamdhip64) lies.

IREE loads it by the name libamdhip64.so alone, which most installations without development packages do not have on the loader's path.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

# The variable from which IREE takes places to look in: folders, or `file:` and a path, separated by semicolons.
VARIABLE = "IREE_HIP_DYLIB_PATH"

NAME = "libamdhip64.so"

# Names that installations without development packages have, newest first; the loader knows where.
VERSIONED_NAMES = (NAME, f"{NAME}.7", f"{NAME}.6", f"{NAME}.5")

# Python packages that bring a HIP runtime: AMD's wheels, and PyTorch built for ROCm.
PACKAGES = ("_rocm_sdk_core", "_rocm_sdk_devel", "torch")


def folders(environ: Mapping[str, str]) -> list[Path]:
    """Folders that may hold the library, the most specific first."""
    found = [Path(environ[v]) / "lib" for v in ("ROCM_PATH", "HIP_PATH") if environ.get(v)]
    found += sorted(Path("/opt").glob("rocm*/lib"))
    for package in PACKAGES:
        spec = find_spec(package)  # does not import it
        found += [Path(place) / "lib" for place in (spec.submodule_search_locations or ())] if spec else []
    return found


def loaded() -> Iterator[Path]:
    """The library as this process has it already, through PyTorch say: a second HIP runtime beside it would not work."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        address_mode_offset_device_inode_path = line.split(maxsplit=5)
        path = Path(address_mode_offset_device_inode_path[-1])
        if path.name.startswith(NAME):
            yield path


def search_path(environ: Mapping[str, str]) -> str:
    """What to set VARIABLE to: what it is, or else every library found, and the names to try on the loader's path."""
    if environ.get(VARIABLE):
        return environ[VARIABLE]
    found = dict.fromkeys(loaded())
    for folder in folders(environ):
        found.update(dict.fromkeys(sorted(folder.glob(f"{NAME}*"), key=lambda p: (len(p.name), p.name))))
    return ";".join([f"file:{path}" for path in found] + [f"file:{name}" for name in VERSIONED_NAMES])


def places(environ: Mapping[str, str]) -> str:
    """Where `search_path` looked, for people."""
    if environ.get(VARIABLE):
        return f"{VARIABLE}={environ[VARIABLE]}"
    return "\n".join(f"  {place}" for place in (*folders(environ), f"the loader's path, as {', '.join(VERSIONED_NAMES)}"))
