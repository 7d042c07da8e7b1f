"""All kernels of a format, compiled at once and kept: tests need most of them, and one compile takes less than one for each kernel."""

from pathlib import Path

from iq import kernels
from iq.bundle import Module
from iq.cache import Cache
from iq.compile.build import compile_module, modules_of
from iq.compile.compiler import Compilations, Compiler
from iq.compile.ondemand import CompileOnDemand
from iq.kernels import KernelSpec
from iq.targets import Target


def vmfb_of(target: Target, format: str) -> Path:
    """The file with all kernels of a format for a target."""
    [module] = modules_of(target, kernels.select(format))
    with Compilations(Compiler.find()) as compilations:
        return compile_module(module, compilations, Cache())


def module_of(target: Target, format: str) -> Module:
    """All kernels of a format for a target."""
    specs = [spec for spec in kernels.select(format) if spec.exists(target)]
    return Module.of(f"{target.id}/{format}", vmfb_of(target, format).read_bytes(), specs, target)


class FormatsOnDemand(CompileOnDemand):
    """Compiles the kernels of a format when the first of them is needed."""

    def module(self, target: Target, spec: KernelSpec) -> Module:
        return module_of(target, spec.format)
