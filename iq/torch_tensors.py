"""Tensors of torch as weights and products take them. torch is not imported here: who brings a tensor has imported it.

On a GPU nothing is copied: kernels are enqueued on torch's current stream with the tensors' addresses, and what they need besides is
allocated by torch, so that `torch.cuda.graph` captures them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard, cast

import numpy as np

from iq.device import default_device, device_named
from iq.errors import DeviceError, DtypeError, LayoutError, ShapeError
from iq.formats import Format
from iq.runtime import dlpack
from iq.runtime.buffer import Buffer
from iq.runtime.device import Device
from iq.runtime.dtypes import dtype_of

if TYPE_CHECKING:
    from iq.qtensor import QTensor
    from iq.runtime.backend import Prepared
    from iq.runtime.gpu.gpu import Gpu
    from iq.runtime.gpu.plans import Plan
    from iq.runtime.gpu.streams import Stream

# What kernels may read after the last block of packed weights; see iq.runtime.memory.SPARE_BYTES.
SPARE_BYTES = 16


def reads_past(fmt: type[Format]) -> bool:
    """Whether a format's kernels on GPUs may read past the last block."""
    return fmt.kernel_block_bytes() % SPARE_BYTES != 0


_CPU = -1  # as Tensor.get_device() has it


def is_tensor(x: object) -> TypeGuard[Any]:
    """Whether it is a tensor of torch."""
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    return tensor is not None and isinstance(x, tensor)


def device_of(tensor: Any) -> Device:
    """The device that a tensor lies on, open as `device_named` has it. Raises DeviceError for one that iq does not know."""
    if tensor.is_cuda:
        return device_named(f"{gpu_kind()}:{tensor.get_device()}")
    if tensor.device.type == "cpu":
        return device_named("cpu")
    raise DeviceError(f"iq has no device for a tensor on torch's {tensor.device}; it has for cpu and cuda")


def check_on(tensor: Any, device: Device, what: str) -> int:
    """The number of the device to torch, -1 for the CPU. Raises DeviceError for a tensor that lies on another one."""
    index = _index(device.dlpack_device)
    if index == tensor.get_device() and (tensor.is_cuda if index >= 0 else tensor.device.type == "cpu"):
        return index
    why = ", which runs through IREE's runtime and takes no tensors of torch" if device.dlpack_device is None else ""
    raise DeviceError(f"{what} is on torch's {tensor.device}, not on {device!r}{why}; move it there, or cross through the host by numpy()")


class Launch:
    """A kernel for given sizes, to be enqueued on torch's current stream of a GPU, any number of times and by any thread."""

    __slots__ = ("_device", "_index", "_latest", "_memory", "_plan")

    def __init__(self, device: Device, plan: Prepared, index: int, weight: Buffer | None = None) -> None:
        """index: torch's of the device. weight: a buffer of iq's that it reads; all else is torch's."""
        self._device, self._plan, self._index = device, cast("Plan", plan), index
        self._memory = weight.memory if weight else None
        self._latest: tuple[int, Stream | None] = (0, None)

    def __call__(self, addresses: Sequence[int], like: Any) -> None:
        """Enqueue it with the addresses of its inputs and outputs. like: a tensor on the GPU.

        Raises DeviceError, also while this thread captures by iq.
        """
        handle = _CURRENT[0](self._index)
        latest, stream = self._latest
        if stream is None or latest != handle:
            stream = self._stream(handle)
        if stream.gpu.captures:
            stream.gpu.refuse_capture("a product of torch's tensors (which torch.cuda.graph captures)")
        memory = self._memory
        if memory is not None and memory.settled is not stream:
            memory.use(stream)
        stream.launch(self._plan, addresses, like)

    def _stream(self, handle: int) -> Stream:
        stream: Stream = self._device.stream_of(handle)
        if handle != _OF_EACH_THREAD:
            self._latest = handle, stream
        return stream


# cudaStreamPerThread and hipStreamPerThread, which stand for another stream in each thread.
_OF_EACH_THREAD = 2


def aligned(tensor: Any, device: Device) -> Any:
    """The tensor, copied where it starts off the boundary that kernels need."""
    return tensor.clone() if tensor.data_ptr() % device.alignment else tensor


# ---- Products


class Ready(NamedTuple):
    """How a weight is multiplied with f32 tensors of one shape on a GPU.

    shape: of the result. launch: None where there is nothing to add up. x_bytes, out_bytes: of x and the result. gpu: torch's number of it.
    misaligned: the bits of an address that kernels need to be 0. start, end: of the weight.
    """

    shape: tuple[int, ...]
    launch: Launch | None
    x_bytes: int
    out_bytes: int
    gpu: int
    misaligned: int
    start: int
    end: int


