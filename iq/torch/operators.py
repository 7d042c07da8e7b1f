"""The operators: what they check, how they run on CPU and GPU, what is known of them without data, and the gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from iq import torch_tensors
from iq.device import device_named
from iq.errors import DtypeError, LayoutError, RowIndexError, ShapeError
from iq.formats import Format
from iq.kernels import KernelSpec
from iq.moe import check_shapes, kernel_for
from iq.qtensor import QTensor, prepare, weights_format
from iq.runtime.device import Device
from iq.torch_tensors import SPARE_BYTES, device_of, spare_bytes

# The boundary that weights start on: that of CPU kernels, and more than a GPU's.
_ALIGNMENT = 64

_FLOATS = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


def mul_mat(w: Tensor, x: Tensor, format: str, n: int, via: str | None = None) -> Tensor:
    """x [..., K] times the transpose of a weight [N, K]: [..., N] of x's dtype; `torch.ops.iq.mul_mat`.

    w: uint8, the GGML blocks of [N, K], 1-D or [N, bytes of a row], on x's device. x: float32, float16 or bfloat16; sums are f32, and the
    result is rounded to x's dtype. format: "q4_k". n: N. via: as in QTensor.matmul. The gradient of x is that of the dequantized weight;
    w has none. Raises ShapeError, DtypeError, FormatError, DeviceError; LayoutError for a weight that `padded` has to mend.
    """
    return torch.ops.iq.mul_mat(w, x, format, n, via)


def dequantize(w: Tensor, format: str, shape: Sequence[int], dtype: Any = torch.float32) -> Tensor:
    """The weights as numbers of a shape, whose last axis is whole rows: float32, float16 or bfloat16; `torch.ops.iq.dequantize`."""
    return torch.ops.iq.dequantize(w, format, shape, dtype)


def get_rows(w: Tensor, ids: Tensor, format: str, k: int, dtype: Any = torch.float32) -> Tensor:
    """Rows of a weight [N, K] as numbers: [..., K] for integer ids [...]; `torch.ops.iq.get_rows`.

    Raises RowIndexError on the CPU for an id that there is no row for. On a GPU such an id fails the device, as in
    torch.nn.functional.embedding: nothing waits for the ids there.
    """
    return torch.ops.iq.get_rows(w, ids, format, k, dtype)


def moe(w: Tensor, x: Tensor, ids: Tensor, format: str, n: int, via: str | None = None) -> Tensor:
    """The matrices of a weight [E, N, K] that tokens pick, times their activations: [..., picks, N] of x's dtype; `torch.ops.iq.moe`.

    w, format, n, via: as for `mul_mat`, with the blocks of all experts. ids: integers [..., picks], the experts that each token picks. x:
    [..., 1, K], a row of activations for all picks of a token, or [..., picks, K], one for each. It has no gradient. Raises as `mul_mat`,
    and for an expert that there is none of as `get_rows`.
    """
    return torch.ops.iq.moe(w, x, ids, format, n, via)


def padded(w: Tensor) -> Tensor:
    """A packed weight with 16 spare bytes after it in its storage, starting on a 64-byte boundary: w itself where it is so, else a copy.

    Kernels for some formats read so far past the last block. Raises DtypeError for other tensors than uint8.
    """
    if w.dtype is not torch.uint8:
        raise DtypeError(f"packed weights are uint8, got {w.dtype}")
    if w.is_contiguous() and spare_bytes(w) >= SPARE_BYTES and _is_aligned(w, _ALIGNMENT):
        return w
    copy = w.new_empty(w.numel() + SPARE_BYTES)[: w.numel()].view(w.shape)
    with torch.no_grad():
        copy.copy_(w)
    return copy


def _is_aligned(w: Tensor, boundary: int) -> bool:
    try:
        return bool(w.data_ptr() % boundary == 0)
    except RuntimeError:  # of a tensor without memory: meta, fake
        return True


# ---- Checks, which the operators' fakes make as well


def _weight(nbytes: Any, packed: Any, format: str, n: Any, k: Any, op: str) -> type[Format]:
    """The format of a weight [N, K] of so many elements of the dtype `packed`. Raises DtypeError, FormatError or ShapeError."""
    fmt = weights_format(format)
    if packed is not torch.uint8:
        raise DtypeError(f"{op}: packed weights are uint8, got {packed}")
    if k % fmt.kernel_block_weights():
        raise ShapeError(f"{op}: kernels take {fmt.name} rows in multiples of {fmt.kernel_block_weights()} weights, got {k}")
    if nbytes != n * fmt.row_bytes(k):
        raise ShapeError(f"{op}: {fmt.name} weights of shape {(n, k)} take {n * fmt.row_bytes(k)} bytes, got {nbytes}")
    return fmt


def _check_readable(w: Tensor, fmt: type[Format], device: Device, op: str) -> None:
    """Raises LayoutError where a kernel cannot take the weight where it lies."""
    if not w.is_contiguous():
        why = "it is not C-contiguous"
    elif not device.is_cpu and torch_tensors.reads_past(fmt) and (there := spare_bytes(w)) < SPARE_BYTES:
        why = f"{fmt.name}'s kernels read up to {SPARE_BYTES} bytes past the last block, and there are {there} in its storage"
    elif w.data_ptr() % device.alignment:
        why = f"it does not start on a {device.alignment}-byte boundary"
    else:
        return
    raise LayoutError(f"{op}: the weight cannot be read in place: {why}. iq.torch.padded(w) makes one that can: keep it in place of w")


def _check_product(nbytes: Any, packed: Any, shape: Sequence[Any], dtype: Any, format: str, n: Any) -> type[Format]:
    """The format of a weight of so many elements of the dtype `packed`. Raises as `mul_mat`."""
    if dtype not in _FLOATS:
        raise DtypeError(f"iq::mul_mat: x holds {dtype}, it takes float32, float16 or bfloat16")
    if not shape:
        raise ShapeError("iq::mul_mat: x has shape (); its last axis is that of the weight's rows")
    return _weight(nbytes, packed, format, n, shape[-1], "iq::mul_mat")


def _output(dtype: Any, op: str) -> str:
    if dtype not in _FLOATS:
        raise DtypeError(f"{op}: writes float32, float16 or bfloat16, not {dtype}")
    return _FLOATS[dtype]


# ---- The operators


_LIBRARY = torch.library.Library("iq", "DEF")
for _schema in (
    "mul_mat(Tensor w, Tensor x, str format, SymInt n, str? via=None) -> Tensor",
    "dequantize(Tensor w, str format, SymInt[] shape, ScalarType dtype) -> Tensor",
    "get_rows(Tensor w, Tensor ids, str format, SymInt k, ScalarType dtype) -> Tensor",
    "moe(Tensor w, Tensor x, Tensor ids, str format, SymInt n, str? via=None) -> Tensor",
):
    _LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))


class _Product(NamedTuple):
    """A product on a GPU, for tensors that have been checked but for where they lie.

    shape: of the result. launch: None where there is nothing to add up. spare: whether the kernel reads past the last block.
    """

    device: Device
    format: type[Format]
    shape: tuple[int, ...]
    launch: torch_tensors.Launch | None
    spare: bool


@lru_cache(4096)  # models call with the same shapes again and again
def _product(index: int, nbytes: int, packed: Any, shape: tuple[int, ...], dtype: Any, format: str, n: int, via: str | None) -> _Product:
    fmt = _check_product(nbytes, packed, shape, dtype, format, n)
    device = device_named(f"{torch_tensors.gpu_kind()}:{index}")
    result, m, k = (*shape[:-1], n), math.prod(shape[:-1]), shape[-1]
    launch = torch_tensors.Launch(device, prepare(fmt, device, m, n, k, via), index) if m * n * k else None
    return _Product(device, fmt, result, launch, torch_tensors.reads_past(fmt))


def _mul_mat_on_cpu(w: Tensor, x: Tensor, format: str, n: int, via: str | None = None) -> Tensor:
    fmt = _check_product(w.numel(), w.dtype, x.shape, x.dtype, format, n)
    y = _weight_on_cpu(w, fmt, (n, x.shape[-1]), "iq::mul_mat").matmul(x.detach().float().contiguous(), via)
    return y.to(x.dtype)


def _mul_mat_on_gpu(w: Tensor, x: Tensor, format: str, n: int, via: str | None = None) -> Tensor:
    dtype, index = x.dtype, x.get_device()
    device, fmt, shape, launch, spare = _product(index, w.numel(), w.dtype, x.shape, dtype, format, n, via)
    if w.get_device() != index:
        torch_tensors.check_on(w, device, "iq::mul_mat: w")
    address = w.data_ptr()
    if address % device.alignment or not w.is_contiguous() or (spare and spare_bytes(w) < SPARE_BYTES):
        _check_readable(w, fmt, device, "iq::mul_mat")
    if dtype is not torch.float32:
        x = x.float()
    if not x.is_contiguous():
        x = x.contiguous()
    given = x.data_ptr()
    if given % device.alignment:
        x = x.clone()
        given = x.data_ptr()
    y = x.new_empty(shape)
    if launch is None:
        y.zero_()
    else:
        launch((address, given, y.data_ptr()), x)
    return y if dtype is torch.float32 else y.to(dtype)


def _dequantize_on_cpu(w: Tensor, format: str, shape: Sequence[int], dtype: Any) -> Tensor:
    fmt, n, k = _rows_of(w, format, shape)
    weight = _weight_on_cpu(w, fmt, (n, k), "iq::dequantize")
    return torch.from_dlpack(weight.dequantize(_output(dtype, "iq::dequantize"))).view(tuple(shape))


def _dequantize_on_gpu(w: Tensor, format: str, shape: Sequence[int], dtype: Any) -> Tensor:
    fmt, n, k = _rows_of(w, format, shape)
    y = w.new_empty(tuple(shape), dtype=dtype)
    _decode(w, fmt, "dequantize", _output(dtype, "iq::dequantize"), {"blocks": n * k // fmt.kernel_block_weights()}, (), y)
    return y


def _get_rows_on_cpu(w: Tensor, ids: Tensor, format: str, k: int, dtype: Any) -> Tensor:
    fmt, n = _rows_for(w, ids, format, k)
    _check_ids(ids, n, "iq::get_rows", "rows")
    weight = _weight_on_cpu(w, fmt, (n, k), "iq::get_rows")
    return torch.from_dlpack(weight.get_rows(ids.numpy(), _output(dtype, "iq::get_rows")))


def _get_rows_on_gpu(w: Tensor, ids: Tensor, format: str, k: int, dtype: Any) -> Tensor:
    fmt, n = _rows_for(w, ids, format, k)
    _assert_ids(ids, n)
    y = w.new_empty((*ids.shape, k), dtype=dtype)
    sizes = {"rows": ids.numel(), "blocks": k // fmt.kernel_block_weights()}
    _decode(w, fmt, "get_rows", _output(dtype, "iq::get_rows"), sizes, (ids.to(torch.int32).contiguous(),), y)
    return y


def _moe_on_cpu(w: Tensor, x: Tensor, ids: Tensor, format: str, n: int, via: str | None = None) -> Tensor:
    fmt, experts = _experts_of(w, x, ids, format, n)
    _check_ids(ids, experts[0], "iq::moe", "experts")
    weight = _weight_on_cpu(w, fmt, experts, "iq::moe")
    return torch.from_dlpack(weight.moe(x.detach().float().contiguous().numpy(), ids.numpy(), via)).to(x.dtype)


def _moe_on_gpu(w: Tensor, x: Tensor, ids: Tensor, format: str, n: int, via: str | None = None) -> Tensor:
    fmt, experts = _experts_of(w, x, ids, format, n)
    _assert_ids(ids, experts[0])
    y = x.new_empty((*ids.shape, n), dtype=torch.float32)
    if not x.numel():
        return y.zero_().to(x.dtype)
    if y.numel():
        spec, sizes = kernel_for(fmt, device_of(w).target, experts, x.shape, ids.shape, via)
        given = torch_tensors.aligned(x.float().contiguous(), device_of(w))
        _enqueue(w, fmt, spec, sizes, (given, ids.to(torch.int32).contiguous()), y)
    return y.to(x.dtype)


def _decode(w: Tensor, fmt: type[Format], op: str, element: str, sizes: dict[str, int], more: tuple[Tensor, ...], y: Tensor) -> None:
    """Enqueue a kernel that writes a weight's numbers to y."""
    if y.numel():
        _enqueue(w, fmt, KernelSpec.of(op, fmt.name, element), sizes, more, y)


