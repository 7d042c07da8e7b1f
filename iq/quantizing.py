"""Weights quantized by kernels: those on a device where they lie, large arrays of the host on the device that they are for, or the CPU."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from iq import formats
from iq.device import device_named
from iq.errors import DeviceError, FormatError, LayoutError, NoArtifactError, NoCompilerError, NoKernelError, RowIndexError, ShapeError
from iq.formats import Format, Named, format_of
from iq.formats.arrays import checked
from iq.kernels import KernelSpec, kernels
from iq.operands import check_activations, ids_on_host, put, put_ids, widen
from iq.runtime.arrays import Bytes, check_sizes
from iq.runtime.buffer import Buffer
from iq.runtime.device import Device
from iq.runtime.dlpack import device_name

# Arrays of fewer weights are quantized by numpy, which takes a second or two for as many: to compile kernels takes longer.
KERNEL_WEIGHTS = 1 << 22


def quantize(array: ArrayLike, fmt: str | Named, imatrix: ArrayLike | None = None) -> Bytes:
    """Quantize float32, float16 or float64 [..., K] to GGML blocks, uint8[..., row_bytes(K)], byte for byte as ggml_quantize_chunk.

    As `iq.formats.quantize`, with its arguments and errors; large arrays are quantized by the kernels of the CPU where there are any, in a
    bundle that is named or to be compiled.
    """
    return quantize_part(array, format_of(fmt), imatrix, np.size(array))


def quantize_part(array: ArrayLike, fmt: type[Format], imatrix: ArrayLike | None, total: int) -> Bytes:
    """`quantize` of one of several arrays, which are of so many weights in all: a model's tensors."""
    cpu = _cpu() if total >= KERNEL_WEIGHTS else None
    if cpu is None or not _has_kernels(cpu, fmt):
        return formats.quantize(array, fmt, imatrix)
    return _from_host(array, fmt, cpu, imatrix).numpy()


def quantize_for(device: Device, array: ArrayLike, fmt: type[Format], imatrix: ArrayLike | None) -> Bytes | Buffer:
    """Blocks of an array of the host, for a device: on it, if its kernels made them, else on the host. Raises as `quantize` does."""
    if np.size(array) < KERNEL_WEIGHTS or not _has_kernels(device, fmt):
        return quantize(array, fmt, imatrix)
    return _from_host(array, fmt, device, imatrix)


def quantize_there(x: Buffer, fmt: type[Format], imatrix: Any, stream: Any) -> Buffer:
    """Blocks of f32, f16 or bf16 [..., K] on a device: u8 [..., row bytes], by its kernels. Weights are not looked through for NaN.

    imatrix: f32 [K], an array or a buffer on the device, or None. Raises FormatError for a format that kernels do not quantize to,
    ShapeError, DtypeError, DeviceError, or for want of a kernel BundleError or CompileError.
    """
    check_activations(x, "quantize")
    weighted = imatrix is not None and fmt.imatrix != "ignored"
    if not fmt.quantizer:
        raise FormatError(f"quantize: no kernel quantizes to {fmt.name}; they do to {_names('quantize')}. Give it an array of the host")
    k = x.shape[-1] if x.shape else 0
    nbytes = fmt.row_bytes(k)
    if k % fmt.kernel_block_weights():
        raise ShapeError(f"quantize: kernels take rows in multiples of {fmt.kernel_block_weights()} weights, x has shape {x.shape}")
    check_sizes("quantize", K=k)
    out = x.device.alloc((*x.shape[:-1], nbytes), "u8", stream=stream)
    inputs = [widen(x, stream)]
    if weighted:
        inputs.append(importance := put(imatrix, x.device, "quantize", stream))
        if importance.shape != (k,) or importance.element != "f32":
            raise ShapeError(f"quantize: the imatrix is {importance.element} of shape {importance.shape}; rows of {k} take f32 ({k},)")
    if out.size:
        spec = KernelSpec("quantize_imatrix" if weighted else "quantize", fmt.name, dtype="f32")
        sizes = {"rows": math.prod(x.shape[:-1]), "blocks": k // fmt.kernel_block_weights()}
        x.device.library.kernel(spec)(inputs, sizes, (out,), stream)
    return out


def device_of(x: Any) -> Device | None:
    """The device that weights lie on, in a buffer or in another library's array on a GPU; None for those in the host's memory."""
    if isinstance(x, Buffer):
        return x.device
    if isinstance(x, np.ndarray) or not hasattr(x, "__dlpack_device__"):
        return None
    kind, index = x.__dlpack_device__()
    lies = device_name((int(kind), int(index)))
    return device_named(lies) if lies.startswith(("cuda:", "hip:")) else None


def set_rows(packed: Buffer, fmt: type[Format], n: int, k: int, ids: Any, x: Any, stream: Any) -> None:
    """See `QTensor.set_rows`. packed: the blocks of n rows of k weights."""
    if not KernelSpec("set_rows", fmt.name, dtype="f32").exists(packed.device.target):
        raise FormatError(f"set_rows: writes {_names('set_rows')}, not {fmt.name}")
    rows = ids_on_host(ids, n, "set_rows", "rows")
    numbers, counts = np.unique(rows, return_counts=True)
    if (counts > 1).any():
        raise RowIndexError(f"set_rows: row {numbers[counts > 1][0]} is set more than once; each can be given one row of x")
    given = put(x, packed.device, "set_rows", stream)
    check_activations(given, "set_rows")
    if given.shape != (*rows.shape, k):
        raise ShapeError(f"set_rows: x has shape {given.shape}; for ids of shape {rows.shape} and rows of {k} it takes {(*rows.shape, k)}")
    if given.overlaps(packed):
        raise LayoutError("set_rows: x shares memory with the tensor, which is written while it is read")
    if given.size:
        spec = KernelSpec("set_rows", fmt.name, dtype="f32")
        sizes = {"rows": rows.size, "blocks": k // fmt.kernel_block_weights()}
        packed.device.library.kernel(spec)((widen(given, stream), put_ids(rows, packed.device, stream)), sizes, (packed,), stream)


def _from_host(array: ArrayLike, fmt: type[Format], device: Device, imatrix: ArrayLike | None) -> Buffer:
    form, weights, importance = checked(array, fmt, imatrix)
    return quantize_there(device.put(weights, copy=None), form, importance, None)


def _cpu() -> Device | None:
    """The CPU's device; None where IREE's runtime, through which it runs its kernels, is not installed."""
    try:
        return device_named("cpu")
    except DeviceError:
        return None


def _has_kernels(device: Device, fmt: type[Format]) -> bool:
    """Whether the device has, or can be compiled, kernels that quantize to a format. An emulated GPU is no faster than numpy."""
    if not fmt.quantizer or getattr(device, "emulated", None):
        return False
    try:
        device.library.kernel(KernelSpec("quantize", fmt.name, dtype="f32"))
    except (NoArtifactError, NoCompilerError, NoKernelError):
        return False
    return True


def _names(op: str) -> str:
    """The formats that have an op, for messages."""
    return ", ".join(dict.fromkeys(spec.format for spec in kernels() if spec.op == op))
