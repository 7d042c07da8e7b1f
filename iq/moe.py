"""Mixtures of experts: activations times the matrices that each token picks."""

from __future__ import annotations

import math
from typing import Any

from iq.errors import ShapeError
from iq.formats import Format
from iq.kernels import KernelSpec, Problem, chosen
from iq.operands import check_activations, ids_on_host, put, put_ids, refuse_out, widen
from iq.runtime.buffer import Buffer
from iq.runtime.dtypes import DTYPES as ELEMENTS
from iq.targets import Target


def moe(
    packed: Buffer, format: type[Format], experts: tuple[int, int, int], x: Any, ids: Any, via: str | None, out: Any, stream: Any
) -> Buffer:
    """See QTensor.moe. packed: the blocks of a weight of shape `experts`, which is (E, N, K)."""
    number, n, k = experts
    device = packed.device
    on = device.stream_of(stream)
    held = put(x, device, "moe", stream)
    check_activations(held, "moe")
    picked = ids_on_host(ids, number, "moe", "experts")
    check_shapes(experts, held.shape, picked.shape)
    held.check_aligned()
    result = (*picked.shape, n)
    y: Buffer
    if out is None:
        y = device.empty(result, ELEMENTS["f32"], on)
    elif not isinstance(out, Buffer) or out.layout != (result, "f32", True) or out.device is not device or out.overlaps(held, packed):
        refuse_out("moe", out, result, device)
    else:
        y = out
    if not k:
        y.fill_zero(stream=stream)
    elif y.size:
        spec, sizes = kernel_for(format, device.target, experts, held.shape, picked.shape, via)
        device.library.kernel(spec)((packed, widen(held, stream), put_ids(picked, device, stream)), sizes, (y,), stream)
    return y


def check_shapes(experts: tuple[int, int, int], x: tuple[int, ...], ids: tuple[int, ...]) -> None:
    """Raises ShapeError for activations or ids of shapes that do not fit a weight [E, N, K]."""
    k = experts[-1]
    if not ids or tuple(x) not in ((*ids[:-1], 1, k), (*ids, k)):
        raise ShapeError(
            f"moe: x has shape {tuple(x)}, ids {tuple(ids)}, the weight {experts}; ids are [..., picks of a token], "
            f"x [..., 1 or as many, {k}] with the same axes before"
        )


def kernel_for(
    format: type[Format], target: Target, experts: tuple[int, int, int], x: tuple[int, ...], ids: tuple[int, ...], via: str | None
) -> tuple[KernelSpec, dict[str, int]]:
    """The kernel for activations and ids of shapes that fit and of which none is empty, and its sizes. Raises FormatError for a `via`."""
    number, n, k = experts
    picks, m = math.prod(ids), math.prod(x[:-1])
    spec = chosen("mul_mat_id", format.name, target, Problem(picks, n, k, number), via)
    return spec, {
        "m": m,
        "share": picks // m,
        "picks": picks,
        "experts": number,
        "n": n,
        "blocks": k // format.kernel_block_weights(),
    }
