"""A device: memory on it, and the kernels it can run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

from iq.errors import DeviceError, LayoutError, ShapeError
from iq.runtime.arrays import Array, check_array, check_shape
from iq.runtime.buffer import Buffer
from iq.runtime.dtypes import Dtype, dtype_of
from iq.runtime.hip import HipRuntime
from iq.runtime.library import Library, Provider
from iq.runtime.memory import is_aligned
from iq.runtime.opening import open_backend
from iq.targets import DeviceId, Target

# More bytes than any device has: what is asked for beyond is a mistake in a shape.
MAX_BYTES = 1 << 46


class Device:
    """An open device. Safe to use from several threads; kernels called at once run one after another or side by side, as the device can.

    name: in full ("cpu", "cuda:0"). id: what it says it is. library: its kernels. runtime: how they run, "launch" or "iree".
    None of these can be set. A process that is forked from one that opened a device cannot use it; it can open its own.

    On a GPU whatever enqueues work returns at once: kernels, copies within the device, copies to it. They happen in order on the device's
    own stream, or on the one that a call names as `stream`: one of `stream()`, or a driver's handle as an integer. Reading a buffer on the
    host waits for what was enqueued with it. Between streams, `Stream.wait` gives an order. On a CPU all is done when a call returns.
    """

    def __init__(
        self, spec: str | HipRuntime = "cpu", *, provider: Provider, threads: int | None = None, runtime: str | None = None
    ) -> None:
        """Open "cpu", "cuda", "cuda:N", "hip" or "hip:N"; or the device of another HIP runtime than this machine's.

        provider: where kernels come from; asked at the first use of a kernel.
        threads: of a CPU device; 1 runs kernels in the calling thread, None is one for each core.
        runtime: "iree" runs a GPU's kernels through IREE's runtime: the other way, slower, without streams and graphs. None is the default.
        Raises DeviceError when the device cannot be had; never opens another one instead.
        """
        self._backend = open_backend(spec, threads, runtime)
        self._alignment = self._backend.alignment
        self._library = Library(self._backend, provider)

    def __repr__(self) -> str:
        return f"Device({self.name!r})"

    @property
    def name(self) -> str:
        return self._backend.name

    @property
    def id(self) -> DeviceId:
        return self._backend.id

    @property
    def library(self) -> Library:
        return self._library

    @property
    def runtime(self) -> str:
        return self._backend.runtime

    @property
    def usable(self) -> bool:
        """Whether it can still be used: not once it is lost, nor in a process that was forked from the one that opened it."""
        try:
            self._backend.check_usable()
        except DeviceError:
            return False
        return True

    @property
    def alignment(self) -> int:
        """The boundary, in bytes, that buffers have to start on for kernels."""
        return self._alignment

    @property
    def target(self) -> Target:
        """The target whose kernels it runs. Raises NoArtifactError when the provider has none for it."""
        return self.library.target

    @property
    def is_cpu(self) -> bool:
        return self.name == "cpu"

    @cached_property
    def dlpack_device(self) -> tuple[int, int] | None:
        """DLPack's type and number of it; None for a GPU through IREE's runtime, which does not say where memory lies."""
        from iq.runtime.foreign import dlpack_device  # as in from_dlpack

        return dlpack_device(self._backend)

    # ---- Streams

    def stream(self) -> Any:
        """A new stream of the device. Raises DeviceError."""
        return self._backend.create_stream()

    def stream_of(self, stream: Any) -> Any:
        """The stream that a call named: one of this device's, the driver's handle of any, None for its own. Raises DeviceError."""
        return self._backend.stream(stream)

    def synchronize(self) -> None:
        """Wait until everything enqueued on the device is done. Raises DeviceError where that failed."""
        self._backend.synchronize()

    def capture(self, stream: Any = None) -> AbstractContextManager[Any]:
        """`with device.capture() as graph:` records what this thread enqueues as a graph, instead of running it; see `Graph.launch`.

        stream: one of `stream()` to record on; by default one of its own. Calls that name no stream go there meanwhile.
        What cannot be in a graph raises DeviceError with the reason: copies from and to the host, waits, kernels that are not loaded yet
        (call them once before). Buffers that are made meanwhile belong to the graph as well as to their users.
        """
        return self._backend.capture(stream)

    # ---- Memory

    def alloc(self, shape: int | Sequence[int], dtype: Any, *, stream: Any = None) -> Buffer:
        """An uninitialised buffer. Raises ShapeError, DtypeError, or DeviceError when there is no memory for it.

        stream: on which it is to be used first.
        """
        element, dims = dtype_of(dtype), check_shape(shape, "alloc")
        nbytes = math.prod(dims) * element.itemsize
        if nbytes > MAX_BYTES:
            raise ShapeError(f"alloc: a buffer of shape {dims} and type {element.name} has {nbytes} bytes, more than any device")
        return Buffer(self, self._backend.allocate(nbytes, self._backend.stream(stream)), 0, dims, element)

    def empty(self, shape: tuple[int, ...], dtype: Dtype, stream: Any) -> Buffer:
        """For this package: `alloc` without its checks; `stream` is what `stream_of` gave."""
        return Buffer(self, self._backend.allocate(math.prod(shape) * dtype.itemsize, stream), 0, shape, dtype)

    def zeros(self, shape: int | Sequence[int], dtype: Any, *, stream: Any = None) -> Buffer:
        """A buffer of zeros. Raises as `alloc` does."""
        buffer = self.alloc(shape, dtype, stream=stream)
        buffer.fill_zero(stream=stream)
        return buffer

    def put(self, array: Array, *, copy: bool | None = True, stream: Any = None) -> Buffer:
        """A C-contiguous array as a buffer of the same shape and dtype. The array may change once this returns, unless it is shared.

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
        if shareable and not copy and (shared := self._backend.share(array)) is not None:
            return Buffer(self, shared, 0, array.shape, element)
        buffer = self.alloc(array.shape, element, stream=stream)
        buffer.copy_from(array, stream=stream)
        return buffer

    def from_dlpack(self, array: Any, *, copy: bool | None = None, stream: Any = None) -> Buffer:
        """An array of another library (with `__dlpack__`: torch, CuPy, JAX, numpy) as a buffer of the same shape and dtype.

        copy: False shares its memory, so that each sees what is written to the other. That takes an array on the same device that is
        neither read-only nor off the boundary of `alignment`; else it raises DeviceError for another device, LayoutError for the rest.
        True copies it, None where it cannot be shared; from another device a copy goes through the host. What its library has enqueued
        for the array comes first. A shared array is kept alive until all that iq has enqueued with it is done.
        stream: on which the buffer is to be used first. Raises DtypeError or LayoutError for elements and strides that no buffer has,
        DeviceError, and BufferError where its library refuses.
        """
        from iq.runtime.foreign import take  # here, for it takes in the GPUs' part, which a CPU does without

        return take(self, self._backend, array, copy, stream)

    def borrow(self, array: Any, stream: Any = None) -> Buffer:
        """For this package: as `from_dlpack`, to be read only."""
        from iq.runtime.foreign import take

        return take(self, self._backend, array, None, stream, writable=False)
