"""Quantized tensors on a device, and the ops that take them."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from types import EllipsisType
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import ArrayLike

from iq import quantizing, torch_tensors
from iq.device import default_device, device_named, given_device
from iq.errors import DeviceError, DtypeError, FormatError, LayoutError, ShapeError
from iq.formats import Format, format_of
from iq.kernels import DTYPES, KernelSpec, Problem, chosen
from iq.moe import moe
from iq.operands import check_activations, ids_on_host, put, put_ids, refuse_out, widen
from iq.runtime.arrays import Array, Bytes, check_array, check_shape, check_sizes
from iq.runtime.backend import Prepared
from iq.runtime.buffer import Buffer
from iq.runtime.device import Device
from iq.runtime.dlpack import device_name
from iq.runtime.dtypes import DTYPES as ELEMENTS
from iq.runtime.dtypes import dtype_of
from iq.runtime.library import Kernel
from iq.torch_tensors import SPARE_BYTES, is_tensor


class QTensor:
    """A weight in one of GGML's formats, on a device, in GGML's own layout: f32 [N, K] quantized row by row.

    shape: (N, K); also (K,), which ops take as one row, and (E, N, K), matrices of experts: `moe` multiplies with those that tokens pick,
    `w[e]` is one of them, and dequantize and get_rows take it as E * N rows.
    format: the format's name ("q4_k"). device: where it lives. nbytes: bytes of the GGML blocks. None of these can be set.
    """

    __slots__ = ("_format", "_packed", "_products", "_shape", "for_tensors")

    def __init__(self, packed: Buffer, format: type[Format], shape: tuple[int, ...]) -> None:
        """For this package: `packed` holds the u8 GGML blocks of `shape`; see `from_bytes` for the checks."""
        self._packed = packed
        self._format = format
        self._shape = shape
        # For iq.torch_tensors: what it prepares for products with torch's tensors.
        self.for_tensors: dict[tuple[tuple[int, ...], str | None], torch_tensors.Ready] = {}
        self._products: dict[tuple[tuple[tuple[int, ...], str, bool], str | None], _Product] = {}

    @classmethod
    def quantize(cls, array: Any, format: str, device: Device | str | None = None, imatrix: Any = None, stream: Any = None) -> QTensor:
        """Quantize [N, K], [K] or [E, N, K], to ggml's bytes.

        array: f32, f16 or f64 of the host, quantized on the device if it is large and the device has the kernels, else on the host; or f32,
        f16 or bf16 on a device, a buffer or another library's (with `__dlpack__`), quantized where it lies and not looked through for NaN.
        imatrix: f32 [K], the importance of each column, as GGML's.
        device: a Device, or the name of one ("hip:1"; the same device for every tensor that names it), or None for the default device, or
        the one that the array lies on. stream: see `iq.Device`; used for what lies on a device.
        Raises FormatError, ShapeError, DtypeError or DeviceError, or for want of a kernel BundleError or CompileError.
        """
        fmt = weights_format(format)
        if (lies := quantizing.device_of(array)) is None:
            shape = _check_weights_shape(np.shape(array), fmt)
            on = given_device(device)
            return cls.from_bytes(quantizing.quantize_for(on, array, fmt, imatrix), fmt.name, shape, on)
        on = lies if device is None else given_device(device)
        x = put(array, on, "quantize", stream)
        return cls(quantizing.quantize_there(x, fmt, imatrix, stream), fmt, _check_weights_shape(x.shape, fmt))

    @classmethod
    def from_bytes(
        cls,
        packed: Bytes | Buffer | Any,
        format: str,
        shape: Sequence[int],
        device: Device | str | None = None,
        *,
        copy: bool | EllipsisType | None = ...,
    ) -> QTensor:
        """A tensor of uint8 GGML blocks, of any shape as long as the bytes are as many as `shape` takes.

        packed: an array to put on the device (see `quantize`; `copy` is as in `Device.put`), or a u8 buffer to use as it is. Or a tensor of
        torch, or an array of another library (with `__dlpack__`): those stay on their device where none is named.
        copy: left out, arrays are copied, and what other libraries have on the device is shared where it can be: some formats' kernels read
        up to 16 bytes past the last block, so that it takes a tensor of torch with so many spare bytes in its storage (`iq.torch.padded`).
        Raises FormatError, ShapeError, DtypeError, LayoutError, or DeviceError for a buffer of another device.
        """
        fmt = weights_format(format)
        dims = _check_weights_shape(shape, fmt)
        if not isinstance(packed, Buffer | np.ndarray) and hasattr(packed, "__dlpack__"):
            packed = _take_packed(packed, fmt, device, None if copy is ... else copy)
            device = packed.device
        if not isinstance(packed, Buffer):
            check_array(packed, "from_bytes")
        if packed.dtype != np.uint8:
            raise DtypeError(f"from_bytes: packed weights are uint8, got {packed.dtype}")
        nbytes = math.prod(dims[:-1]) * fmt.row_bytes(dims[-1])
        if packed.nbytes != nbytes:
            raise ShapeError(f"from_bytes: {fmt.name} weights of shape {dims} take {nbytes} bytes, got {packed.nbytes}")
        if not isinstance(packed, Buffer):
            packed = given_device(device).put(packed, copy=True if copy is ... else copy)
        elif device is not None and packed.device is not given_device(device):
            raise DeviceError(f"from_bytes: the buffer is on {packed.device!r}, the tensor is to be on {device!r}")
        packed.check_aligned()
        return cls(packed, fmt, dims)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def format(self) -> str:
        return self._format.name

    @property
    def device(self) -> Device:
        return self._packed.device

    @property
    def nbytes(self) -> int:
        """Bytes of the GGML blocks."""
        return self._packed.nbytes

    def __repr__(self) -> str:
        return f"QTensor(shape={self.shape}, format={self.format!r}, device={self.device.name!r})"

    def to_bytes(self) -> Bytes:
        """A copy of the GGML blocks on the host: uint8 [..., bytes of a row]."""
        return self._packed.numpy().reshape(*self.shape[:-1], self._format.row_bytes(self.shape[-1]))

    def __getitem__(self, expert: int) -> QTensor:
        """One matrix [N, K] of a weight [E, N, K], which shares its memory. A negative number counts from the end.

        Raises IndexError for an expert that there is none of, ShapeError for a weight of another shape, LayoutError where the matrix does
        not start on the boundary that kernels need.
        """
        experts, n, k = self._experts("w[e]")
        number = range(experts)[operator.index(expert)]
        nbytes = n * self._format.row_bytes(k)
        matrix = self._packed.reshape(-1)[number * nbytes : (number + 1) * nbytes]
        matrix.check_aligned()
        return QTensor(matrix, self._format, (n, k))

    # ---- Ops

    @overload
    def matmul(self, x: Array | Buffer, via: str | None = None, out: Buffer | None = None, stream: Any = None) -> Buffer: ...

    @overload
    def matmul(self, x: Any, via: str | None = None, out: Any = None, stream: Any = None) -> Any: ...

    def matmul(self, x: Any, via: str | None = None, out: Any = None, stream: Any = None) -> Any:
        """x [..., K] times the transpose of this [N, K]: a Buffer, f32 [..., N] on the device.

        x: f32, f16 or bf16, an array or a buffer. An array of another library (with `__dlpack__`) is read in place where it lies on the
        device. For a tensor of torch, on the device, the result is a tensor, and `out` is one; all happens on torch's current stream, and
        without gradients (see `iq.torch`). via: "q8_1" quantizes x to 8 bits, "float" does not; None takes the default of format,
        target and shape (see `iq.kernels.choose`). out: an f32 buffer of the result's shape to write into, and to return.
        stream: see `iq.Device`; on a GPU the result is there when the stream has got so far.
        Raises ShapeError, DtypeError, LayoutError, FormatError (a `via` that the format does not have), DeviceError, or for want of a
        kernel BundleError or CompileError.
        """
        packed = self._packed
        device = packed.device
        if not isinstance(x, Buffer) or x.device is not device:
            if is_tensor(x):
                return torch_tensors.matmul(self, packed, x, via, out, stream)
            x = put(x, device, "matmul", stream)
        on = device.stream_of(stream)
        # What has been checked once for these shapes, dtypes and alignments is not checked again: a call costs little more than its launch.
        product = self._products.get((x.layout, via)) or self._product(x, via, on)
        if out is None:
            out = device.empty(product.shape, _F32, on)
        elif not isinstance(out, Buffer) or out.layout != product.out or out.device is not device or out.overlaps(x, packed):
            refuse_out("matmul", out, product.shape, device)
        if product.prepared is None:
            out.fill_zero(stream=stream)
        else:
            product.prepared.launch((packed, widen(x, stream) if product.widen else x, out), on)
        return out

    def _product(self, x: Buffer, via: str | None, stream: Any) -> _Product:
        """The kernel that multiplies with x of a shape and dtype, prepared."""
        check_activations(x, "matmul")
        result, prepared = self.product(x.shape, via)
        x.check_aligned()
        if len(self._products) >= _PRODUCTS_KEPT:
            self._products.clear()
        product = _Product(result, (result, "f32", True), prepared, prepared is not None and x.element != "f32")
        return self._products.setdefault((x.layout, via), product)

    def product(self, shape: tuple[int, ...], via: str | None) -> tuple[tuple[int, ...], Prepared | None]:
        """For this package: the shape of the product with f32 of a shape, and its kernel; None where there is nothing to add up."""
        if len(self.shape) > 2:
            raise ShapeError(f"matmul: takes a weight of shape (N, K) or (K,), this one has {self.shape}; w[e] is one of its matrices")
        n, k = self._rows("matmul")
        if len(shape) < 1 or shape[-1] != k:
            raise ShapeError(f"matmul: x has shape {tuple(shape)}, the weight {self.shape}; the last axis of x must be {k}")
        result, m = (*shape[:-1], n), math.prod(shape[:-1])
        return result, prepare(self._format, self.device, m, n, k, via) if m * n * k else None

    def moe(self, x: Any, ids: ArrayLike | Buffer | Any, via: str | None = None, out: Buffer | None = None, stream: Any = None) -> Buffer:
        """The matrices of this [E, N, K] that tokens pick, times their activations: a Buffer, f32 [..., picks, N] on the device.

        ids: integers [..., picks], the experts that each token picks. x: [..., 1, K], a row of activations for all picks of a token, or
        [..., picks, K], one for each; else x, via, out and stream are as for `matmul`. Few picks take a matvec each, more are grouped by
        expert on the device (see `iq.kernels.choose`). The ids are copied to the host, which waits for a buffer's, and checked there.
        Raises RowIndexError for an expert that there is none of, naming the first, and what `matmul` raises.
        """
        experts = self._experts("moe")
        self._rows("moe")
        return moe(self._packed, self._format, experts, x, ids, via, out, stream)

    def dequantize(self, dtype: Any = "float32", stream: Any = None) -> Buffer:
        """The weights as numbers: f32, f16 or bf16 of this shape. Raises ShapeError or DtypeError."""
        n, k = self._rows("dequantize")
        element = _output_dtype(dtype, "dequantize")
        out = self.device.alloc(self.shape, element, stream=stream)
        if blocks := n * k // self._format.kernel_block_weights():
            self._kernel("dequantize", element)((self._packed,), {"blocks": blocks}, (out,), stream)
        return out

    def get_rows(self, ids: ArrayLike | Buffer | Any, dtype: Any = "float32", stream: Any = None) -> Buffer:
        """Rows of this [N, K] as numbers: f32, f16 or bf16 [..., K] for integer ids [...]. Of [E, N, K], row n of expert e is e * N + n.

        The ids are copied to the host, which waits for a buffer's, and checked there; the kernel gets the copy that was checked.
        Raises RowIndexError for an id outside the tensor, naming the first, ShapeError or DtypeError.
        """
        n, k = self._rows("get_rows")
        element = _output_dtype(dtype, "get_rows")
        rows = ids_on_host(ids, n, "get_rows", "rows")
        out = self.device.alloc((*rows.shape, k), element, stream=stream)
        if out.size:
            sizes = {"rows": rows.size, "blocks": k // self._format.kernel_block_weights()}
            self._kernel("get_rows", element)((self._packed, put_ids(rows, self.device, stream)), sizes, (out,), stream)
        return out

    def set_rows(self, ids: ArrayLike | Buffer | Any, x: Any, stream: Any = None) -> None:
        """Quantize rows of numbers into rows of this [N, K], as a cache of keys and values takes them: self[ids[i]] = x[i].

        To the bytes of ggml's set_rows on CPUs (iq4_nl's quantizer there is not that of weights). llama.cpp rotates x first: `iq.hadamard`.
        ids: integers [...], each of them once; copied to the host and checked there, as in `get_rows`. x: f32, f16 or bf16 [..., K], as for
        `matmul`. Formats with blocks of 32 weights at most have this, and plain floats. Other rows are left as they are.
        Raises RowIndexError for an id outside the tensor or one that comes twice, FormatError, ShapeError, DtypeError, LayoutError or
        DeviceError.
        """
        n, k = self._rows("set_rows")
        quantizing.set_rows(self._packed, self._format, n, k, ids, x, stream)

    def _kernel(self, op: str, variant: str) -> Kernel:
        return self.device.library.kernel(KernelSpec.of(op, self.format, variant))

    def _rows(self, op: str) -> tuple[int, int]:
        """How many rows there are, and K. Raises ShapeError for rows that kernels do not take."""
        *rows, k = self.shape
        if k % self._format.kernel_block_weights():
            raise ShapeError(
                f"{op}: kernels take {self.format} rows in multiples of {self._format.kernel_block_weights()} weights, "
                f"this one has {self.shape}"
            )
        check_sizes(op, K=k)
        return math.prod(rows), k

    def _experts(self, op: str) -> tuple[int, int, int]:
        """E, N and K. Raises ShapeError for a weight that is no matrices of experts."""
        if len(self.shape) != 3:
            raise ShapeError(f"{op}: takes a weight of shape (E, N, K), this one has {self.shape}")
        experts, n, k = self.shape
        return experts, n, k


def quantize_q8_1(x: Array | Buffer, device: Device | str | None = None, padding: int = 512, stream: Any = None) -> Buffer:
    """Activations f32 [M, K] in GGML's q8_1: uint8 [M, 36 * blocks], rows of 32-value blocks padded with zeros to a multiple of `padding`.

    A block is f16 d, f16 s, 32 int8: x = d * q, and s the sum of the x. `padding` is a multiple of 32 (GGML's matmul on GPUs takes 512).
    device: None is x's own where x is a buffer, else the default device. Raises ShapeError, DtypeError, LayoutError or DeviceError.
    """
    fmt = format_of("q8_1")
    if not isinstance(padding, int) or padding < 1 or padding % fmt.block_size:
        raise ShapeError(f"quantize_q8_1: padding {padding} is no multiple of {fmt.block_size}")
    on = x.device if device is None and isinstance(x, Buffer) else given_device(device)
    buffer = put(x, on, "quantize_q8_1", stream)
    if buffer.element != "f32":
        raise DtypeError(f"quantize_q8_1: x holds {buffer.element}, it takes f32")
    if buffer.ndim != 2:
        raise ShapeError(f"quantize_q8_1: takes x of shape (M, K), got {buffer.shape}")
    m, k = buffer.shape
    q8_blocks = -(-k // padding) * padding // fmt.block_size
    out = on.alloc((m, q8_blocks * fmt.type_size), "u8", stream=stream)
    if out.size:
        kernel = on.library.kernel(KernelSpec("quantize_q8_1", "q8_1", dtype="f32"))
        kernel((buffer,), {"m": m, "k": k, "q8_blocks": q8_blocks}, (out,), stream)
    return out


class _Product(NamedTuple):
    """How a weight is multiplied with x of one layout.

    shape: of the result. out: the layout of a buffer for it. prepared: the kernel, None where there is nothing to add up. widen: whether x
    becomes f32 first.
    """

    shape: tuple[int, ...]
    out: tuple[tuple[int, ...], str, bool]
    prepared: Prepared | None
    widen: bool


_F32 = ELEMENTS["f32"]

# Products that a weight keeps prepared: models call with the same shapes again and again.
_PRODUCTS_KEPT = 256


def prepare(format: type[Format], device: Device, m: int, n: int, k: int, via: str | None) -> Prepared:
    """For this package: the kernel that multiplies f32 [M, K] with a weight [N, K], none of them 0."""
    spec = chosen("mul_mat", format.name, device.target, Problem(m, n, k), via)
    return device.library.kernel(spec).sized((m, n, k // format.kernel_block_weights())).prepared


def _take_packed(packed: Any, fmt: type[Format], device: Device | str | None, copy: bool | None) -> Buffer:
    """Blocks of another library's as a buffer; see QTensor.from_bytes."""
    spare = torch_tensors.reads_past(fmt)
    on = None if device is None else given_device(device)
    if is_tensor(packed):
        return torch_tensors.take_packed(packed, on, copy, spare)
    kind, index = packed.__dlpack_device__()
    lies = device_name((int(kind), int(index)))
    if on is None:
        on = device_named(lies) if lies.startswith(("cuda:", "hip:")) else default_device()
    if copy is None and spare and not on.is_cpu:
        copy = True  # nobody can say what follows the last block
    if copy is False and spare and not on.is_cpu:
        raise LayoutError(
            f"from_bytes: {fmt.name}'s kernels read up to {SPARE_BYTES} bytes past the last block, and DLPack does not say whether there "
            "are any; use copy=None or copy=True"
        )
    return on.from_dlpack(packed, copy=copy)


def weights_format(name: str) -> type[Format]:
    """For this package: the format of that name. Raises FormatError for one that weights do not have."""
    fmt = format_of(name)
    if fmt.kind == "activations":
        raise FormatError(f"{fmt.name} is for activations, not for weights; see iq.quantize_q8_1")
    return fmt


def _check_weights_shape(shape: Sequence[int], fmt: type[Format]) -> tuple[int, ...]:
    dims = check_shape(shape, "QTensor")
    if not 1 <= len(dims) <= 3:
        raise ShapeError(f"a QTensor has shape (N, K), (K,) or (E, N, K), got {dims}")
    fmt.row_bytes(dims[-1])  # raises unless rows are whole blocks
    return dims


def _output_dtype(dtype: Any, op: str) -> str:
    element = dtype_of(dtype).name
    if element not in DTYPES:
        raise DtypeError(f"{op}: writes {', '.join(DTYPES)}, not {element}")
    return element
