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
from iq.verify.references import Array, rounded

Rows = NDArray[np.float32]


def _edges(k: int, rng: np.random.Generator) -> Rows:
    """Rows at the edges of float32 and of the searches, of integers and powers of two: f32 [10, k]."""
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
    return np.array(rows, np.float32)


def _weights(fmt: type[Format], dtype: str, rng: np.random.Generator) -> Iterator[tuple[str, Rows, NDArray[np.generic]]]:
    """Names, weights, and the same as a kernel gets them. The weights are what is left of them in its element type."""
    block = fmt.kernel_block_weights()
    heavy = rng.standard_t(2, (2, 3 * block)).astype(np.float32)
    samples = (
        ("one block", rng.standard_normal((1, block), dtype=np.float32)),
        ("normal", rng.standard_normal((3, (2080 // block | 1) * block), dtype=np.float32)),
        ("heavy tails", heavy),
        ("edges", _edges(5 * block, rng)),
    )
    for name, x in samples:
        given = rounded(x, dtype)
        if dtype == "bf16":
            yield name, formats.dequantize(given.view(np.uint8), "bf16"), given
        else:
            # What f16 cannot hold is none of a quantizer's.
            finite = np.isfinite(given).all(axis=1)
            yield name, given[finite].astype(np.float32), given[finite]


def _quantize(spec: KernelSpec, target: Target, rng: np.random.Generator) -> Iterator[Case]:
    fmt = FORMATS[spec.format]
    for name, x, given in _weights(fmt, spec.variant, rng):
        want = formats.quantize(x, fmt.name)
        yield _case(fmt, f"{name}: {len(x)} x {x.shape[1]}", given, (), want)


def _quantize_imatrix(spec: KernelSpec, target: Target, rng: np.random.Generator) -> Iterator[Case]:
    fmt = FORMATS[spec.format]
    for name, x, given in _weights(fmt, spec.variant, rng):
        k = x.shape[1]
        imatrix = np.square(rng.standard_normal(k, dtype=np.float32)) + np.float32(0.01)
        if name == "edges":
            imatrix = np.ldexp(rng.integers(0, 4, k), rng.integers(-40, 40, k)).astype(np.float32)
            imatrix[: fmt.block_size] = 0
        want = formats.quantize(x, fmt.name, imatrix)
        yield _case(fmt, f"{name}: {len(x)} x {k}", given, (imatrix,), want)


def _set_rows(spec: KernelSpec, target: Target, rng: np.random.Generator) -> Iterator[Case]:
    fmt = FORMATS[spec.format]
    for name, x, given in _weights(fmt, spec.variant, rng):
        ids = rng.permutation(len(x) + 3)[: len(x)].astype(np.int32)
        packed = formats.quantize(x, fmt.name)
        yield _case(fmt, f"{name}, rows {', '.join(map(str, ids))}: {len(x)} x {x.shape[1]}", given, (ids,), packed, ids)


def _case(
    fmt: type[Format],
    name: str,
    x: NDArray[np.generic],
    more: tuple[NDArray[np.generic], ...],
    want: NDArray[np.uint8],
    ids: NDArray[np.int32] | None = None,
) -> Case:
    rows = len(want)
    sizes = {"rows": rows, "blocks": want.shape[1] // fmt.kernel_block_bytes()}
    held = (rows if ids is None else int(ids.max()) + 1, want.shape[1])
    return Case(name, (x, *more), sizes, ((held, "u8"),), partial(_same_rows, want, ids))


def _same_rows(want: NDArray[np.uint8], ids: NDArray[np.int32] | None, outputs: Sequence[Array]) -> list[Check]:
    """The rows that were written; the others are as they were, all alike."""
    if ids is None:
        return same_bytes((want,), outputs)
    others = np.delete(outputs[0], ids, axis=0)
    return [*same_bytes((want,), (outputs[0][ids],)), Check("bytes written in other rows", int((others != UNWRITTEN).sum()), 0)]


CASES: dict[str, Callable[[KernelSpec, Target, np.random.Generator], Iterator[Case]]] = {
    "quantize": _quantize,
    "quantize_imatrix": _quantize_imatrix,
    "set_rows": _set_rows,
}
