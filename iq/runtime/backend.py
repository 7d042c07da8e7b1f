"""The two ways to run kernels, as devices see them: `iq.runtime.gpu` launches them itself, `iq.runtime.iree` calls IREE's runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from iq.bundle import Module
from iq.runtime.arrays import Array
from iq.runtime.memory import Memory
from iq.targets import DeviceId


class Prepared(Protocol):
    """A kernel for given sizes."""

    def launch(self, buffers: Sequence[Any], stream: Any) -> None:
        """Run it with these buffers, inputs and then outputs, which have been checked. Raises DeviceError."""


class Code(Protocol):
    """A loaded module."""

    def kernel(self, key: str) -> Callable[[tuple[int, ...]], Prepared]:
        """Prepares a kernel for numbers for its sizes, in the order of its launches' `sizes`. Raises NoKernelError.

        What it gives raises ShapeError for sizes that cannot be launched.
        """


class Backend(Protocol):
    """An open device.

    name: in full ("cuda:0"). id: what artifacts are matched against. cpu_flags: of /proc/cpuinfo, empty for GPUs.
    runtime: "launch" or "iree". alignment: the boundary, in bytes, that buffers have to start on for kernels.
    """

    name: str
    id: DeviceId
    cpu_flags: frozenset[str]
    runtime: str
    alignment: int

    def check_usable(self) -> None:
        """Raises DeviceError where the device can no longer be used."""

    def load(self, module: Module) -> Code:
        """Load a module. Raises BytecodeError or DeviceError."""

    def allocate(self, nbytes: int, stream: Any) -> Memory:
        """Uninitialised memory, to be used first on a stream. Raises DeviceError when it cannot be had."""

    def share(self, array: Array) -> Memory | None:
        """An aligned, writable array as memory of the device, in place; None where that cannot be."""

    def stream(self, given: Any) -> Any:
        """The stream that a caller named: one of this device's, a raw handle, or None for the device's own. Raises DeviceError."""

    def create_stream(self) -> Any:
        """A new stream."""

    def synchronize(self) -> None:
        """Wait until everything enqueued on the device is done."""

    def capture(self, stream: Any) -> AbstractContextManager[Any]:
        """Capture what is enqueued as a graph. Raises DeviceError."""