def _enqueue(w: Tensor, fmt: type[Format], spec: KernelSpec, sizes: dict[str, int], more: tuple[Tensor, ...], y: Tensor) -> None:
    """Enqueue a kernel that reads a weight and more, and writes y."""
    device = device_of(w)
    for tensor in (*more, y):
        index = torch_tensors.check_on(tensor, device, f"iq::{spec.op}: an operand")
    _check_readable(w, fmt, device, f"iq::{spec.op}")
    plan = device.library.kernel(spec).sized(tuple(sizes[name] for name in spec.definition.sizes)).prepared
    torch_tensors.Launch(device, plan, index)(tuple(t.data_ptr() for t in (w, *more, y)), y)


def _check_ids(ids: Tensor, n: int, op: str, of: str) -> None:
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= n):
        raise RowIndexError(f"{op}: ids from {int(ids.min())} to {int(ids.max())}; the weight has {n} {of}")


def _assert_ids(ids: Tensor, n: int) -> None:
    """On a GPU, without a wait: ids that are outside fail the device."""
    if ids.numel():
        torch._assert_async(((ids >= 0) & (ids < n)).all())


def _weight_on_cpu(w: Tensor, fmt: type[Format], shape: tuple[int, ...], op: str) -> QTensor:
    """A weight in place."""
    device = device_of(w)
    _check_readable(w, fmt, device, op)
    return QTensor(device.put(w.detach().numpy(), copy=None), fmt, shape)


