"""Compiling kernels: requests -> kernels -> MLIR -> vmfb -> bundle. It takes the extra `compile`; the runtime does without."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from iq.errors import NoCompilerError
from iq.extras import missing

if TYPE_CHECKING:
    from iq.compile.build import bundle
    from iq.compile.ondemand import CompileOnDemand

__all__ = ["CompileOnDemand", "bundle"]

_MODULES = {"CompileOnDemand": "iq.compile.ondemand", "bundle": "iq.compile.build"}


def __getattr__(name: str) -> Any:
    # Imported when used, so that `from iq import *` works where the compiler is not installed.
    if name not in _MODULES:
        raise AttributeError(f"module 'iq.compile' has no attribute {name!r}")
    if lacking := missing("compile"):
        raise NoCompilerError(f"iq.compile.{name} compiles kernels, but {lacking}; or use a bundle that was compiled elsewhere")
    return getattr(import_module(_MODULES[name]), name)
