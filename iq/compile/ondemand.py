"""Compiling when a kernel is first needed: what the runtime gets its modules from where no bundle is named."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from iq import bundle, kernels
from iq.cache import Cache
from iq.compile.build import compile_module, modules_of
from iq.compile.compiler import Compilations, Compiler
from iq.errors import NoCompilerError
from iq.targets import TARGETS, DeviceId, Target

_log = logging.getLogger(__name__)


class CompileOnDemand:
    """A provider of modules that compiles them into the cache. Several processes may use the same cache."""

    def __init__(self, cache: Cache | None = None) -> None:
        self._cache = cache or Cache()

    def target(self, device_id: DeviceId, cpu_flags: frozenset[str] = frozenset()) -> Target:
        """The target that fits a device best. Raises NoArtifactError when none does."""
        return TARGETS[bundle.best_match(TARGETS, device_id, cpu_flags)]

    def module(self, target: Target, format: str) -> bundle.Module:
        """All kernels of a format for a target; compiled now if the cache lacks them. Raises as `vmfb` does."""
        specs = [spec for spec in kernels.select(format) if spec.exists(target)]
        return bundle.Module.of(f"{target.id}/{format}", self.vmfb(target, format).read_bytes(), specs, target)

    def vmfb(self, target: Target, format: str) -> Path:
        """The file with all kernels of a format for a target; compiled now if the cache lacks it.

        Raises NoCompilerError without a compiler or when IQ_DISABLE_COMPILE is set, FormatError, CompileError.
        """
        if os.environ.get("IQ_DISABLE_COMPILE"):
            raise NoCompilerError(
                f"the {format} kernels for {target.id} have to be compiled, but IQ_DISABLE_COMPILE is set: "
                f"unset it, or name a bundle that holds them (IQ_BUNDLE_PATH; `iq compile --target {target.id} --format {format}`)"
            )
        [module] = modules_of(target, kernels.select(format))
        with Compilations(Compiler.find()) as compilations:
            _log.info("kernels of %s: compiling, unless they are in %s", module.name, self._cache.directory)
            return compile_module(module, compilations, self._cache)