def _rows_of(w: Tensor, format: str, shape: Sequence[int]) -> tuple[type[Format], int, int]:
    """Format, N and K of a weight of a shape."""
    if not len(shape):
        raise ShapeError("iq::dequantize: the shape () has no axis of rows")
    n, k = math.prod(shape[:-1]), shape[-1]
    return _weight(w.numel(), w.dtype, format, n, k, "iq::dequantize"), n, k


def _rows_for(w: Tensor, ids: Tensor, format: str, k: int) -> tuple[type[Format], int]:
    """Format and N of a weight to take rows from."""
    _check_integers(ids, "iq::get_rows")
    n = w.numel() // weights_format(format).row_bytes(k) if k else 0
    return _weight(w.numel(), w.dtype, format, n, k, "iq::get_rows"), n


def _experts_of(w: Tensor, x: Tensor, ids: Tensor, format: str, n: int) -> tuple[type[Format], tuple[int, int, int]]:
    """The format and (E, N, K) of a weight whose experts are picked."""
    _check_integers(ids, "iq::moe")
    _output(x.dtype, "iq::moe")
    k = x.shape[-1] if x.dim() else 0
    row_bytes = weights_format(format).row_bytes(k)
    experts = w.numel() // (n * row_bytes) if n * row_bytes else 0
    fmt = _weight(w.numel(), w.dtype, format, experts * n, k, "iq::moe")
    check_shapes((experts, n, k), tuple(x.shape), tuple(ids.shape))
    return fmt, (experts, n, k)


