"""What ops take besides a weight: activations, ids and results' buffers, checked and on the weight's device."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from iq.errors import DeviceError, DtypeError, LayoutError, RowIndexError, ShapeError
from iq.formats import format_of
from iq.kernels import KernelSpec
from iq.runtime.arrays import Array, check_array
from iq.runtime.buffer import Buffer
from iq.runtime.device import Device
from iq.torch_tensors import is_tensor

# Element types of activations: f16 and bf16 are made f32.
ACTIVATIONS = ("f32", "f16", "bf16")


def put(x: Any, device: Device, op: str, stream: Any) -> Buffer:
    """x as a buffer on the device that kernels can take; only for as long as the caller holds x."""
    if not isinstance(x, Buffer):
        if not isinstance(x, np.ndarray) and hasattr(x, "__dlpack__"):
            return device.borrow(x, stream)
        return device.put(check_array(x, op), copy=None, stream=stream)
    if x.device is not device:
        raise DeviceError(f"{op}: x is on {x.device!r}, not on {device!r}; cross through the host: put(x.numpy())")
    return x


def check_activations(x: Buffer, op: str) -> None:
    """Raises DtypeError for other elements than kernels take as activations."""
    if x.element not in ACTIVATIONS:
        raise DtypeError(f"{op}: x holds {x.element}, it takes {', '.join(ACTIVATIONS)}")


def widen(x: Buffer, stream: Any) -> Buffer:
    """Activations as f32: those that are, else f16 or bf16 made so, exactly, flat or not."""
    if x.element == "f32":
        return x
    wide = x.device.alloc(x.shape, "f32", stream=stream)
    # Rows are whole blocks of weights, so the elements are a multiple of the 8 that the kernel takes together.
    blocks = x.size // format_of(x.element).kernel_block_weights()
    if blocks:
        spec = KernelSpec("dequantize", x.element, dtype="f32")
        x.device.library.kernel(spec)((x.view("u8"),), {"blocks": blocks}, (wide,), stream)
    return wide


def ids_on_host(ids: Any, n: int, op: str, of: str) -> Array:
    """A copy of integer ids, each below n, on the host; waits for a buffer's, or a tensor's of torch.

    of: what they number, for messages. Raises RowIndexError for an id outside, naming the first, or DtypeError.
    """
    held = ids.cpu().numpy() if is_tensor(ids) else ids
    # A copy in any case: another thread may write to the caller's ids, or the buffer's memory, after they have been checked.
    found = held.numpy() if isinstance(held, Buffer) else np.array(held)
    if found.dtype.kind not in "iu" and found.size:
        raise DtypeError(f"{op}: ids are integers, got {found.dtype}")
    bad = np.flatnonzero((found < 0) | (found >= n))
    if bad.size:
        where = tuple(int(i) for i in np.unravel_index(bad[0], found.shape))
        raise RowIndexError(f"{op}: id {found[where]} at {where} is outside the tensor's {n} {of}")
    return found


def put_ids(ids: Array, device: Device, stream: Any) -> Buffer:
    """Checked ids as kernels take them."""
    return device.put(np.ascontiguousarray(ids, dtype=np.int32), copy=None, stream=stream)


def refuse_out(op: str, out: Any, shape: tuple[int, ...], device: Device) -> NoReturn:
    """Raises what is wrong with a buffer that an f32 result of a shape was to be written into."""
    if not isinstance(out, Buffer):
        raise DtypeError(f"{op}: out is a buffer of the weight's device, got {type(out).__name__}")
    if out.shape != shape:
        raise ShapeError(f"{op}: out has shape {out.shape}, the result has {shape}")
    if out.element != "f32":
        raise DtypeError(f"{op}: out holds {out.element}, the result is f32")
    if out.device is not device:
        raise DeviceError(f"{op}: out is on {out.device!r}, the weight on {device!r}")
    out.check_aligned()
    raise LayoutError(f"{op}: out shares memory with x or the weight, which are still read while it is written")
