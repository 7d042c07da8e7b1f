"""Compiling when a kernel is first needed: what the runtime gets its modules from where no bundle is named."""

from __future__ import annotations

import os
import sys
from functools import cached_property
from pathlib import Path

from iq import bundle
from iq.cache import Cache
from iq.compile.build import Module, compile_module
from iq.compile.compiler import Compilations, Compiler
from iq.errors import NoCompilerError
from iq.kernels import KernelSpec
from iq.targets import TARGETS, DeviceId, Target


class CompileOnDemand:
    """A provider of modules that compiles them into the cache, kernel by kernel. Several processes may use the same cache.

    A compile takes a second or so: a line on stderr says which kernel it is for, unless IQ_QUIET is set.
    """

    def __init__(self, cache: Cache | None = None) -> None:
        self._cache = cache or Cache()

    @cached_property
    def _compiler(self) -> Compiler:
        return Compiler.find()

    def target(self, device_id: DeviceId, cpu_flags: frozenset[str] = frozenset()) -> Target:
        """The target that fits a device best. Raises NoArtifactError when none does."""
        return TARGETS[bundle.best_match(TARGETS, device_id, cpu_flags)]

    def module(self, target: Target, spec: KernelSpec) -> bundle.Module:
        """A module that holds a kernel alone; compiled now if the cache lacks it. Raises as `vmfb` does."""
        return bundle.Module.of(f"{target.id}/{spec.key}", self.vmfb(target, spec).read_bytes(), (spec,), target)

    def vmfb(self, target: Target, spec: KernelSpec) -> Path:
        """The file that holds a kernel for a target; compiled now if the cache lacks it.

        Raises NoCompilerError without a compiler or when IQ_DISABLE_COMPILE is set, KernelKeyError for a kernel that the target does not
        have, CompileError.
        """
        if os.environ.get("IQ_DISABLE_COMPILE"):
            raise NoCompilerError(
                f"{spec.key} for {target.id} has to be compiled, but IQ_DISABLE_COMPILE is set: "
                f"unset it, or name a bundle that holds it (IQ_BUNDLE_PATH; `iq compile --target {target.id} --format {spec.format}`)"
            )
        with Compilations(self._compiler) as compilations:
            return compile_module(Module(target, spec.format, (spec,)), compilations, self._cache, _say)


def _say(module: Module) -> None:
    if not os.environ.get("IQ_QUIET"):
        print(f"iq: compiling {module.title}", file=sys.stderr, flush=True)
