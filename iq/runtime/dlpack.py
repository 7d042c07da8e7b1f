"""DLPack capsules: arrays that cross between libraries without a copy, whatever device they are on.

Structures are laid out as in dlpack.h 1.0, and read by ctypes. Making them is left to numpy, whose deleter and whose capsule's destructor
are in C. They must be: a capsule often dies while an error is on its way up (the consumer that refused it drops it then), and a Python
function called at that moment loses the error and may crash; and consumers that outlive the interpreter may still call the deleter. numpy
reads nothing of the memory it is shown, so that can be a GPU's; what it cannot say (the device, bf16) is written in afterwards.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np

from iq.errors import DtypeError, LayoutError, ShapeError
from iq.runtime.arrays import check_shape
from iq.runtime.dtypes import DTYPES, Dtype, dtype_of

# DLDeviceType of dlpack.h: the kinds of devices.
CPU = 1
CUDA = 2
CUDA_HOST = 3
ROCM = 10
ROCM_HOST = 11

VERSION = (1, 0)
MAX_NDIM = 32
MAX_NBYTES = 2**63 - 1

_READ_ONLY = 1  # of ManagedVersioned.flags

# DLDataTypeCode by what stands in front of the bits in iq's names; further ones for messages.
_CODES = {"i": 0, "u": 1, "f": 2, "bf": 4}
_KINDS = {0: "int", 1: "uint", 2: "float", 3: "handle", 4: "bfloat", 5: "complex", 6: "bool"}


def _type_of(dtype: Dtype) -> tuple[int, int]:
    """A dtype's DLDataTypeCode, and its bits."""
    return _CODES[dtype.name.rstrip("0123456789")], 8 * dtype.itemsize


_DTYPES = {_type_of(dtype): dtype for dtype in DTYPES.values()}


class Tensor(ctypes.Structure):
    """DLTensor. shape and strides point to `ndim` int64 each; strides count elements."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    )


class Managed(ctypes.Structure):
    """DLManagedTensor, in capsules named "dltensor"."""

    _fields_ = (("tensor", Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class ManagedVersioned(ctypes.Structure):
    """DLManagedTensorVersioned, in capsules named "dltensor_versioned"."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    )


# Functions of our own: `pythonapi.PyCapsule_...` are shared with everybody who sets their argument types.
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))
_set_name = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_SetName", ctypes.pythonapi))

# Holding the GIL, as when a consumer written in C drops its array: not every producer takes it.
_Deleter = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)

_NAME, _USED = b"dltensor", b"used_dltensor"
_NAME_VERSIONED, _USED_VERSIONED = b"dltensor_versioned", b"used_dltensor_versioned"

# A capsule points at its name, and may die after this module.
for _name in (_USED, _USED_VERSIONED):
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(_name))


def device_name(device: tuple[int, int]) -> str:
    """A DLPack device as people call it: "cpu", "cuda:0", "hip:1"."""
    kind, index = device
    if kind in (CUDA, ROCM):
        return f"{'cuda' if kind == CUDA else 'hip'}:{index}"
    names = {CPU: "cpu", CUDA_HOST: "pinned host memory of cuda", ROCM_HOST: "pinned host memory of hip"}
    return names.get(kind, f"DLPack device type {kind}")


def negotiate(max_version: tuple[int, int] | None) -> bool:
    """Whether a consumer that gave `max_version` to `__dlpack__` takes the versioned capsule."""
    return max_version is not None and max_version[0] >= VERSION[0]


# ---- Out


class _Lent:
    """Memory as numpy takes it for an array's. It lives as long as the capsule or its consumer, and keeps the owner and the strides."""

    __slots__ = ("__array_interface__", "owner", "strides")

    def __init__(self, address: int, shape: tuple[int, ...], itemsize: int, readonly: bool, owner: object) -> None:
        # numpy takes address 0 for none, and allocates.
        self.__array_interface__ = {
            "version": 3,
            "data": (address or 1, readonly),
            "shape": shape,
            "typestr": np.dtype(f"u{itemsize}").str,
        }
        self.owner = owner
        self.strides = (ctypes.c_int64 * len(shape))(*_dense_strides(shape))


def export(
    address: int, shape: tuple[int, ...], dtype: str, device: tuple[int, int], owner: object, *, readonly: bool, versioned: bool
) -> object:
    """A capsule of the C-contiguous array at `address`, for one consumer.

    device: DLPack's type (CPU, ROCM, ...) and the index among those. dtype: by iq's name.
    versioned: "dltensor_versioned" of DLPack 1.0, else "dltensor", which consumers from before DLPack 1.0 take.
    `owner` is kept until the consumer is done, or the capsule gone without one.

    Raises BufferError for what is read-only and not versioned, which could not say so; ShapeError, DtypeError; LayoutError for address 0,
    unless the array is empty.
    """
    element = dtype_of(dtype)
    shape = check_shape(shape, "DLPack")
    _check_address(address, _nbytes(shape, element))
    if readonly and not versioned:
        raise BufferError("a read-only array takes a versioned DLPack capsule: the consumer has to pass max_version=(1, 0) or later")
    lent = _Lent(address, shape, element.itemsize, readonly, owner)
    array = np.asarray(lent, copy=False)
    capsule: object = array.__dlpack__(max_version=VERSION) if versioned else array.__dlpack__()
    tensor = (ManagedVersioned if versioned else Managed).from_address(_pointer(capsule, _NAME_VERSIONED if versioned else _NAME)).tensor
    tensor.data = address
    tensor.device_type, tensor.device_id = device
    tensor.code, tensor.bits = _type_of(element)
    # numpy's deleter frees its own strides with the structure that they are part of; before numpy 2.4 there are none here.
    tensor.strides = ctypes.addressof(lent.strides)
    return capsule


