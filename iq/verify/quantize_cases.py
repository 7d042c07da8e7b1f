"""Weights to blocks: byte for byte as ggml, with the weights where its searches go astray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from iq import formats
from iq.formats import FORMATS, Format
from iq.kernels import KernelSpec
from iq.targets import Target
from iq.verify.case import UNWRITTEN, Case, Check, same_bytes
from iq.verify.references import Array, hadamard

Rows = NDArray[np.float32]


def _edges(k: int, rng: np.random.Generator) -> Rows:
    """Rows at the edges of float32 and of the searches, of integers and powers of two, k of each kind: f32 [2, 5 k]."""
    whole = rng.integers(-(2**20), 2**20, (10, k)).astype(np.float32)
    spans = np.repeat(rng.integers(-70, 0, k // 8), 8)
    rows = [
        np.ldexp(whole[0], spans),  # sub-blocks of very different size: scales round to 0
        np.ldexp(whole[1], -44),  # f16 scales underflow
        np.ldexp(whole[2], 4),  # they overflow
        np.ldexp(whole[3], -77),  # less than what counts as zero
        np.ldexp(whole[4], -160),  # denormal
        1000 + np.ldexp(whole[5], -35),  # the range almost vanishes
        np.round(whole[6] / 2**17),  # ties
        np.where(whole[7] > 2**19, whole[7], -0.0),  # sparse, negative zeros
        np.full(k, -0.0),
        np.repeat(whole[9, ::8], 8),
    ]
    return np.array(rows, np.float32).reshape(2, -1)


def _weights(fmt: type[Format], rng: np.random.Generator) -> Iterator[tuple[str, Rows]]:
    """Names and weights: more than a workgroup takes at a time, and a tail."""
    block = fmt.kernel_block_weights()
    yield "one block", rng.standard_normal((1, block), dtype=np.float32)
    yield "normal", rng.standard_normal((2, (2080 // block | 1) * block), dtype=np.float32)
    yield "heavy tails", rng.standard_t(2, (1, 3 * block)).astype(np.float32)
    yield "edges", _edges(max(block, 64), rng)


def _quantize(spec: KernelSpec, target: Target, rng: np.random.Generator) -> Iterator[Case]:
    fmt = FORMATS[spec.format]
    for name, x in _weights(fmt, rng):
        want = formats.quantize(x, fmt)
        yield _case(fmt, name, x, (), want, len(x), partial(same_bytes, (want,)))


def _quantize_imatrix(spec: KernelSpec, target: Target, rng: np.random.Generator) -> Iterator[Case]:
    fmt = FORMATS[spec.format]
    for name, x in _weights(fmt, rng):
        k = x.shape[1]
        imatrix = np.square(rng.standard_normal(k, dtype=np.float32)) + np.float32(0.01)
        if name == "edges":
            imatrix = np.ldexp(rng.integers(0, 4, k), rng.integers(-40, 40, k)).astype(np.float32)
            imatrix[:32] = 0
        want = formats.quantize(x, fmt, imatrix)
        yield _case(fmt, name, x, (imatrix,), want, len(x), partial(same_bytes, (want,)))


def _set_rows(spec: KernelSpec, target: Target, rng: np.random.Generator) -> Iterator[Case]:
    fmt = FORMATS[spec.format]
    for name, x in _weights(fmt, rng):
        ids = rng.permutation(len(x) + 3)[: len(x)].astype(np.int32)
        with np.errstate(all="ignore"):
            want = fmt.set_blocks(x.reshape(-1, fmt.block_size)).reshape(len(x), -1)
        where = ", ".join(map(str, ids))
        yield _case(fmt, f"{name}, rows {where}", x, (ids,), want, int(ids.max()) + 1, partial(_same_rows, want, ids))


def _case(
    fmt: type[Format],
    name: str,
    x: Rows,
    more: tuple[Array, ...],
    want: NDArray[np.uint8],
    rows: int,
    check: Callable[[Sequence[Array]], list[Check]],
) -> Case:
    """rows: of the weight that is written."""
    sizes = {"rows": len(x), "blocks": x.shape[1] // fmt.kernel_block_weights()}
    return Case(f"{name}: {len(x)} x {x.shape[1]}", (x, *more), sizes, (((rows, want.shape[1]), "u8"),), check)


def _same_rows(want: NDArray[np.uint8], ids: NDArray[np.int32], outputs: Sequence[Array]) -> list[Check]:
    """The rows that were to be written, and that the others are as they were."""
    others = np.delete(outputs[0], ids, axis=0)
    return [*same_bytes((want,), (outputs[0][ids],)), Check("bytes written in other rows", int((others != UNWRITTEN).sum()), 0)]


def _hadamard(spec: KernelSpec, target: Target, rng: np.random.Generator) -> Iterator[Case]:
    for m, k, width in ((1, 64, 64), (3, 2112, 64), (2, 2304, 256), (1, 384, 128), (2, 4608, 512)):
        x = rng.standard_normal((m, k), dtype=np.float32)
        x[0, : k // 2] *= np.float32(1e-39)  # denormal
        want = hadamard(x, width).view(np.int32)
        check = partial(_same_bits, want)
        yield Case(f"{m} x {k}, {width} at a time", (x,), {"m": m, "k": k, "width": width}, (((m, k), "f32"),), check)


def _same_bits(want: NDArray[np.int32], outputs: Sequence[Array]) -> list[Check]:
    return [Check("elements with other bits", int((outputs[0].view(np.int32) != want).sum()), 0)]


CASES: dict[str, Callable[[KernelSpec, Target, np.random.Generator], Iterator[Case]]] = {
    "quantize": _quantize,
    "quantize_imatrix": _quantize_imatrix,
    "set_rows": _set_rows,
    "hadamard": _hadamard,
}
