"""Cases of products: tails of M, N and K, and rows of activations at the edges; held against float64 and the kernel's own arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from iq.formats import FORMATS, Format
from iq.kernels import KernelSpec
from iq.targets import Target
from iq.verify import references
from iq.verify.case import Case, Check, row_length
from iq.verify.references import Array

Row = NDArray[np.float32]


def _with(at: int, value: float) -> Callable[[Row], Row]:
    return lambda row: np.where(np.arange(row.size) == at % row.size, np.float32(value), row)


# The threads of the largest workgroup that shares a row of activations, how many neighbouring values each takes at a time, and the lanes of
# the largest wave.
THREADS, THREAD_VALUES, LANES = 256, 8, 64

# What becomes of a row of ordinary activations. The first ones have a defined product; the others must spoil their own row, and only that.
EDGE_ROWS: dict[str, Callable[[Row], Row]] = {
    "zeros": lambda row: row * np.float32(0),
    "tiny": lambda row: row * np.float32(1e-30),
    "huge": lambda row: row * np.float32(1e30),
    "outlier": _with(0, 1e6),  # f16 cannot hold it beside the others unless the row is scaled by it
    "NaN": _with(-1, np.nan),
    "inf": _with(0, np.inf),
    "-inf": _with(100, -np.inf),
}


@dataclass(frozen=True)
class Model:
    """How a product's activations are rounded, and how near the product must come to float64 arithmetic on those.

    outliers: whether the error stays as small where one activation is much larger than its neighbours.
    """

    name: str
    rounded: Callable[[Row], NDArray[np.floating]]
    tolerance: float
    outliers: bool = True


# By what the activations become.
MODELS = {
    "q8_1": Model("q8_1 model", references.q8_1, references.Q8_1_MODEL_NMSE, outliers=False),
    "f32": Model("float64", lambda x: x, references.F32_NMSE),
    "f16": Model("float64", lambda x: x, references.F16_NMSE),
}


def product(model: Model, spec: KernelSpec, target: Target, rng: np.random.Generator) -> Iterator[Case]:
    """As many rows of activations as a matvec is for, several tiles of them for mul_mat."""
    fmt = FORMATS[spec.format]
    call = partial(_call, fmt, model, rng)
    medium, one = row_length(fmt, 352), fmt.kernel_block_weights()
    if spec.columns:
        m, n = spec.columns, 5
        yield call("several rows", m, 37, medium)
        yield call("one row of one block", m, 1, max(one, 32))
        yield call("long rows", m, 3, row_length(fmt, 4200))  # more than a wave takes at once
        yield call("whole tiles", m, 8, row_length(fmt, 4096))
        yield call("several tiles of rows", 2 * m + 1, 6, medium)
        if m > 1:
            yield call("fewer rows than it is for", m - 1, 6, medium)
    else:
        # The last tile, of 64 or more in steps of 16, ends in each of its steps: in rows and in columns.
        m, n = 6 * len(EDGE_ROWS), 39
        yield call("several tiles", 65, 131, medium)
        yield call("one row", 57, 1, medium)
        yield call("one block", 1, 21, max(one, 32))
        if model.outliers:
            yield call("long rows, an outlier in each lane", LANES, 55, row_length(fmt, THREADS * THREAD_VALUES), outliers=True)
        else:  # the cases of quantize_q8_1 have outliers
            yield call("long rows", 23, 55, row_length(fmt, 1100))
    edges = list(EDGE_ROWS) * max(1, m // len(EDGE_ROWS))
    for at in range(0, len(edges), m):
        yield call(", ".join(dict.fromkeys(edges[at : at + m])), m, n, medium, edges[at : at + m])


def _call(
    fmt: type[Format],
    model: Model,
    rng: np.random.Generator,
    name: str,
    m: int,
    n: int,
    k: int,
    edges: Sequence[str] = (),
    outliers: bool = False,
) -> Case:
    """A product of random operands. edges: what becomes of the first rows of activations, by name.

    outliers: row i of the activations has its largest magnitude among the values of lane i of a wave, and rows with it in every wave of a
    workgroup follow each other. Scaled by a maximum that leaves out any lane or wave, some row's outlier is too large for f16.
    """
    packed = references.random_weights(fmt, n, k, rng)
    x = rng.standard_normal((m, k), dtype=np.float32)
    for i, edge in enumerate(edges):
        x[i] = EDGE_ROWS[edge](x[i])
    if outliers:
        row = np.arange(m)
        thread = (row + LANES * row) % THREADS  # lane `row` of a wave of 64, lane row % 32 of a wave of 32
        x[row, thread * THREAD_VALUES + row % THREAD_VALUES] = np.where(row % 2, np.float32(-32), np.float32(32))
    sizes = {"m": m, "n": n, "blocks": k // fmt.kernel_block_weights()}
    check = partial(check_product, model, x, [references.dequantized(fmt, packed)] * m)
    return Case(f"{name}: {m} x {k} times {n} x {k}", (packed, x), sizes, (((m, n), "f32"),), check, 2 * m * n * k)


def check_product(model: Model, x: NDArray[np.float32], weights: Sequence[NDArray[np.float32]], outputs: Sequence[Array]) -> list[Check]:
    """Each row of the result against that row of x times the weight of the same place."""
    y = outputs[0]
    finite = np.array([np.isfinite(row).all() for row in x])
    # Row by row, else the rows of large activations would be all that counts.
    errors = [
        (references.mul_mat_nmse(got[None], model.rounded(row[None]), w), references.mul_mat_nmse(got[None], row[None], w))
        for got, row, w, ordinary in zip(y, x, weights, finite, strict=True)
        if ordinary
    ]
    checks = []
    if errors:
        of_model, of_exact = np.max(errors, axis=0)
        checks.append(Check(f"NMSE to the {model.name}, worst row", float(of_model), model.tolerance))
        checks.append(Check("NMSE to float64, worst row", float(of_exact), references.MUL_MAT_NMSE))
    if not finite.all():
        checks.append(Check("finite results of NaN or infinite rows", float(np.isfinite(y[~finite]).sum()), 0))
    return checks