def matmul(w: QTensor, packed: Buffer, x: Any, via: str | None, out: Any, stream: Any) -> Any:
    """See QTensor.matmul. packed: the weight's blocks."""
    torch = sys.modules["torch"]
    ready = w.for_tensors.get((x.shape, via))
    if ready is None or stream is not None or not _is_plain(x, ready.gpu, torch.float32):
        x = _checked(x, packed.device, stream, torch)
        if packed.device.is_cpu:
            return _matmul_on_cpu(w, x, via, out, torch)
        ready = _ready(w, packed, x, via)
    shape, launch, x_bytes, out_bytes, gpu, misaligned, start, end = ready
    given = x.data_ptr()
    if out is None:
        out = x.new_empty(shape)
        result = out.data_ptr()
    else:
        if not isinstance(out, torch.Tensor) or out.shape != shape or not _is_plain(out, gpu, torch.float32):
            _check_out(out, shape, packed.device, torch)
        result = out.data_ptr()
        after = result + out_bytes
        if (result < given + x_bytes and given < after) or (result < end and start < after):
            raise LayoutError("matmul: out shares memory with x or the weight, which are still read while it is written")
    if launch is None:
        return out.zero_()
    if (given | result) & misaligned:
        raise LayoutError(f"matmul: x or out does not start on a {misaligned + 1}-byte boundary, as kernels need; clone() it")
    launch((start, given, result), x)
    return out


def _is_plain(x: Any, index: int, dtype: Any) -> bool:
    """Whether a tensor needs no more checks than of its shape."""
    return x.dtype is dtype and x.get_device() == index and x.is_cuda and x.is_contiguous() and not x.requires_grad and not x.is_neg()


def _checked(x: Any, device: Device, stream: Any, torch: Any) -> Any:
    """x as f32, as kernels take it."""
    check_stream(stream, check_on(x, device, "matmul: x"))
    if x.requires_grad and torch.is_grad_enabled():
        raise DtypeError("matmul: x requires gradients, which only the operators of iq.torch give; detach() it, or use torch.no_grad()")
    if x.dtype is not torch.float32:
        if x.dtype not in (torch.float16, torch.bfloat16):
            raise DtypeError(f"matmul: x holds {x.dtype}, it takes float32, float16 or bfloat16")
        x = x.float()
    if not x.is_contiguous():
        raise LayoutError(f"matmul: x of shape {tuple(x.shape)} and strides {x.stride()} is not C-contiguous; use contiguous()")
    return x.resolve_neg()


def _ready(w: QTensor, packed: Buffer, x: Any, via: str | None) -> Ready:
    key = tuple(x.shape), via
    found = w.for_tensors.get(key)
    if found is not None:
        return found
    shape, prepared = w.product(*key)
    launch = Launch(packed.device, prepared, x.get_device(), packed) if prepared else None
    address = packed.address
    ready = Ready(
        shape, launch, 4 * x.numel(), 4 * math.prod(shape), x.get_device(), packed.device.alignment - 1, address, address + packed.nbytes
    )
    if len(w.for_tensors) >= _KEPT:
        w.for_tensors.clear()
    return w.for_tensors.setdefault(key, ready)


# Shapes of tensors that a weight keeps what it takes for: models call with the same ones again and again.
_KEPT = 256


def _matmul_on_cpu(w: QTensor, x: Any, via: str | None, out: Any, torch: Any) -> Any:
    device = w.device
    buffer = device.put(x.detach().numpy(), copy=None)
    if out is None:
        return torch.from_numpy(np.asarray(w.matmul(buffer, via)))
    _check_out(out, w.product(x.shape, via)[0], device, torch)
    if out.numel():
        w.matmul(buffer, via, device.put(out.detach().numpy(), copy=False))
    return out


def _check_out(out: Any, shape: tuple[int, ...], device: Device, torch: Any) -> None:
    if not is_tensor(out):
        raise DtypeError(f"matmul: x is a tensor of torch, so out has to be one; got {type(out).__name__}")
    if out.shape != shape:
        raise ShapeError(f"matmul: out has shape {tuple(out.shape)}, the result has {shape}")
    if out.dtype is not torch.float32:
        raise DtypeError(f"matmul: out holds {out.dtype}, the result is torch.float32")
    check_on(out, device, "matmul: out")
    if not out.is_contiguous() or out.is_neg():
        raise LayoutError(f"matmul: out of strides {out.stride()} is not C-contiguous")
    if out.requires_grad and torch.is_grad_enabled():
        raise DtypeError("matmul: out requires gradients, which do not go through it; detach() it")


