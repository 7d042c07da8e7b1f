"""Arrays of other libraries as buffers, through DLPack: in place where they lie on the same device, else through the host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from iq.errors import DeviceError, DtypeError, LayoutError
from iq.runtime import dlpack
from iq.runtime.arrays import Array
from iq.runtime.backend import Backend
from iq.runtime.buffer import Buffer
from iq.runtime.dtypes import dtype_of
from iq.runtime.gpu.pool import Block, GpuMemory

if TYPE_CHECKING:
    from iq.runtime.device import Device
    from iq.runtime.gpu.gpu import Gpu

# kDLExtDev of dlpack.h: of an emulated GPU, whose addresses mean nothing to a library that drives real ones.
EXTENSION = 12

_HOST = (dlpack.CPU, dlpack.CUDA_HOST, dlpack.ROCM_HOST)


class ForeignMemory(GpuMemory):
    """Memory of a GPU that somebody else owns. The owner is kept until what has been enqueued with it is done, though this be dropped."""

    __slots__ = ("_owner",)

    def __init__(self, gpu: Gpu, address: int, nbytes: int, owner: object) -> None:
        """The GPU's own stream has been made to wait for what the owner did with the memory."""
        super().__init__(gpu, Block(address, nbytes), gpu.own)
        self._owner = owner

    def __del__(self) -> None:
        # Noted only, as in GpuMemory.
        self._gpu.pool.borrowed.append((self._owner, self._block.nbytes, self._home, self._used, self._exported))


def dlpack_device(backend: Backend) -> tuple[int, int] | None:
    """DLPack's type and number of a device; None for one whose memory has no known address."""
    if backend.name == "cpu":
        return dlpack.CPU, 0
    if backend.runtime != "launch":
        return None
    context = cast("Gpu", backend).context
    if backend.name.startswith("emulated:"):
        return EXTENSION, context.index
    return dlpack.CUDA if context.driver.api.name == "cuda" else dlpack.ROCM, context.index


def take(device: Device, backend: Backend, array: Any, copy: bool | None, stream: Any, writable: bool = True) -> Buffer:
    """See Device.from_dlpack. writable: False where the buffer is only read, so that read-only arrays need no copy on a GPU."""
    if not (hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__")):
        raise DtypeError(f"from_dlpack: expected an array with __dlpack__ and __dlpack_device__, got {type(array).__name__}")
    kind, index = array.__dlpack_device__()
    lies = int(kind), int(index)
    if lies[0] in _HOST:
        if copy is False and not device.is_cpu:
            raise _elsewhere(lies, device)
        host = _seen_by_numpy(dlpack.load(_capsule(array)))
        return device.put(host, copy=copy if device.is_cpu else True, stream=stream)
    if lies == device.dlpack_device:
        return _in_place(device, cast("Gpu", backend), array, copy, stream, writable)
    if copy is False:
        raise _elsewhere(lies, device)
    return device.put(array.numpy() if isinstance(array, Buffer) else _brought_to_host(array, lies), copy=None, stream=stream)


def _in_place(device: Device, gpu: Gpu, array: Any, copy: bool | None, stream: Any, writable: bool) -> Buffer:
    gpu.collect()
    imported = dlpack.load(_capsule(array, stream=gpu.own.raw))
    if imported.device != device.dlpack_device:
        raise DeviceError(
            f"from_dlpack: {type(array).__name__} says by __dlpack_device__() that it lies on {device!r}, and its capsule that it lies on "
            f"{dlpack.device_name(imported.device)}"
        )
    if not imported.nbytes:
        return device.alloc(imported.shape, imported.dtype, stream=stream)
    # What is iq's own is kept as such: through a library, the device would keep what keeps the device, and Python could not see it.
    owner = gpu.pool.exporter(imported.address, imported.nbytes) or imported.keep
    memory = ForeignMemory(gpu, imported.address, imported.nbytes, owner)
    buffer = Buffer(device, memory, 0, imported.shape, dtype_of(imported.dtype))
    if imported.readonly and writable:
        why = "it is read-only"
    elif imported.address % device.alignment:
        why = f"it does not start on a {device.alignment}-byte boundary"
    else:
        return buffer.copy(stream=stream) if copy else buffer
    if copy is False:
        raise LayoutError(
            f"from_dlpack: an array of shape {imported.shape} cannot be shared with {device!r}, {why}; use copy=None or copy=True"
        )
    return buffer.copy(stream=stream)


class _Shown:
    """Memory of the host as numpy takes it for an array's; keeps its owner."""

    __slots__ = ("__array_interface__", "owner")

    def __init__(self, imported: dlpack.Imported) -> None:
        self.__array_interface__ = {
            "version": 3,
            "data": (imported.address, imported.readonly),
            "shape": (imported.nbytes,),
            "typestr": "|u1",
        }
        self.owner = imported.keep


def _seen_by_numpy(imported: dlpack.Imported) -> Array:
    """A host's array, in place."""
    dtype = dtype_of(imported.dtype).numpy
    if not imported.nbytes:
        return np.empty(imported.shape, dtype)
    return np.asarray(_Shown(imported)).view(dtype).reshape(imported.shape)


def _brought_to_host(array: Any, lies: tuple[int, int]) -> Array:
    """A copy on the host, which its library makes. Raises DeviceError where it makes none."""
    try:
        capsule = array.__dlpack__(max_version=dlpack.VERSION, dl_device=(dlpack.CPU, 0), copy=True)
        imported = dlpack.load(capsule)
    except (TypeError, ValueError, BufferError, NotImplementedError, AssertionError) as error:
        raise DeviceError(
            f"from_dlpack: {type(array).__name__} on {dlpack.device_name(lies)} does not copy itself to the host ({error}); "
            "copy it there first, and put() that"
        ) from error
    if imported.device[0] not in _HOST:
        raise DeviceError(f"from_dlpack: {type(array).__name__} was asked for a copy on the host and gave one on another device")
    return _seen_by_numpy(imported)


def _capsule(array: Any, **arguments: Any) -> object:
    try:
        return array.__dlpack__(max_version=dlpack.VERSION, **arguments)
    except TypeError:  # a producer from before DLPack 1.0
        return array.__dlpack__(**arguments)


def _elsewhere(lies: tuple[int, int], device: Device) -> DeviceError:
    return DeviceError(
        f"from_dlpack: the array lies on {dlpack.device_name(lies)}, not on {device!r}; use copy=None or copy=True to copy it"
    )
