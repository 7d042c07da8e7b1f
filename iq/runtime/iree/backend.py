"""A device of IREE, as `iq.runtime.backend` wants it: its memory, its modules, and streams on which everything is done at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from iq.bundle import Module
from iq.errors import BytecodeError, DeviceError, NoKernelError
from iq.runtime.arrays import Array, bytes_of
from iq.runtime.iree.hal import BufferArgument, Hal
from iq.runtime.iree.memory import DeviceMemory, HostMemory
from iq.runtime.iree.ownership import Handle, iree_errors
from iq.runtime.memory import ALIGNMENT
from iq.targets import DeviceId

if TYPE_CHECKING:
    from iq.runtime.buffer import Buffer


class Stream:
    """A stream of a device that runs everything at once: there is never anything to wait for."""

    def __init__(self, backend: IreeBackend) -> None:
        self._backend = backend

    def __repr__(self) -> str:
        return f"Stream({self._backend.name!r})"

    def synchronize(self) -> None:
        """Everything is done already. Raises DeviceError where the device can no longer be used."""
        self._backend.check_usable()

    def wait(self, other: Stream) -> None:
        """Everything is done already. Raises DeviceError for a stream of another device."""
        self._backend.stream(other)


class IreeBackend:
    """See iq.runtime.backend."""

    runtime = "iree"
    alignment = ALIGNMENT

    def __init__(self, name: str, hal: Hal, id: DeviceId, cpu_flags: frozenset[str] = frozenset()) -> None:
        self.name, self.hal, self.id, self.cpu_flags = name, hal, id, cpu_flags

    def check_usable(self) -> None:
        self.hal.check_usable()

    def load(self, module: Module) -> Code:
        self.check_usable()
        with iree_errors(BytecodeError, f"IREE cannot load the kernels of {module.where} on {self.name}, a {self.id}"):
            return Code(self.hal, module, self.hal.load(module.vmfb))

    def allocate(self, nbytes: int, stream: Any) -> HostMemory | DeviceMemory:
        return HostMemory.allocate(self.hal, nbytes) if self.name == "cpu" else DeviceMemory(self.hal, nbytes)

    def share(self, array: Array) -> HostMemory | None:
        return HostMemory(self.hal, bytes_of(array)) if self.name == "cpu" else None

    def stream(self, given: Any) -> Stream | None:
        if given is None or (isinstance(given, Stream) and given._backend is self):
            return given
        raise DeviceError(f"{given!r} is no stream of {self.name}, which has none but those of Device.stream() and runs all at once")

    def create_stream(self) -> Stream:
        return Stream(self)

    def synchronize(self) -> None:
        self.check_usable()

    def capture(self, stream: Any) -> AbstractContextManager[Any]:
        raise DeviceError(f"{self.name} has no graphs through IREE's runtime: GPUs have, as Device(..., runtime='launch') opens them")


class Code:
    """A loaded module."""

    def __init__(self, hal: Hal, module: Module, handle: Handle) -> None:
        self._hal, self._module, self._handle = hal, module, handle

    def kernel(self, key: str) -> Callable[[tuple[int, ...]], Call]:
        """Makes the calls of a kernel for numbers for its sizes. Raises NoKernelError."""
        launches = self._module.launches.get(key)
        if launches is None or not self._hal.has_function(self._handle, key):
            raise NoKernelError(f"no kernel {key} in {self._module.where}; compile it again")
        inputs, outputs = len(launches.inputs), len(launches.outputs)
        return lambda numbers: Call(self._hal, self._handle, key, inputs, outputs, numbers)


class Call:
    """A kernel's function with its sizes."""

    __slots__ = ("_hal", "_handle", "_inputs", "_key", "_numbers", "_outputs")

    def __init__(self, hal: Hal, handle: Handle, key: str, inputs: int, outputs: int, numbers: tuple[int, ...]) -> None:
        self._hal, self._handle, self._key, self._inputs, self._outputs, self._numbers = hal, handle, key, inputs, outputs, numbers

    def launch(self, buffers: Sequence[Buffer], stream: Any) -> None:
        """Call it with these inputs and outputs. Returns when it is done. Raises DeviceError, or what an emulated device failed for."""
        given = [BufferArgument(b.memory.handle, b.offset, b.nbytes, b.size, b.element) for b in buffers]
        with iree_errors(DeviceError, f"{self._key} failed"):
            self._hal.call(self._handle, self._key, [*given[: self._inputs], *self._numbers, *given[self._inputs :]], self._outputs)
