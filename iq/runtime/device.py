"""A device: memory on it, and the kernels it can run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from iq.errors import LayoutError, ShapeError
from iq.runtime.arrays import Array, bytes_of, check_array, check_shape
from iq.runtime.buffer import Buffer
from iq.runtime.drivers import HipRuntime, open_device, open_hip
from iq.runtime.dtypes import dtype_of
from iq.runtime.library import Library, Provider
from iq.runtime.memory import DeviceMemory, HostMemory, Memory, is_aligned
from iq.targets import DeviceId, Target

# More bytes than any device has: what is asked for beyond is a mistake in a shape.
MAX_BYTES = 1 << 46


class Device:
    """An open device. Safe to use from several threads; kernels called at once run one after another or side by side, as the device can.

    name: in full ("cpu", "cuda:0"). id: what it says it is. library: its kernels. None of these can be set.
    A process that is forked from one that opened a device cannot use it; it can open its own.
    Every CPU device has threads of its own, as many as it was opened with; to change their number, open another device.
    """

    def __init__(self, spec: str | HipRuntime = "cpu", *, provider: Provider, threads: int | None = None) -> None:
        """Open "cpu", "cuda", "cuda:N", "hip" or "hip:N"; or the device of another HIP runtime than this machine's.

        provider: where kernels come from; asked at the first use of a kernel.
        threads: of a CPU device; 1 runs kernels in the calling thread, None is one for each core.
        Raises DeviceError when the device cannot be had; never opens another one instead.
        """
        opened = open_hip(spec) if isinstance(spec, HipRuntime) else open_device(spec, threads)
        self._name = opened.name
        self._id = opened.id
        self._hal = opened.hal
        self._library = Library(self._hal, opened.id, opened.cpu_flags, provider)

    def __repr__(self) -> str:
        return f"Device({self.name!r})"

    @property
    def name(self) -> str:
        return self._name

    @property
    def id(self) -> DeviceId:
        return self._id

    @property
    def library(self) -> Library:
        return self._library

    @property
    def target(self) -> Target:
        """The target whose kernels it runs. Raises NoArtifactError when the provider has none for it."""
        return self.library.target

    @property
    def is_cpu(self) -> bool:
        return self.name == "cpu"

    def alloc(self, shape: int | Sequence[int], dtype: Any) -> Buffer:
        """An uninitialised buffer. Raises ShapeError, DtypeError, or DeviceError when there is no memory for it."""
        element, dims = dtype_of(dtype), check_shape(shape, "alloc")
        nbytes = math.prod(dims) * element.itemsize
        if nbytes > MAX_BYTES:
            raise ShapeError(f"alloc: a buffer of shape {dims} and type {element.name} has {nbytes} bytes, more than any device")
        return Buffer(self, self._allocate(nbytes), 0, dims, element)

    def zeros(self, shape: int | Sequence[int], dtype: Any) -> Buffer:
        """A buffer of zeros. Raises as `alloc` does."""
        buffer = self.alloc(shape, dtype)
        buffer.fill_zero()
        return buffer

    def put(self, array: Array, *, copy: bool | None = True) -> Buffer:
        """A C-contiguous array as a buffer of the same shape and dtype.

        copy: True copies it. False shares the array's memory, so that each sees what is written to the other, and raises LayoutError
        where that cannot be: on a GPU, and for arrays that are read-only or do not start on a 64-byte boundary. None shares if it can.
        Shared arrays are kept alive by the buffer. Raises DtypeError, LayoutError or DeviceError.
        """
        element = dtype_of(check_array(array, "put").dtype)
        shareable = self.is_cpu and array.flags.writeable and is_aligned(array) and array.size > 0
        if copy is False and not shareable:
            raise LayoutError(
                f"put: cannot share an array of shape {array.shape} with {self!r}: it takes a CPU device, and a writable array "
                "that is not empty and starts on a 64-byte boundary; use copy=None or copy=True"
            )
        if shareable and not copy:
            return Buffer(self, HostMemory(self._hal, bytes_of(array)), 0, array.shape, element)
        buffer = self.alloc(array.shape, element)
        buffer.copy_from(array)
        return buffer

    def _allocate(self, nbytes: int) -> Memory:
        return HostMemory.allocate(self._hal, nbytes) if self.is_cpu else DeviceMemory(self._hal, nbytes)
