"""HIP and CUDA as data: one set of functions, the name that each has in either library, and the few things that differ beyond names.

Numbers are those of cuda.h (CUDA 13) and hip_runtime_api.h (HIP 5.7, 6 and 7), which agree unless stated. Every version of HIP from 5.6
on exports all of it but hipGetDevicePropertiesR0600, which HIP 5 lacks (clr/hipamd/src/hip_hcc.map.in).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from ctypes import byref, c_char_p, c_int, c_size_t, c_ubyte, c_uint, c_void_p
from dataclasses import dataclass
from typing import Any

from iq.errors import DeviceError

# Statuses.
SUCCESS, NOT_READY = 0, 600

# CU_STREAM_NON_BLOCKING, CU_EVENT_DISABLE_TIMING, CU_STREAM_CAPTURE_MODE_RELAXED, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_NON_BLOCKING, _NO_TIMING, RELAXED, _MAX_DYNAMIC_SHARED = 1, 2, 2, 8

# CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED to CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, and the same of HIP.
CAPTURE_ERRORS = frozenset(range(900, 909))


class MissingFunctionError(DeviceError):
    """A library without one of the functions."""


@dataclass(frozen=True)
class Fixed:
    """An argument that is always the same."""

    type: Any
    value: int | None


@dataclass(frozen=True)
class Function:
    """A function of a library. arguments: ctypes' types, or Fixed for those that the caller does not give."""

    symbol: str
    arguments: tuple[Any, ...]
    result: Any = c_int

    def of(self, library: ctypes.CDLL, path: str) -> Callable[..., Any]:
        """The function, for the arguments that are not fixed. Raises MissingFunctionError where the library lacks it."""
        try:
            function = library[self.symbol]
        except AttributeError:
            raise MissingFunctionError(f"{path} has no function {self.symbol}; it is too old, or not the library that was meant") from None
        function.argtypes = [a.type if isinstance(a, Fixed) else a for a in self.arguments]
        function.restype = self.result
        if not any(isinstance(a, Fixed) for a in self.arguments):
            return function

        def call(*given: Any) -> Any:
            rest = iter(given)
            return function(*[a.value if isinstance(a, Fixed) else next(rest) for a in self.arguments])

        return call


# Calls a function by its common name: its result, or nothing where a status other than success raises.
Call = Callable[..., Any]
Do = Callable[..., None]


@dataclass(frozen=True, eq=False)
class Api:
    """One of the two.

    name: "hip" or "cuda". functions: by their common names. sticky: statuses after which the context is lost, for every later call.
    current: what set_current takes, of a context's handle and the device's number. words: an error's name and text. arch: of a device, as
    artifacts name it. forget: that a call failed is not to show in what others ask of the library.
    """

    name: str
    functions: Mapping[str, Function]
    sticky: frozenset[int]
    current: Callable[[int, int], int]
    words: Callable[[Call, int], tuple[str, str]]
    arch: Callable[[Do, int], str]
    forget: Callable[[Call], None]


_P, _I, _U, _N = c_void_p, c_int, c_uint, c_size_t