def check_stream(stream: Any, index: int) -> None:
    """Raises DeviceError for a stream that is not torch's current one: torch may use a tensor's memory again on its own."""
    if stream is None or index == _CPU:
        return
    if getattr(stream, "cuda_stream", getattr(stream, "handle", stream)) != current_stream(index):
        raise DeviceError("tensors of torch are used on torch's current stream: name none, and call within `with torch.cuda.stream(...)`")


# ---- Weights


def take_packed(tensor: Any, device: Device | None, copy: bool | None, spare: bool) -> Buffer:
    """A uint8 tensor as packed weights; see QTensor.from_bytes. spare: whether its format's kernels read past the last block.

    device: None is the tensor's own if that is a GPU, else the default device.
    """
    torch = sys.modules["torch"]
    if tensor.dtype is not torch.uint8:
        raise DtypeError(f"from_bytes: packed weights are uint8, got {tensor.dtype}")
    if not tensor.is_contiguous():
        raise LayoutError(f"from_bytes: a tensor of shape {tuple(tensor.shape)} and strides {tensor.stride()} is not C-contiguous")
    if device is None:
        device = device_of(tensor) if tensor.is_cuda else default_device()
    index = _index(device.dlpack_device)
    if tensor.is_cuda and tensor.get_device() == index:
        return _on_gpu(tensor, device, index, copy, spare)
    if copy is False and not (device.is_cpu and not tensor.is_cuda):
        raise DeviceError(f"from_bytes: the tensor is on torch's {tensor.device}, not on {device!r}; use copy=None or copy=True to copy it")
    return device.put(tensor.detach().cpu().numpy(), copy=copy if device.is_cpu and not tensor.is_cuda else True)


def spare_bytes(tensor: Any) -> int:
    """How many bytes there are in a tensor's storage after its last element; the tensor is contiguous."""
    return int(tensor.untyped_storage().nbytes() - tensor.element_size() * (tensor.storage_offset() + tensor.numel()))


def _on_gpu(tensor: Any, device: Device, index: int, copy: bool | None, spare: bool) -> Buffer:
    from iq.runtime.foreign import ForeignMemory  # here, for it takes in the GPUs' part, which a CPU does without

    gpu = cast("Gpu", device._backend)
    gpu.collect()
    gpu.order(gpu.stream(current_stream(index)), gpu.own)
    memory = ForeignMemory(gpu, tensor.data_ptr(), tensor.numel(), tensor)
    shared = Buffer(device, memory, 0, tuple(tensor.shape), dtype_of("u8"))
    if spare and (there := spare_bytes(tensor)) < SPARE_BYTES:
        why = f"kernels read up to {SPARE_BYTES} bytes past the last block, and there are {there} in its storage"
    elif shared.address % device.alignment:
        why = f"it does not start on a {device.alignment}-byte boundary"
    else:
        return shared.copy() if copy else shared
    if copy is False:
        raise LayoutError(f"from_bytes: the tensor cannot be shared, {why}; iq.torch.padded makes one that can, copy=None copies")
    return shared.copy()


# ---- torch's devices and streams


def gpu_kind() -> str:
    """torch for ROCm calls its devices "cuda" as well."""
    return "hip" if sys.modules["torch"].version.hip else "cuda"


@lru_cache
def _index(device: tuple[int, int] | None) -> int:
    """torch's number for a device that DLPack calls so; -1 for the CPU, -2 for none."""
    if device is None:
        return -2
    kind, index = device
    if kind == dlpack.CPU:
        return _CPU
    return index if kind == (dlpack.ROCM if gpu_kind() == "hip" else dlpack.CUDA) else -2


def current_stream(index: int) -> int:
    """The handle of torch's current stream of a GPU."""
    return _CURRENT[0](index)  # type: ignore[no-any-return]


def _first(index: int) -> int:
    """`current_stream`, which it finds out how to have the next time."""
    torch: Any = sys.modules["torch"]
    # Not public, and costs a twentieth of what is.
    _CURRENT[0] = getattr(torch._C, "_cuda_getCurrentRawStream", None) or (lambda index: torch.cuda.current_stream(index).cuda_stream)
    return current_stream(index)


_CURRENT: list[Any] = [_first]
