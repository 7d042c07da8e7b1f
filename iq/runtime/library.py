"""The kernels that a device can run: modules loaded as they are needed, functions looked up once."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

from iree.runtime import VmFunction, VmVariantList

from iq.errors import BytecodeError, DeviceError, IqError, NoKernelError
from iq.kernels import KernelSpec
from iq.runtime.arrays import check_sizes
from iq.runtime.buffer import Buffer
from iq.runtime.hal import Hal, Module
from iq.targets import DeviceId, Target

# A vmfb: a file, or its bytes in mapped memory.
ModuleSource = Path | memoryview


class Provider(Protocol):
    """Where kernels come from: a bundle on disk, or the compiler."""

    def target(self, device_id: DeviceId, cpu_flags: frozenset[str]) -> Target:
        """The target whose modules the device runs. Raises NoArtifactError when there is none."""

    def module(self, target: Target, format: str) -> ModuleSource:
        """The module that holds a format's kernels for a target. Raises NoKernelError when there is none."""


class Kernel:
    """One function of a module."""

    __slots__ = ("_function", "_module", "_sizes", "key")

    def __init__(self, spec: KernelSpec, module: Module, function: VmFunction) -> None:
        self.key = spec.key
        self._sizes = spec.definition.sizes
        self._module = module
        self._function = function

    def __call__(self, inputs: Sequence[Buffer], sizes: dict[str, int], outputs: Sequence[Buffer]) -> None:
        """Run it on inputs, sizes by name, and the buffers that results land in (see `iq.kernels.Op`). Returns when it is done.

        The caller has checked dtypes and lengths. Raises LayoutError for a misaligned buffer, ShapeError for a size over 31 bits,
        DeviceError when the device fails, or what an emulated device failed for.
        """
        check_sizes(self.key, **sizes)
        arguments, results = VmVariantList(len(inputs) + len(sizes) + len(outputs)), VmVariantList(len(outputs))
        for buffer in inputs:
            arguments.push_ref(buffer.argument())
        for name in self._sizes:
            arguments.push_int(sizes[name])
        for buffer in outputs:
            arguments.push_ref(buffer.argument())
        try:
            self._module.invoke(self._function, arguments, results)
        except IqError:
            raise
        except Exception as error:  # IREE's statuses come as various built-in exceptions
            raise DeviceError(f"{self.key} failed: {error}") from error
        finally:
            del arguments, results  # IREE crashes on arguments that a traceback has kept until after the device


class Library:
    """A provider's kernels, opened on a device. Safe to use from several threads."""

    def __init__(self, hal: Hal, device: DeviceId, cpu_flags: frozenset[str], provider: Provider) -> None:
        self._hal = hal
        self._device = device
        self._cpu_flags = cpu_flags
        self._provider = provider
        self._modules: dict[str, Module] = {}
        self._kernels: dict[KernelSpec, Kernel] = {}
        self._loading = threading.Lock()

    @cached_property
    def target(self) -> Target:
        """The target whose kernels the device runs. Raises NoArtifactError when the provider has none for it."""
        return self._provider.target(self._device, self._cpu_flags)

    def kernel(self, spec: KernelSpec) -> Kernel:
        """A kernel, loading its module at first. Raises NoArtifactError, NoKernelError, BytecodeError or what the provider raises."""
        kernel = self._kernels.get(spec)
        if kernel is None:
            with self._loading:
                kernel = self._kernels.setdefault(spec, self._look_up(spec))
        return kernel

    def _look_up(self, spec: KernelSpec) -> Kernel:
        module = self._modules.get(spec.format)
        if module is None:
            source = self._provider.module(self.target, spec.format)
            try:
                module = self._modules[spec.format] = self._hal.load(source)
            except IqError:
                raise
            except Exception as error:  # IREE's statuses come as various built-in exceptions
                where = source if isinstance(source, Path) else f"{spec.format} module"
                raise BytecodeError(f"IREE cannot load the {self.target.id} kernels of {where} on {self._device}: {error}") from error
        function = module.lookup(spec.key)
        if function is None:
            raise NoKernelError(f"no kernel {spec.key} for {self.target.id}: its {spec.format} module lacks it; compile it again")
        return Kernel(spec, module, function)
