"""Builds iq/runtime/_launch.abi3.so, which launches kernels, where there are a C compiler and Python's headers.

Hatchling's build hook, for wheels and editable installs; `python hatch_build.py` builds it in place. Without it iq launches through ctypes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
else:
    try:
        from hatchling.builders.hooks.plugin.interface import BuildHookInterface
    except ImportError:  # run as a script
        BuildHookInterface = object

SOURCE = "iq/runtime/_launch.c"
BUILT = "iq/runtime/_launch.abi3.so"
TAG = "cp311-abi3"  # what Py_LIMITED_API in the source promises

FLAGS = ("-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-fvisibility=hidden")


def build(root: Path) -> str:
    """Build it, unless it is newer than its source. Why it cannot be built, empty where it is there."""
    source, built = root / SOURCE, root / BUILT
    if built.exists() and built.stat().st_mtime >= source.stat().st_mtime:
        return ""
    if sys.platform != "linux":
        return f"it is for Linux, not {sys.platform}"
    named = os.environ.get("CC", "cc")
    compiler = shutil.which(named)
    if compiler is None:
        return f"there is no C compiler {named}"
    include = Path(sysconfig.get_path("include"))
    if not (include / "Python.h").exists():
        return f"Python's headers are not in {include} (Debian: python3-dev)"
    # Beside its place, and then into it: a process may have the old one loaded.
    new = built.with_name(f".{os.getpid()}-{built.name}")
    try:
        done = subprocess.run([compiler, *FLAGS, "-I", include, "-o", new, source], capture_output=True, text=True, check=False)
        if done.returncode:
            return f"{compiler} fails: {next((line for line in done.stderr.splitlines() if 'error' in line), done.stderr[:200])}"
        new.replace(built)
    finally:
        new.unlink(missing_ok=True)
    return ""


def say(why: str) -> None:
    print(f"iq launches through ctypes, without {BUILT}: {why}", file=sys.stderr)


class LaunchHook(BuildHookInterface):
    """The extension in a wheel for this machine's kind; where it cannot be built, a wheel for any."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        if why := build(Path(self.root)):
            say(why)
            return
        build_data["artifacts"].append(BUILT)  # ignored by git
        build_data["pure_python"] = False
        build_data["tag"] = f"{TAG}-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


if __name__ == "__main__" and (why := build(Path(__file__).parent)):
    say(why)
