"""The rotation that llama.cpp gives to what a quantized cache of keys and values takes."""

from __future__ import annotations

import math
from typing import Any

from iq.device import given_device
from iq.errors import ShapeError
from iq.kernels import KernelSpec
from iq.operands import check_activations, put, widen
from iq.runtime.arrays import check_sizes
from iq.runtime.buffer import Buffer
from iq.runtime.device import Device

WIDTHS = (64, 128, 256, 512)


def hadamard(x: Any, width: int = 64, device: Device | str | None = None, stream: Any = None) -> Buffer:
    """H x / sqrt(width) of each `width` values, H the Walsh-Hadamard matrix: f32 of x's shape, bit for bit as ggml's CPU code has it.

    It is its own inverse, and leaves dot products as they are while it spreads outliers over many values. llama.cpp rotates queries and
    keys with the widest that divides a head, values with 64, and attention's result back.
    x: f32, f16 or bf16 [..., K], K a multiple of width: an array, a buffer, or another library's (with `__dlpack__`). width: 64, 128, 256
    or 512. device: None is x's own where x is a buffer, else the default device. Raises ShapeError, DtypeError or DeviceError, or for want
    of a kernel BundleError or CompileError.
    """
    if width not in WIDTHS:
        raise ShapeError(f"hadamard: width {width!r}; there are {', '.join(map(str, WIDTHS))}")
    on = x.device if device is None and isinstance(x, Buffer) else given_device(device)
    given = put(x, on, "hadamard", stream)
    check_activations(given, "hadamard")
    if not given.shape or given.shape[-1] % width:
        raise ShapeError(f"hadamard: x has shape {given.shape}; its last axis must be a multiple of {width}")
    out = on.alloc(given.shape, "f32", stream=stream)
    if given.size:
        k = given.shape[-1]
        check_sizes("hadamard", K=k)
        sizes = {"m": math.prod(given.shape[:-1]), "k": k, "width": width}
        on.library.kernel(KernelSpec("hadamard", "f32", dtype="f32"))((widen(given, stream),), sizes, (out,), stream)
    return out
