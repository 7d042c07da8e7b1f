"""Typed buffers on a device, and slices and views of them that share memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from iq.errors import DeviceError, DtypeError, LayoutError, ShapeError
from iq.runtime import dlpack
from iq.runtime.arrays import Array, Bytes, bytes_of, check_array, check_shape
from iq.runtime.dtypes import Dtype, dtype_of
from iq.runtime.memory import address_of

if TYPE_CHECKING:
    from iq.runtime.device import Device


class Buffer:
    """A dense array on a device. Made by `Device.alloc`, `zeros` and `put`, and by ops.

    device: where it lives. shape: a tuple. size, nbytes: how many elements, and bytes.
    dtype: what numpy calls its elements. element: the same as kernels spell it ("f32", "bf16"). None of these can be set.
    Slices, views and reshapes share memory with the buffer they are made of and keep it alive.
    """

    __slots__ = ("_device", "_dtype", "_nbytes", "_shape", "_size", "address", "layout", "memory", "offset")

    def __init__(self, device: Device, memory: Any, offset: int, shape: tuple[int, ...], dtype: Dtype) -> None:
        """For this package: the part of `memory` that starts `offset` bytes in and is as long as shape and dtype say.

        address: where it starts, for the device; 0 where that is not known. layout: shape, dtype and whether it starts where kernels can
        take it: what caches of checks go by.
        """
        self._device = device
        self._shape = shape
        self._size = math.prod(shape)
        self._nbytes = self._size * dtype.itemsize
        self.memory = memory
        self.offset = offset
        self.address = memory.address + offset if memory.address else 0
        self.layout = (shape, dtype.name, (self.address or offset) % device.alignment == 0)
        self._dtype = dtype

    @property
    def device(self) -> Device:
        return self._device

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def size(self) -> int:
        return self._size

    @property
    def nbytes(self) -> int:
        return self._nbytes

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._dtype.numpy

    @property
    def element(self) -> str:
        return self._dtype.name

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a buffer of shape () has no length")
        return self.shape[0]

    def __repr__(self) -> str:
        return f"Buffer(shape={self.shape}, dtype={self.element}, device={self.device.name})"

    # ---- To and from the host

    def numpy(self) -> Array:
        """A copy on the host, of this buffer's shape and dtype, after all that was enqueued with its memory."""
        return self._typed(self.memory.read(self.offset, self.nbytes))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """numpy's protocol. On the CPU `np.asarray(buffer)` shares the buffer's memory; on a GPU it is a copy."""
        shared = None if copy else self.memory.host(self.offset, self.nbytes)
        if shared is None and copy is False:
            raise ValueError(f"{self!r} cannot be seen by numpy without a copy")
        array = self.numpy() if shared is None else self._typed(shared)
        return array if dtype is None else array.astype(dtype, copy=False)

    def copy_from(self, source: Array | Buffer, *, stream: Any = None) -> None:
        """Overwrite this buffer with an array, or with a buffer of the same device, of the same shape and dtype.

        An array may change once this returns. Raises ShapeError, DtypeError, LayoutError (an array that is not C-contiguous) or DeviceError
        (a buffer of another device).
        """
        on = self.device.stream_of(stream)
        if not isinstance(source, Buffer):
            check_array(source, "copy_from")
            self._check_like(tuple(source.shape), dtype_of(source.dtype))
            if source.size:
                self.memory.write(self.offset, bytes_of(source), on)
            return
        if source.device is not self.device:
            raise DeviceError(f"copy_from: {source!r} is on another device than {self!r}; copy_from(source.numpy()) crosses over")
        self._check_like(source.shape, source._dtype)
        if self.overlaps(source):
            source = source.copy(stream=stream)
        if self.size:
            self.memory.copy_within(self.offset, source.memory, source.offset, self.nbytes, on)

    def fill_zero(self, *, stream: Any = None) -> None:
        """Overwrite this buffer with zeros."""
        if self.size:
            self.memory.fill_zero(self.offset, self.nbytes, self.device.stream_of(stream))

    def copy(self, *, stream: Any = None) -> Buffer:
        """A buffer of its own with the same contents, on the same device."""
        duplicate = self.device.alloc(self.shape, self._dtype, stream=stream)
        duplicate.copy_from(self, stream=stream)
        return duplicate

    def _typed(self, data: Bytes) -> Array:
        return data.view(self._dtype.numpy).reshape(self.shape)

    def _check_like(self, shape: tuple[int, ...], dtype: Dtype) -> None:
        if shape != self.shape:
            raise ShapeError(f"copy_from: got shape {shape}, this buffer has {self.shape}")
        if dtype is not self._dtype:
            raise DtypeError(f"copy_from: got {dtype.name} elements, this buffer holds {self.element}")

    # ---- To other libraries

    def __dlpack_device__(self) -> tuple[int, int]:
        """DLPack's type and number of the device. Raises BufferError for a GPU through IREE's runtime."""
        device = self.device.dlpack_device
        if device is None:
            raise BufferError(
                f"{self!r} cannot be shared: {self.device.name} runs through IREE's runtime, which does not say where memory lies; "
                "open the device with runtime='launch', or copy by numpy()"
            )
        return device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object:
        """DLPack's protocol, for `torch.from_dlpack(buffer)` and the like: a capsule that shares the memory.

        stream: the consumer's, which is made to wait for what has been enqueued with the memory; None is the default stream, -1 none at
        all. dl_device: the CPU, in place of the buffer's own device, for a copy there. Raises BufferError for what cannot be had.
        """
        device = self.__dlpack_device__()
        versioned = dlpack.negotiate(max_version)
        if dl_device is not None and (int(dl_device[0]), int(dl_device[1])) != device:
            if dl_device[0] != dlpack.CPU or copy is False:
                raise BufferError(f"{self!r} can be had in place, or as a copy on the CPU; not on DLPack's device {dl_device}, copy={copy}")
            host = self.numpy()
            return dlpack.export(address_of(host), self.shape, self.element, (dlpack.CPU, 0), host, readonly=False, versioned=versioned)
        shared = self.copy() if copy else self
        if device[0] != dlpack.CPU:
            if stream != -1:
                shared.memory.before(self.device.stream_of(_consumers(stream, device[0])))
            shared.memory.export()
        return dlpack.export(shared.address, self.shape, self.element, device, shared.memory, readonly=False, versioned=versioned)

    # ---- Slices and views

    def __getitem__(self, index: int | slice) -> Buffer:
        """`buffer[i]` and `buffer[i:j]` on the first axis. Raises IndexError, or LayoutError for a step other than 1."""
        n, row = len(self), self.shape[1:]
        row_bytes = math.prod(row) * self._dtype.itemsize
        if not isinstance(index, slice):
            return self._at(range(n)[index] * row_bytes, row, self._dtype)
        start, stop, step = index.indices(n)
        if step != 1:
            raise LayoutError(f"a slice of a buffer is dense: got step {step}, only 1 is possible")
        return self._at(start * row_bytes, (max(0, stop - start), *row), self._dtype)

    def view(self, dtype: Any) -> Buffer:
        """The same bytes as another element type; the last axis is as much longer or shorter.

        Raises ShapeError when the last axis is no whole number of the new elements, LayoutError when the buffer starts between two of them.
        """
        new = dtype_of(dtype)
        shape = self.shape
        if new.itemsize != self._dtype.itemsize:
            row_bytes = (shape[-1] if shape else 1) * self._dtype.itemsize
            if not shape or row_bytes % new.itemsize:
                raise ShapeError(f"view: the last axis of {self!r} has {row_bytes} bytes, no whole number of {new.name}")
            shape = (*shape[:-1], row_bytes // new.itemsize)
        if self.offset % new.itemsize:
            raise LayoutError(f"view: {self!r} starts at byte {self.offset} of its allocation, between two {new.name}; copy() it first")
        return self._at(0, shape, new)

    def reshape(self, shape: int | Sequence[int]) -> Buffer:
        """The same elements in another shape; one -1 stands for what is left. Raises ShapeError when the elements do not fill it."""
        dims = list(shape) if isinstance(shape, Iterable) else [shape]
        left = [axis for axis, n in enumerate(dims) if isinstance(n, int | np.integer) and n == -1]
        if len(left) == 1 and (known := math.prod(check_shape([*dims[: left[0]], *dims[left[0] + 1 :]], "reshape"))):
            dims[left[0]] = self.size // known
        wanted = check_shape(dims, "reshape")
        if math.prod(wanted) != self.size:
            raise ShapeError(f"reshape: {self!r} has {self.size} elements, the shape {wanted} takes {math.prod(wanted)}")
        return self._at(0, wanted, self._dtype)

    def _at(self, offset: int, shape: tuple[int, ...], dtype: Dtype) -> Buffer:
        return Buffer(self.device, self.memory, self.offset + offset, shape, dtype)

    # ---- To kernels

    def overlaps(self, *others: Buffer) -> bool:
        """Whether it shares bytes with any of the others."""
        start, nbytes = self.address or self.offset, self._nbytes
        for other in others:
            its, other_nbytes = other.address or other.offset, other._nbytes
            if (
                its < start + nbytes
                and start < its + other_nbytes
                and nbytes
                and other_nbytes
                and (self.address or self.memory is other.memory)  # without addresses, places in one allocation are compared
            ):
                return True
        return False

    def check_aligned(self) -> None:
        """Raises LayoutError when it starts off the boundary that kernels are compiled for."""
        if not self.layout[2]:
            raise LayoutError(
                f"{self!r} starts at byte {self.offset} of its allocation; kernels need a multiple of {self.device.alignment}: "
                "pass a copy()"
            )


def _consumers(stream: int | None, kind: int) -> int:
    """The driver's handle of the stream that a consumer named to `__dlpack__`. Raises BufferError."""
    if stream is None or (stream == 1 and kind == dlpack.CUDA):
        return 0  # the default stream
    if isinstance(stream, bool) or not isinstance(stream, int) or stream < 0 or (stream in (1, 2) and kind != dlpack.CUDA):
        raise BufferError(f"stream={stream!r} is none that DLPack knows for a device of type {kind}")
    return stream