# name: (CUDA's, HIP's, arguments). Where an argument is a handle or an address, or a pointer for a result, its type is c_void_p.
_COMMON: dict[str, tuple[str, str, tuple[Any, ...]]] = {
    "init": ("cuInit", "hipInit", (Fixed(_U, 0),)),
    "device_count": ("cuDeviceGetCount", "hipGetDeviceCount", (_P,)),
    "device": ("cuDeviceGet", "hipDeviceGet", (_P, _I)),
    "device_name": ("cuDeviceGetName", "hipDeviceGetName", (_P, _I, _I)),
    "retain_context": ("cuDevicePrimaryCtxRetain", "hipDevicePrimaryCtxRetain", (_P, _I)),
    "release_context": ("cuDevicePrimaryCtxRelease_v2", "hipDevicePrimaryCtxRelease", (_I,)),
    "load_module": ("cuModuleLoadData", "hipModuleLoadData", (_P, c_char_p)),
    "unload_module": ("cuModuleUnload", "hipModuleUnload", (_P,)),
    "function": ("cuModuleGetFunction", "hipModuleGetFunction", (_P, _P, c_char_p)),
    "allow_shared": ("cuFuncSetAttribute", "hipFuncSetAttribute", (_P, Fixed(_I, _MAX_DYNAMIC_SHARED), _I)),
    "launch": ("cuLaunchKernel", "hipModuleLaunchKernel", (_P, *[_U] * 7, _P, _P, _P)),
    "allocate": ("cuMemAlloc_v2", "hipMalloc", (_P, _N)),
    "free": ("cuMemFree_v2", "hipFree", (_P,)),
    "free_on": ("cuMemFreeAsync", "hipFreeAsync", (_P, _P)),
    "allocate_on": ("cuMemAllocAsync", "hipMallocAsync", (_P, _N, _P)),
    "allocate_host": ("cuMemHostAlloc", "hipHostMalloc", (_P, _N, Fixed(_U, 0))),
    "free_host": ("cuMemFreeHost", "hipHostFree", (_P,)),
    "memory_info": ("cuMemGetInfo_v2", "hipMemGetInfo", (_P, _P)),
    "create_stream": ("cuStreamCreate", "hipStreamCreateWithFlags", (_P, Fixed(_U, _NON_BLOCKING))),
    "destroy_stream": ("cuStreamDestroy_v2", "hipStreamDestroy", (_P,)),
    "synchronize_stream": ("cuStreamSynchronize", "hipStreamSynchronize", (_P,)),
    "wait_event": ("cuStreamWaitEvent", "hipStreamWaitEvent", (_P, _P, Fixed(_U, 0))),
    "create_event": ("cuEventCreate", "hipEventCreateWithFlags", (_P, Fixed(_U, _NO_TIMING))),
    "record_event": ("cuEventRecord", "hipEventRecord", (_P, _P)),
    "query_event": ("cuEventQuery", "hipEventQuery", (_P,)),
    "synchronize_event": ("cuEventSynchronize", "hipEventSynchronize", (_P,)),
    "destroy_event": ("cuEventDestroy_v2", "hipEventDestroy", (_P,)),
    "fill": ("cuMemsetD8Async", "hipMemsetD8Async", (_P, c_ubyte, _N, _P)),
    "synchronize": ("cuCtxSynchronize", "hipDeviceSynchronize", ()),
    "begin_capture": ("cuStreamBeginCapture_v2", "hipStreamBeginCapture", (_P, Fixed(_I, RELAXED))),
    "end_capture": ("cuStreamEndCapture", "hipStreamEndCapture", (_P, _P)),
    "is_capturing": ("cuStreamIsCapturing", "hipStreamIsCapturing", (_P, _P)),
    "exchange_capture_mode": ("cuThreadExchangeStreamCaptureMode", "hipThreadExchangeStreamCaptureMode", (_P,)),
    "destroy_graph": ("cuGraphDestroy", "hipGraphDestroy", (_P,)),
    "destroy_exec": ("cuGraphExecDestroy", "hipGraphExecDestroy", (_P,)),
    "launch_graph": ("cuGraphLaunch", "hipGraphLaunch", (_P, _P)),
}


# ---- CUDA


def _cuda_words(call: Call, status: int) -> tuple[str, str]:
    name, text = c_char_p(), c_char_p()
    call("error_name", status, byref(name))
    call("error_text", status, byref(text))
    return (name.value or b"unknown error").decode(), (text.value or b"no description").decode()


def _cuda_arch(do: Do, device: int) -> str:
    major, minor = c_int(), c_int()
    do("attribute", byref(major), 75, device)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    do("attribute", byref(minor), 76, device)  # and _MINOR
    return f"sm_{major.value}{minor.value}"


CUDA = Api(
    name="cuda",
    functions={name: Function(cuda, arguments) for name, (cuda, _, arguments) in _COMMON.items()}
    | {
        "get_current": Function("cuCtxGetCurrent", (_P,)),
        "set_current": Function("cuCtxSetCurrent", (_P,)),
        "attribute": Function("cuDeviceGetAttribute", (_P, _I, _I)),
        "error_name": Function("cuGetErrorName", (_I, _P)),
        "error_text": Function("cuGetErrorString", (_I, _P)),
        "copy_in": Function("cuMemcpyHtoDAsync_v2", (_P, _P, _N, _P)),
        "copy_out": Function("cuMemcpyDtoHAsync_v2", (_P, _P, _N, _P)),
        "copy_on": Function("cuMemcpyDtoDAsync_v2", (_P, _P, _N, _P)),
        "instantiate": Function("cuGraphInstantiateWithFlags", (_P, _P, Fixed(ctypes.c_uint64, 0))),
    },
    # Those of which cuda.h says that any further work will return the same error, that the process must be terminated, or that the context
    # cannot be used any more; and a destroyed context.
    sticky=frozenset({226, 700, 702, 709, 710, *range(714, 720), 721, 810, 911}),
    current=lambda context, device: context,
    words=_cuda_words,
    arch=_cuda_arch,
    forget=lambda call: None,
)


