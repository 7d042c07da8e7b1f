"""Small calls of every kernel, with the edges where kernels go wrong, and what is held against each result.

Sizes are no multiples of anything that a kernel tiles by, except of the format's own block: M, N and K have tails.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from iq import formats
from iq.formats import FORMATS
from iq.kernels import KernelSpec, plan
from iq.targets import Target
from iq.verify import quantize_cases, references
from iq.verify.case import Case, Check, row_length, same_bytes
from iq.verify.moe_cases import picked_product
from iq.verify.products import MODELS, Row, product
from iq.verify.references import Array


def cases(spec: KernelSpec, target: Target) -> Iterator[Case]:
    """The cases of a kernel; the same ones every time. Raises KernelKeyError for a kernel that the target does not have."""
    model = plan(spec, target)[-1].kernel.model
    return _CASES[model](spec, target, np.random.default_rng(zlib.crc32(spec.key.encode())))


# ---- Weights as numbers: equal in every bit


def _bits(want: Array, outputs: Sequence[Array]) -> list[Check]:
    return [Check("elements with other bits", references.different_bits(outputs[0], want), 0)]


def _dequantize(spec: KernelSpec, target: Target, rng: np.random.Generator) -> Iterator[Case]:
    fmt = FORMATS[spec.format]
    for name, n, k in (("one block", 1, fmt.kernel_block_weights()), ("random bytes", 37, row_length(fmt, 600))):
        packed = references.random_bytes(fmt, n, k, rng)
        want = references.rounded(references.dequantized(fmt, packed), spec.variant)
        sizes = {"blocks": n * k // fmt.kernel_block_weights()}
        yield Case(f"{name}, {n} x {k}", (packed,), sizes, (((n, k), spec.variant),), partial(_bits, want))


def _get_rows(spec: KernelSpec, target: Target, rng: np.random.Generator) -> Iterator[Case]:
    fmt = FORMATS[spec.format]
    n, k = 19, row_length(fmt, 600)
    packed = references.random_bytes(fmt, n, k, rng)
    values = references.rounded(references.dequantized(fmt, packed), spec.variant)
    for name, ids in (("one row", [n - 1]), ("first, last and repeated rows", [3, 0, n - 1, 3, 7, 1, 3])):
        sizes = {"rows": len(ids), "blocks": k // fmt.kernel_block_weights()}
        outputs = (((len(ids), k), spec.variant),)
        yield Case(f"{name} of {n} x {k}", (packed, np.array(ids, np.int32)), sizes, outputs, partial(_bits, values[ids]))


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
    **{f"product of {name}": partial(product, model) for name, model in MODELS.items()},
    **{f"picked product of {name}": partial(picked_product, model) for name, model in MODELS.items()},
    **quantize_cases.CASES,
    "q8_1 blocks": _quantize_q8_1,
    "q8 arrays": _quantize_q8_1_soa,
}
