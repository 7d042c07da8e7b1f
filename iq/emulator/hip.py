"""The fake HIP runtime's side in Python: devices are added to it, and it calls back to load code objects and to launch kernels."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from iq.emulator import native
from iq.emulator.faults import EmulationError
from iq.emulator.kernargs import Dim3
from iq.emulator.memory import Memory

# hipError_t
_SUCCESS, _NO_BINARY_FOR_GPU, _NOT_FOUND, _LAUNCH_FAILURE = 0, 209, 500, 719

_MAX_ARGUMENTS = 512


@dataclass(frozen=True)
class Properties:
    """What hipGetDeviceProperties says. arch: the gcnArchName, with features. lds: bytes for a workgroup."""

    name: str
    arch: str
    lds: int
    wave: int
    max_threads: int = 1024


@dataclass(frozen=True)
class Function:
    """A kernel as HIP sees it.

    id: the device's own number for it. kernarg: bytes of the segment. arguments: offset and size of those that the caller gives, in order.
    """

    id: int
    lds: int
    kernarg: int
    arguments: tuple[tuple[int, int], ...]


class Gpu(Protocol):
    """What executes. Called on any thread; what these raise becomes a HIP error, and is handed to `failed`."""

    def load(self, elf: bytes) -> int:
        """The number of a module, from 1."""

    def function(self, module: int, name: str) -> Function:
        """A kernel of a module."""

    def launch(self, function: int, grid: Dim3, workgroup: Dim3, kernarg: bytes) -> None:
        """Run a kernel to its end. `kernarg` lacks the hidden arguments."""

    def failed(self, error: BaseException) -> None:
        """Called with what one of these raised."""


class Attached:
    """A device of the fake runtime. It is there until this object is gone and IREE has closed it.

    library: what IREE is to load for libamdhip64. index: its number there.
    """

    def __init__(self, gpu: Gpu, properties: Properties, memory: Memory) -> None:
        self.library: Path = native.library_path()
        self._library = native.load()
        self._library.fakehip_handles.restype = ctypes.c_uint64
        self._callbacks = _callbacks(weakref.ref(gpu))
        described = _Properties(
            properties.name.encode(), properties.arch.encode(), memory.capacity, properties.lds, properties.wave, properties.max_threads
        )
        self.index = int(self._library.fakehip_add_device(ctypes.byref(described), memory.handle, ctypes.byref(self._callbacks)))
        if self.index < 0:
            raise EmulationError("too many emulated devices are open in this process")
        # Not at exit, where daemon threads may still use it.
        weakref.finalize(self, self._library.fakehip_remove_device, self.index).atexit = False

    @property
    def handles(self) -> int:
        """How many streams, events, modules, kernels, pools and graphs are open."""
        return int(self._library.fakehip_handles(self.index))

    def defer(self, seed: int) -> None:
        """Run what is enqueued from now on only when somebody waits, in an order drawn from `seed`; with 0, as at first, at once."""
        self._library.fakehip_defer(self.index, ctypes.c_uint64(seed))


class _Properties(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char * 256),
        ("arch", ctypes.c_char * 256),
        ("total_memory", ctypes.c_uint64),
        ("lds", ctypes.c_uint32),
        ("wave", ctypes.c_uint32),
        ("max_threads", ctypes.c_uint32),
    )


class _Layout(ctypes.Structure):
    _fields_ = (
        ("id", ctypes.c_uint64),
        ("lds", ctypes.c_uint32),
        ("kernarg", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
        ("offsets", ctypes.c_uint32 * _MAX_ARGUMENTS),
        ("sizes", ctypes.c_uint32 * _MAX_ARGUMENTS),
    )


_Load = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_uint64, ctypes.POINTER(ctypes.c_uint64))
_GetFunction = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint64, ctypes.c_char_p, ctypes.POINTER(_Layout))
_Launch = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint64, ctypes.POINTER(ctypes.c_uint32 * 6), ctypes.c_void_p, ctypes.c_uint32)


class _Callbacks(ctypes.Structure):
    _fields_ = (("load", _Load), ("function", _GetFunction), ("launch", _Launch))


def _callbacks(gpu: weakref.ref[Gpu]) -> _Callbacks:
    """The device's methods as C functions."""

    def load(gpu: Gpu, elf: int, size: int, module: Any) -> None:
        module[0] = gpu.load(ctypes.string_at(elf, size))

    def function(gpu: Gpu, module: int, name: bytes, layout: Any) -> None:
        found = gpu.function(module, name.decode())
        if len(found.arguments) > _MAX_ARGUMENTS:
            raise EmulationError(f"{name.decode()} takes {len(found.arguments)} arguments; the emulator has room for {_MAX_ARGUMENTS}")
        out = layout[0]
        out.id, out.lds, out.kernarg, out.count = found.id, found.lds, found.kernarg, len(found.arguments)
        for n, (offset, size) in enumerate(found.arguments):
            out.offsets[n], out.sizes[n] = offset, size

    def launch(gpu: Gpu, function: int, dims: Any, kernarg: int, size: int) -> None:
        gx, gy, gz, bx, by, bz = dims[0]
        gpu.launch(function, (gx, gy, gz), (bx, by, bz), ctypes.string_at(kernarg, size))

    return _Callbacks(
        _Load(_guarded(gpu, load, _NO_BINARY_FOR_GPU)),
        _GetFunction(_guarded(gpu, function, _NOT_FOUND)),
        _Launch(_guarded(gpu, launch, _LAUNCH_FAILURE)),
    )


def _guarded(reference: weakref.ref[Gpu], call: Callable[..., None], code: int) -> Callable[..., int]:
    """A callback that returns a hipError_t: `code` when the call raises, which ctypes could only print."""

    def run(*arguments: Any) -> int:
        gpu = reference()
        if gpu is None:  # being closed
            return code
        try:
            call(gpu, *arguments)
        except BaseException as error:
            gpu.failed(error)
            return code
        return _SUCCESS

    return run
