"""The optional parts of the distribution ("extras"): which modules each brings, and what to install where one is missing.

pyproject.toml says the same in names of distributions (tests/test_packaging.py compares them). Nothing here is imported to be found.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

DISTRIBUTION = "iq-kernels"

EXTRAS: Mapping[str, tuple[str, ...]] = {
    "amd": ("rocm_bootstrap",),
    "cli": ("click", "rich"),
    "llm": ("tokenizers",),
    "gguf": ("gguf", "safetensors"),
    "torch": ("torch",),
    "emulate": ("elftools", "platformdirs"),
    "compile": ("iree.compiler", "jinja2", "platformdirs", "elftools"),
}


def missing(extra: str) -> str:
    """What of an extra is not installed, and how to install it, as a clause; "" where all of it is there."""
    absent = [name for name in EXTRAS[extra] if not _is_there(name)]
    return f"{' and '.join(absent)} cannot be imported ({install(extra)})" if absent else ""


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # not even the package of a module
        return False


def install(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def extra_of(module: str) -> str | None:
    """The first extra that brings a module (or the package of one), None for a module of none."""
    return next((extra for extra, names in EXTRAS.items() for name in names if f"{module}.".startswith(f"{name}.")), None)