# ---- In


class _Keep:
    """Stands for a producer's array, which is told when this is gone."""

    __slots__ = ("__weakref__",)


@dataclass(frozen=True)
class Imported:
    """An array of another library: C-contiguous, `nbytes` long from `address` on.

    dtype: iq's name. device: DLPack's type and index (see `device_name`).
    keep: when it dies, the producer may free the memory.
    """

    address: int
    shape: tuple[int, ...]
    dtype: str
    device: tuple[int, int]
    readonly: bool
    nbytes: int
    keep: object


def load(capsule: object) -> Imported:
    """Take over the array of a capsule, versioned or not. It is not waited for: `__dlpack__` has been told of the stream.

    What is refused is left as it was. Raises DtypeError for anything but a capsule not taken yet, and for elements that no buffer holds;
    LayoutError for an array that is not C-contiguous or lies nowhere, and for a version of DLPack after 1; ShapeError for what is no shape.
    """
    versioned = bool(_is_valid(capsule, _NAME_VERSIONED))
    if not versioned and not _is_valid(capsule, _NAME):
        if _is_valid(capsule, _USED) or _is_valid(capsule, _USED_VERSIONED):
            raise DtypeError("the DLPack capsule has been taken already; each is for one consumer: make another by __dlpack__()")
        raise DtypeError(f"expected a DLPack capsule, as __dlpack__() returns it; got {capsule!r}")
    pointer = _pointer(capsule, _NAME_VERSIONED if versioned else _NAME)
    managed = (ManagedVersioned if versioned else Managed).from_address(pointer)
    if versioned and managed.major > VERSION[0]:  # what follows the flags may be laid out in another way
        raise LayoutError(
            f"the capsule is of DLPack {managed.major}.{managed.minor}; expected {VERSION[0]}: pass max_version={VERSION} to __dlpack__()"
        )
    tensor = managed.tensor
    dtype = _element(tensor)
    shape = _shape(tensor)
    nbytes = _nbytes(shape, dtype)
    _check_dense(tensor, shape)
    _check_address(tensor.data, nbytes)
    address = (tensor.data or 0) + tensor.byte_offset
    keep = _Keep()
    imported = Imported(
        address=address,
        shape=shape,
        dtype=dtype.name,
        device=(tensor.device_type, tensor.device_id),
        readonly=versioned and bool(managed.flags & _READ_ONLY),
        nbytes=nbytes,
        keep=keep,
    )
    # In this order: an interrupt between the two leaks memory, rather than have it freed twice.
    _set_name(capsule, _USED_VERSIONED if versioned else _USED)
    if managed.deleter:
        # Not at exit: the producer may be gone by then.
        weakref.finalize(keep, _Deleter(managed.deleter), pointer).atexit = False
    return imported


def _element(tensor: Tensor) -> Dtype:
    dtype = _DTYPES.get((tensor.code, tensor.bits))
    if dtype is None or tensor.lanes != 1:
        kind = _KINDS.get(tensor.code, f"type code {tensor.code}")
        lanes = "" if tensor.lanes == 1 else f", {tensor.lanes} lanes"
        raise DtypeError(f"no buffer holds elements of DLPack type {kind}, {tensor.bits} bits{lanes}; expected one of {', '.join(DTYPES)}")
    return dtype


def _shape(tensor: Tensor) -> tuple[int, ...]:
    if not 0 <= tensor.ndim <= MAX_NDIM:
        raise ShapeError(f"a DLPack tensor of {tensor.ndim} axes; expected 0 to {MAX_NDIM}")
    if tensor.ndim and not tensor.shape:
        raise ShapeError(f"a DLPack tensor of {tensor.ndim} axes has no shape")
    return check_shape(_int64s(tensor.shape, tensor.ndim), "DLPack")


def _nbytes(shape: tuple[int, ...], dtype: Dtype) -> int:
    if len(shape) > MAX_NDIM:
        raise ShapeError(f"a DLPack tensor of {len(shape)} axes; expected 0 to {MAX_NDIM}")
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes > MAX_NBYTES:
        raise ShapeError(f"a DLPack tensor of shape {shape} has {nbytes} bytes; no memory has more than {MAX_NBYTES}")
    return nbytes


def _check_dense(tensor: Tensor, shape: tuple[int, ...]) -> None:
    if not tensor.strides or 0 in shape:
        return
    strides = _int64s(tensor.strides, tensor.ndim)
    if any(n != 1 and stride != dense for n, stride, dense in zip(shape, strides, _dense_strides(shape), strict=True)):
        raise LayoutError(
            f"a DLPack tensor of shape {shape} and strides {strides}, in elements, is not C-contiguous; copy it first (torch: contiguous())"
        )


def _check_address(data: int | None, nbytes: int) -> None:
    if not data and nbytes:
        raise LayoutError(f"a DLPack tensor of {nbytes} bytes has the data pointer NULL; only an empty one may")


def _dense_strides(shape: tuple[int, ...]) -> list[int]:
    """The strides of a C-contiguous array, in elements."""
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _int64s(address: int | None, count: int) -> tuple[int, ...]:
    array: Any = (ctypes.c_int64 * count).from_address(address) if address else ()
    return tuple(array)