def _check_integers(ids: Tensor, op: str) -> None:
    if ids.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise DtypeError(f"{op}: ids are integers, got {ids.dtype}")


def _fake_mul_mat(w: Tensor, x: Tensor, format: str, n: int, via: str | None = None) -> Tensor:
    _check_product(w.numel(), w.dtype, x.shape, x.dtype, format, n)
    return x.new_empty((*x.shape[:-1], n))


def _fake_dequantize(w: Tensor, format: str, shape: Sequence[int], dtype: Any) -> Tensor:
    _rows_of(w, format, shape)
    _output(dtype, "iq::dequantize")
    return w.new_empty(tuple(shape), dtype=dtype)


def _fake_get_rows(w: Tensor, ids: Tensor, format: str, k: int, dtype: Any) -> Tensor:
    _rows_for(w, ids, format, k)
    _output(dtype, "iq::get_rows")
    return w.new_empty((*ids.shape, k), dtype=dtype)


def _fake_moe(w: Tensor, x: Tensor, ids: Tensor, format: str, n: int, via: str | None = None) -> Tensor:
    _experts_of(w, x, ids, format, n)
    return x.new_empty((*ids.shape, n))


for _name, _on_cpu, _on_gpu, _fake in (
    ("mul_mat", _mul_mat_on_cpu, _mul_mat_on_gpu, _fake_mul_mat),
    ("dequantize", _dequantize_on_cpu, _dequantize_on_gpu, _fake_dequantize),
    ("get_rows", _get_rows_on_cpu, _get_rows_on_gpu, _fake_get_rows),
    ("moe", _moe_on_cpu, _moe_on_gpu, _fake_moe),
):
    _LIBRARY.impl(_name, _on_cpu, "CPU")
    _LIBRARY.impl(_name, _on_gpu, "CUDA")  # torch for ROCm has its GPUs under this name
    torch.library.register_fake(f"iq::{_name}", _fake, lib=_LIBRARY)


def _keep_for_gradient(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    w, x, ctx.format, ctx.n, _ = inputs
    ctx.k = x.shape[-1]
    ctx.save_for_backward(w)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    if not ctx.needs_input_grad[1]:
        return None, None, None, None, None
    (w,) = ctx.saved_tensors
    return None, grad @ torch.ops.iq.dequantize(w, ctx.format, [ctx.n, ctx.k], grad.dtype), None, None, None


torch.library.register_autograd("iq::mul_mat", _gradient, setup_context=_keep_for_gradient, lib=_LIBRARY)


def _no_gradient(ctx: Any, grad: Tensor) -> NoReturn:
    raise DtypeError("iq::moe has no gradient: detach() x, or dequantize the weight and multiply with torch")


torch.library.register_autograd("iq::moe", _no_gradient, lib=_LIBRARY)
