"""Typed buffers on a device, and slices and views of them that share memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from iq.errors import DeviceError, DtypeError, LayoutError, ShapeError
from iq.runtime.arrays import Array, Bytes, bytes_of, check_array, check_shape
from iq.runtime.dtypes import Dtype, dtype_of
from iq.runtime.hal import BufferArgument
from iq.runtime.memory import ALIGNMENT, Memory

if TYPE_CHECKING:
    from iq.runtime.device import Device


class Buffer:
    """A dense array on a device. Made by `Device.alloc`, `zeros` and `put`, and by ops.

    device: where it lives. shape: a tuple. size, nbytes: how many elements, and bytes.
    dtype: what numpy calls its elements. element: the same as kernels spell it ("f32", "bf16"). None of these can be set.
    Slices, views and reshapes share memory with the buffer they are made of and keep it alive.
    """

    __slots__ = ("_device", "_dtype", "_memory", "_nbytes", "_offset", "_shape", "_size")

    def __init__(self, device: Device, memory: Memory, offset: int, shape: tuple[int, ...], dtype: Dtype) -> None:
        """For this package: the part of `memory` that starts `offset` bytes in and is as long as shape and dtype say."""
        self._device = device
        self._shape = shape
        self._size = math.prod(shape)
        self._nbytes = self._size * dtype.itemsize
        self._memory = memory
        self._offset = offset
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
        """A copy on the host, of this buffer's shape and dtype."""
        return self._typed(self._memory.read(self._offset, self.nbytes))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """numpy's protocol. On the CPU `np.asarray(buffer)` shares the buffer's memory; on a GPU it is a copy."""
        shared = None if copy else self._memory.host(self._offset, self.nbytes)
        if shared is None and copy is False:
            raise ValueError(f"{self!r} cannot be seen by numpy without a copy")
        array = self.numpy() if shared is None else self._typed(shared)
        return array if dtype is None else array.astype(dtype, copy=False)

    def copy_from(self, source: Array | Buffer) -> None:
        """Overwrite this buffer with an array, or with a buffer of the same device, of the same shape and dtype.

        Raises ShapeError, DtypeError, LayoutError (an array that is not C-contiguous) or DeviceError (a buffer of another device).
        """
        if not isinstance(source, Buffer):
            check_array(source, "copy_from")
            self._check_like(tuple(source.shape), dtype_of(source.dtype))
            if source.size:
                self._memory.write(self._offset, bytes_of(source))
            return
        if source.device is not self.device:
            raise DeviceError(f"copy_from: {source!r} is on another device than {self!r}; copy_from(source.numpy()) crosses over")
        self._check_like(source.shape, source._dtype)
        if self.overlaps(source):
            source = source.copy()
        if self.size:
            self._memory.copy_within(self._offset, source._memory, source._offset, self.nbytes)

    def fill_zero(self) -> None:
        """Overwrite this buffer with zeros."""
        if self.size:
            self._memory.fill_zero(self._offset, self.nbytes)

    def copy(self) -> Buffer:
        """A buffer of its own with the same contents, on the same device."""
        duplicate = self.device.alloc(self.shape, self._dtype)
        duplicate.copy_from(self)
        return duplicate

    def _typed(self, data: Bytes) -> Array:
        return data.view(self._dtype.numpy).reshape(self.shape)

    def _check_like(self, shape: tuple[int, ...], dtype: Dtype) -> None:
        if shape != self.shape:
            raise ShapeError(f"copy_from: got shape {shape}, this buffer has {self.shape}")
        if dtype is not self._dtype:
            raise DtypeError(f"copy_from: got {dtype.name} elements, this buffer holds {self.element}")

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
        if self._offset % new.itemsize:
            raise LayoutError(f"view: {self!r} starts at byte {self._offset} of its allocation, between two {new.name}; copy() it first")
        return self._at(0, shape, new)

    def reshape(self, shape: int | Sequence[int]) -> Buffer:
        """The same elements in another shape; one -1 stands for what is left. Raises ShapeError when the elements do not fill it."""
        dims = [shape] if isinstance(shape, int) else list(shape)
        known = math.prod(n for n in dims if n != -1)
        if dims.count(-1) == 1 and known:
            dims[dims.index(-1)] = self.size // known
        wanted = check_shape(dims, "reshape")
        if math.prod(wanted) != self.size:
            raise ShapeError(f"reshape: {self!r} has {self.size} elements, the shape {wanted} takes {math.prod(wanted)}")
        return self._at(0, wanted, self._dtype)

    def _at(self, offset: int, shape: tuple[int, ...], dtype: Dtype) -> Buffer:
        return Buffer(self.device, self._memory, self._offset + offset, shape, dtype)

    # ---- To kernels

    def overlaps(self, other: Buffer) -> bool:
        """Whether the two share bytes."""
        mine, its = self._memory.host(self._offset, self.nbytes), other._memory.host(other._offset, other.nbytes)
        if mine is not None and its is not None:
            return np.may_share_memory(mine, its)  # arrays that are shared with numpy may be the same under two allocations
        end = min(self._offset + self.nbytes, other._offset + other.nbytes)
        return self._memory is other._memory and max(self._offset, other._offset) < end

    def argument(self) -> BufferArgument:
        """This buffer as kernels take it: flat. Raises LayoutError when it starts off the boundary that kernels are compiled for."""
        if self._offset % ALIGNMENT:
            raise LayoutError(
                f"{self!r} starts at byte {self._offset} of its allocation; kernels need a multiple of {ALIGNMENT}: pass a copy()"
            )
        return BufferArgument(self._memory.handle, self._offset, self._nbytes, self._size, self._dtype.element)
