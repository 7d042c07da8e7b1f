"""The kernels that a device can run: modules loaded as they are needed, functions looked up once."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Protocol

from iq.errors import BytecodeError, DeviceError, NoKernelError, ShapeError
from iq.kernels import KernelSpec
from iq.runtime.arrays import check_sizes
from iq.runtime.buffer import Buffer
from iq.runtime.hal import BufferArgument, Hal
from iq.runtime.ownership import Handle, iree_errors
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

    def __init__(self, spec: KernelSpec, hal: Hal, module: Handle) -> None:
        op = spec.definition
        tensors = (*op.inputs, *op.outputs)

        @lru_cache(256)  # models call with the same sizes again and again
        def lengths(sizes: tuple[int, ...]) -> tuple[int, ...]:
            named = dict(zip(op.sizes, sizes, strict=True))
            check_sizes(spec.key, **named)
            return tuple(spec.nbytes(tensor, named) for tensor in tensors)

        self._key = spec.key
        self._op = op
        self._tensors = tensors
        self._lengths = lengths
        self._hal = hal
        self._module = module

    @property
    def key(self) -> str:
        return self._key

    def __call__(self, inputs: Sequence[Buffer], sizes: dict[str, int], outputs: Sequence[Buffer]) -> None:
        """Run it on inputs, sizes by name, and the buffers that results land in (see `iq.kernels.Op`). Returns when it is done.

        The caller has checked dtypes, and that ids are within the tensor. Raises ShapeError for a buffer that is shorter than the sizes
        take or a size over 31 bits, LayoutError for a misaligned buffer, DeviceError when the device fails or is another than a buffer's,
        or what an emulated device failed for.
        """
        op = self._op
        if (len(inputs), len(outputs)) != (len(op.inputs), len(op.outputs)):
            raise DeviceError(
                f"{self._key} failed: it takes {len(op.inputs)} inputs and {len(op.outputs)} outputs, got {len(inputs)} and {len(outputs)}"
            )
        numbers = tuple(sizes[name] for name in op.sizes)
        for tensor, buffer, needed in zip(self._tensors, (*inputs, *outputs), self._lengths(numbers), strict=True):
            if buffer.nbytes < needed:
                raise ShapeError(f"{self._key}: {tensor.name} has {buffer.nbytes} bytes; for {sizes} it takes {needed}")
        arguments: list[BufferArgument | int] = [*(b.argument() for b in inputs), *numbers, *(b.argument() for b in outputs)]
        with iree_errors(DeviceError, f"{self._key} failed"):
            self._hal.call(self._module, self._key, arguments, len(outputs))


class Library:
    """A provider's kernels, opened on a device. Safe to use from several threads."""

    def __init__(self, hal: Hal, device: DeviceId, cpu_flags: frozenset[str], provider: Provider) -> None:
        self._hal = hal
        self._device = device
        self._cpu_flags = cpu_flags
        self._provider = provider
        self._modules: dict[str, Handle] = {}
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
            self._hal.check_usable()  # in a forked child, the thread that would unlock this may not be there
            with self._loading:
                kernel = self._kernels.setdefault(spec, self._look_up(spec))
        return kernel

    def _look_up(self, spec: KernelSpec) -> Kernel:
        module = self._modules.get(spec.format)
        if module is None:
            source = self._provider.module(self.target, spec.format)
            where = source if isinstance(source, Path) else f"{spec.format} module"
            with iree_errors(BytecodeError, f"IREE cannot load the {self.target.id} kernels of {where} on {self._device}"):
                module = self._modules[spec.format] = self._hal.load(source)
        if not self._hal.has_function(module, spec.key):
            raise NoKernelError(f"no kernel {spec.key} for {self.target.id}: its {spec.format} module lacks it; compile it again")
        return Kernel(spec, self._hal, module)
