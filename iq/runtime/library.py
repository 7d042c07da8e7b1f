"""The kernels that a device can run: modules loaded as they are needed, kernels looked up once."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, Protocol

from iq.bundle import Launches, Module
from iq.errors import DeviceError, NoKernelError, ShapeError
from iq.kernels import KernelSpec
from iq.runtime.arrays import check_sizes
from iq.runtime.backend import Backend, Code, Prepared
from iq.runtime.buffer import Buffer
from iq.targets import DeviceId, Target


class Provider(Protocol):
    """Where kernels come from: a bundle on disk, or the compiler."""

    def target(self, device_id: DeviceId, cpu_flags: frozenset[str]) -> Target:
        """The target whose modules the device runs. Raises NoArtifactError when there is none."""

    def module(self, target: Target, spec: KernelSpec) -> Module:
        """A module for a target that holds a kernel, and perhaps others. Raises NoKernelError when there is none."""


class Sized(NamedTuple):
    """A kernel for given sizes, and the bytes that it takes of each input and output."""

    prepared: Prepared
    lengths: tuple[int, ...]


class Kernel:
    """A kernel of a module. key: its own. `sized` gives it for numbers for its sizes, in the order of its launches' `sizes`."""

    def __init__(self, key: str, launches: Launches, code: Code) -> None:
        self._key = key
        self._launches = launches
        self._tensors = (*launches.inputs, *launches.outputs)
        self._prepare = code.kernel(key)
        self.sized = lru_cache(256)(self._sized)  # models call with the same sizes again and again

    @property
    def key(self) -> str:
        return self._key

    def _sized(self, numbers: tuple[int, ...]) -> Sized:
        named = dict(zip(self._launches.sizes, numbers, strict=True))
        check_sizes(self._key, **named)
        sizes = self._launches.all_sizes(named)
        return Sized(self._prepare(numbers), tuple(tensor.nbytes(sizes) for tensor in self._tensors))

    def __call__(self, inputs: Sequence[Buffer], sizes: dict[str, int], outputs: Sequence[Buffer], stream: Any = None) -> None:
        """Run it on inputs, sizes by name, and the buffers that results land in (see `iq.kernels.Op`).

        stream: of the buffers' device (Device.stream_of). On a GPU it returns at once: what fails there later is raised by a later call.
        The caller has checked dtypes, and that ids are within the tensor. Raises ShapeError for a buffer that is shorter than the sizes
        take or a size over 31 bits, LayoutError for a misaligned buffer, DeviceError when the device fails or is another than a buffer's,
        or what an emulated device failed for.
        """
        launches = self._launches
        if (len(inputs), len(outputs)) != (len(launches.inputs), len(launches.outputs)):
            raise DeviceError(
                f"{self._key} failed: it takes {len(launches.inputs)} inputs and {len(launches.outputs)} outputs, "
                f"got {len(inputs)} and {len(outputs)}"
            )
        prepared, lengths = self.sized(tuple(sizes[name] for name in launches.sizes))
        buffers = (*inputs, *outputs)
        device = buffers[0].device
        for tensor, buffer, needed in zip(self._tensors, buffers, lengths, strict=True):
            if buffer.nbytes < needed:
                raise ShapeError(f"{self._key}: {tensor.name} has {buffer.nbytes} bytes; for {sizes} it takes {needed}")
            if buffer.device is not device:
                raise DeviceError(f"{self._key} failed: {buffer!r} is a buffer of another device than {device!r}")
            buffer.check_aligned()
        prepared.launch(buffers, device.stream_of(stream))


class Library:
    """A provider's kernels, opened on a device. Safe to use from several threads."""

    def __init__(self, backend: Backend, provider: Provider) -> None:
        self._backend = backend
        self._provider = provider
        self._loaded: dict[str, tuple[Module, Code]] = {}  # by the keys of the kernels that a module holds
        self._kernels: dict[KernelSpec, Kernel] = {}
        self._loading = threading.Lock()

    @cached_property
    def target(self) -> Target:
        """The target whose kernels the device runs. Raises NoArtifactError when the provider has none for it."""
        return self._provider.target(self._backend.id, self._backend.cpu_flags)

    def kernel(self, spec: KernelSpec) -> Kernel:
        """A kernel, loading its module at first. Raises NoArtifactError, NoKernelError, BytecodeError or what the provider raises."""
        kernel = self._kernels.get(spec)
        if kernel is None:
            self._backend.check_usable()  # in a forked child, the thread that would unlock this may not be there
            with self._loading:
                kernel = self._kernels.setdefault(spec, self._look_up(spec))
        return kernel

    def _look_up(self, spec: KernelSpec) -> Kernel:
        if spec.key not in self._loaded:
            module = self._provider.module(self.target, spec)
            if spec.key not in module.launches:
                raise NoKernelError(f"no kernel {spec.key} for {self.target.id}: {module.where} lacks it; compile it again")
            loaded = module, self._backend.load(module)
            self._loaded = dict.fromkeys(module.launches, loaded) | self._loaded
        module, code = self._loaded[spec.key]
        launches = module.launches[spec.key]
        op = spec.definition
        expected = tuple(t.name for t in op.inputs), op.sizes, tuple(t.name for t in op.outputs)
        if (tuple(t.name for t in launches.inputs), launches.sizes, tuple(t.name for t in launches.outputs)) != expected:
            raise NoKernelError(f"{module.where}: {spec.key} takes other arguments than this version of iq gives it; compile it again")
        return Kernel(spec.key, launches, code)
