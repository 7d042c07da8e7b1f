"""Compiling kernels: requests -> kernels -> MLIR -> vmfb -> bundle. Needs `pip install iq[compile]`; the runtime does without."""

from iq.compile.build import bundle
from iq.compile.ondemand import CompileOnDemand

__all__ = ["CompileOnDemand", "bundle"]