# ---- HIP


# Where gcnArchName is in hipDeviceProp_tR0600, which has a function of its own from HIP 6 on, and in hipDeviceProp_tR0000, which the
# unversioned function fills in: HIP 5 has no other, and HIP 6 and 7 keep it for old programs (hip_runtime_api.h of ROCm/HIP, rocm-5.7.1 and
# rocm-6.2.2; clr/hipamd/src/hip_device.cpp, and hip_deprecated_abi.cpp of ROCm/rocm-systems). The structures take 1472 and 792 bytes.
_ARCH_NAME, _OLD_ARCH_NAME, _ARCH_NAME_BYTES, _PROPERTIES_BYTES = 1160, 396, 256, 16384


def _hip_arch(do: Do, device: int) -> str:
    properties = ctypes.create_string_buffer(_PROPERTIES_BYTES)
    function, at = "properties", _ARCH_NAME
    try:
        do(function, properties, device)
    except MissingFunctionError:
        function, at = "old_properties", _OLD_ARCH_NAME
        do(function, properties, device)
    name = properties.raw[at : at + _ARCH_NAME_BYTES].split(b"\0")[0]
    if not name.startswith(b"gfx"):
        raise DeviceError(
            f"{HIP.functions[function].symbol} gives {name[:20]!r} for the device's gcnArchName, which begins with gfx where it is known"
        )
    return name.decode()


def _hip_words(call: Call, status: int) -> tuple[str, str]:
    return call("error_name", status).decode(), call("error_text", status).decode()


def _hip_forget(call: Call) -> None:
    # HIP keeps a thread's last error for hipGetLastError: PyTorch would take it for one of its own. Up to HIP 6 that is the status of the
    # latest call, success and hipErrorNotReady included; in HIP 7 neither changes it (HIP_RETURN of clr/hipamd/src/hip_internal.hpp).
    call("last_error")


HIP = Api(
    name="hip",
    functions={name: Function(hip, arguments) for name, (_, hip, arguments) in _COMMON.items()}
    | {
        # By the device's number: hipCtxSetCurrent is deprecated, and changes the device as well. A thread without a device has number 0
        # from its first call on (HIP_INIT of hip_internal.hpp); hipSetDevice only sets a thread-local pointer (hip_context.cpp).
        "get_current": Function("hipGetDevice", (_P,)),
        "set_current": Function("hipSetDevice", (_I,)),
        "properties": Function("hipGetDevicePropertiesR0600", (_P, _I)),
        "old_properties": Function("hipGetDeviceProperties", (_P, _I)),
        "error_name": Function("hipGetErrorName", (_I,), c_char_p),
        "error_text": Function("hipGetErrorString", (_I,), c_char_p),
        "last_error": Function("hipGetLastError", ()),
        "copy_in": Function("hipMemcpyAsync", (_P, _P, _N, Fixed(_I, 1), _P)),  # hipMemcpyHostToDevice
        "copy_out": Function("hipMemcpyAsync", (_P, _P, _N, Fixed(_I, 2), _P)),  # hipMemcpyDeviceToHost
        "copy_on": Function("hipMemcpyAsync", (_P, _P, _N, Fixed(_I, 3), _P)),  # hipMemcpyDeviceToDevice
        "instantiate": Function("hipGraphInstantiate", (_P, _P, Fixed(_P, None), Fixed(_P, None), Fixed(_N, 0))),
    },
    # HIP documents none. These are its names for what is sticky with CUDA: illegal address, timeout, destroyed context, assert, launch
    # failure. A runtime that reports a page fault at all gives it from every later call (ROCm/rocm-systems, pull request 10656, tests it).
    # A workgroup beyond the bounds that its kernel was compiled for gives 719 as well (ihipLaunchKernel_validate of hip_module.cpp).
    sticky=frozenset({700, 702, 709, 710, 719}),
    current=lambda context, device: device,
    words=_hip_words,
    arch=_hip_arch,
    forget=_hip_forget,
)
