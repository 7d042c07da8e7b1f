"""Small calls of every kernel, with the edges where kernels go wrong, and what is held against each result.

Sizes are no multiples of anything that a kernel tiles by, except of the format's own block: M, N and K have tails.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from iq import formats
from iq.formats import FORMATS, Format
from iq.kernels import KernelSpec, plan
from iq.targets import Target
from iq.verify import quantize_cases, references
from iq.verify.case import Case, Check, same_bytes
from iq.verify.references import Array


def cases(spec: KernelSpec, target: Target) -> Iterator[Case]:
    """The cases of a kernel; the same ones every time. Raises KernelKeyError for a kernel that the target does not have."""
    model = plan(spec, target)[-1].kernel.model
    return _CASES[model](spec, target, np.random.default_rng(zlib.crc32(spec.key.encode())))


def _row_length(fmt: type[Format], at_least: int) -> int:
    """A row length that kernels take: whole blocks, an odd number of them where that is no less than one."""
    blocks = -(-at_least // fmt.kernel_block_weights())
    return (blocks | 1) * fmt.kernel_block_weights()


# ---- Weights as numbers: equal in every bit


def _bits(want: Array, outputs: Sequence[Array]) -> list[Check]:
    return [Check("elements with other bits", references.different_bits(outputs[0], want), 0)]


def _dequantize(spec: KernelSpec, target: Target, rng: np.random.Generator) -> Iterator[Case]:
    fmt = FORMATS[spec.format]
    for name, n, k in (("one block", 1, fmt.kernel_block_weights()), ("random bytes", 37, _row_length(fmt, 600))):
        packed = references.random_bytes(fmt, n, k, rng)
        want = references.rounded(references.dequantized(fmt, packed), spec.variant)
        sizes = {"blocks": n * k // fmt.kernel_block_weights()}
        yield Case(f"{name}, {n} x {k}", (packed,), sizes, (((n, k), spec.variant),), partial(_bits, want))


def _get_rows(spec: KernelSpec, target: Target, rng: np.random.Generator) -> Iterator[Case]:
    fmt = FORMATS[spec.format]
    n, k = 19, _row_length(fmt, 600)
    packed = references.random_bytes(fmt, n, k, rng)
    values = references.rounded(references.dequantized(fmt, packed), spec.variant)
    for name, ids in (("one row", [n - 1]), ("first, last and repeated rows", [3, 0, n - 1, 3, 7, 1, 3])):
        sizes = {"rows": len(ids), "blocks": k // fmt.kernel_block_weights()}
        outputs = (((len(ids), k), spec.variant),)
        yield Case(f"{name} of {n} x {k}", (packed, np.array(ids, np.int32)), sizes, outputs, partial(_bits, values[ids]))


# ---- Products

Row = NDArray[np.float32]


def _with(at: int, value: float) -> Callable[[Row], Row]:
    return lambda row: np.where(np.arange(row.size) == at % row.size, np.float32(value), row)


# The threads of the largest workgroup that shares a row of activations, how many neighbouring values each takes at a time, and the lanes of
# the largest wave.
THREADS, THREAD_VALUES, LANES = 256, 8, 64

# What becomes of a row of ordinary activations. The first ones have a defined product; the others must spoil their own row, and only that.
_EDGE_ROWS: dict[str, Callable[[Row], Row]] = {
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


def _product(model: Model, spec: KernelSpec, target: Target, rng: np.random.Generator) -> Iterator[Case]:
    """As many rows of activations as a matvec is for, several tiles of them for mul_mat."""
    fmt = FORMATS[spec.format]
    call = partial(_call, fmt, model, rng)
    medium, one = _row_length(fmt, 352), fmt.kernel_block_weights()
    if spec.columns:
        m, n = spec.columns, 5
        yield call("several rows", m, 37, medium)
        yield call("one row of one block", m, 1, max(one, 32))
        yield call("long rows", m, 3, _row_length(fmt, 4200))  # more than a wave takes at once
        yield call("whole tiles", m, 8, _row_length(fmt, 4096))
        yield call("several tiles of rows", 2 * m + 1, 6, medium)
        if m > 1:
            yield call("fewer rows than it is for", m - 1, 6, medium)
    else:
        # The last tile, of 64 or more in steps of 16, ends in each of its steps: in rows and in columns.
        m, n = 6 * len(_EDGE_ROWS), 39
        yield call("several tiles", 65, 131, medium)
        yield call("one row", 57, 1, medium)
        yield call("one block", 1, 21, max(one, 32))
        if model.outliers:
            yield call("long rows, an outlier in each lane", LANES, 55, _row_length(fmt, THREADS * THREAD_VALUES), outliers=True)
        else:  # the cases of quantize_q8_1 have outliers
            yield call("long rows", 23, 55, _row_length(fmt, 1100))
    edges = list(_EDGE_ROWS) * max(1, m // len(_EDGE_ROWS))
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
        x[i] = _EDGE_ROWS[edge](x[i])
    if outliers:
        row = np.arange(m)
        thread = (row + LANES * row) % THREADS  # lane `row` of a wave of 64, lane row % 32 of a wave of 32
        x[row, thread * THREAD_VALUES + row % THREAD_VALUES] = np.where(row % 2, np.float32(-32), np.float32(32))
    sizes = {"m": m, "n": n, "blocks": k // fmt.kernel_block_weights()}
    check = partial(_check_product, model, x, references.dequantized(fmt, packed))
    return Case(f"{name}: {m} x {k} times {n} x {k}", (packed, x), sizes, (((m, n), "f32"),), check, 2 * m * n * k)


def _check_product(model: Model, x: NDArray[np.float32], w: NDArray[np.float32], outputs: Sequence[Array]) -> list[Check]:
    y = outputs[0]
    finite = np.isfinite(x).all(axis=1)
    # Row by row, else the rows of large activations would be all that counts.
    errors = [
        (references.mul_mat_nmse(got[None], model.rounded(row[None]), w), references.mul_mat_nmse(got[None], row[None], w))
        for got, row in zip(y[finite], x[finite], strict=True)
    ]
    checks = []
    if errors:
        of_model, of_exact = np.max(errors, axis=0)
        checks.append(Check(f"NMSE to the {model.name}, worst row", float(of_model), model.tolerance))
        checks.append(Check("NMSE to float64, worst row", float(of_exact), references.MUL_MAT_NMSE))
    if not finite.all():
        checks.append(Check("finite results of NaN or infinite rows", float(np.isfinite(y[~finite]).sum()), 0))
    return checks


# ---- Activations: byte for byte as ggml


def _activations(rng: np.random.Generator) -> Iterator[tuple[str, Row, Row, dict[str, int]]]:
    """Names, activations, the same with rows padded to whole blocks of 32, and sizes."""
    for m, k, padding in ((1, 32, 32), (3, 256, 512), (2, 100, 128), (4, 16, 512), (1, 33, 64), (2, 4132, 64)):
        x = rng.standard_normal((m, k), dtype=np.float32) * np.float32(10)
        x[0, : min(k, 32)] = 0
        x[-1, k // 2 :] *= np.float32(1e-20)
        q8_blocks = -(-k // padding) * padding // 32
        sizes = {"m": m, "k": k, "q8_blocks": q8_blocks}
        yield f"{m} x {k} padded to {q8_blocks * 32}", x, np.pad(x, ((0, 0), (0, q8_blocks * 32 - k))), sizes
    # In each block one value is larger than the others: in the rows of a column of blocks, among each four neighbours of its 32.
    x = rng.standard_normal((8, 2048), dtype=np.float32)
    row, block = np.indices((8, 64))
    at = (row + block) % 8 * 4 + block // 8 % 4
    x[row, 32 * block + at] = np.where(row % 2, np.float32(-32), np.float32(32))
    yield "an outlier in each lane of a block", x, x, {"m": 8, "k": 2048, "q8_blocks": 64}


def _quantize_q8_1(spec: KernelSpec, target: Target, rng: np.random.Generator) -> Iterator[Case]:
    fmt = FORMATS["q8_1"]
    for name, x, padded, sizes in _activations(rng):
        want = formats.quantize(padded, fmt.name).view(np.int8)
        yield Case(name, (x,), sizes, (((len(x), sizes["q8_blocks"] * fmt.type_size), "i8"),), partial(same_bytes, (want,)))


def _quantize_q8_1_soa(spec: KernelSpec, target: Target, rng: np.random.Generator) -> Iterator[Case]:
    for name, x, padded, sizes in _activations(rng):
        quants, d = references.q8_1_quants(padded)
        halves = quants.reshape(*d.shape, 2, 16).sum(-1, dtype=np.int32)
        sums = halves[..., 0] + 65536 * halves[..., 1]
        pairs = np.stack([d.view(np.int32), sums], axis=-1)
        m, q8_blocks = len(x), sizes["q8_blocks"]
        outputs = (((m, q8_blocks * 32), "i8"), ((m, q8_blocks * 8), "i8"))
        want = (quants.reshape(m, -1), pairs.view(np.int8).reshape(m, -1))
        yield Case(name, (x,), sizes, outputs, partial(same_bytes, want))


# By the numeric model that a kernel declares (iq.kernels.Kernel.model).
_CASES: dict[str, Callable[[KernelSpec, Target, np.random.Generator], Iterator[Case]]] = {
    "dequantized": _dequantize,
    "dequantized rows": _get_rows,
    "product of q8_1": partial(_product, Model("q8_1 model", references.q8_1, references.Q8_1_MODEL_NMSE, outliers=False)),
    "product of f32": partial(_product, Model("float64", lambda x: x, references.F32_NMSE)),
    "product of f16": partial(_product, Model("float64", lambda x: x, references.F16_NMSE)),
    **quantize_cases.CASES,
    "q8_1 blocks": _quantize_q8_1,
    "q8 arrays": _quantize_q8_1_soa,
}
