"""Cases of products with the matrices of experts that tokens pick."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from iq.formats import FORMATS
from iq.kernels import KernelSpec
from iq.targets import Target
from iq.verify import references
from iq.verify.case import Case, row_length
from iq.verify.products import EDGE_ROWS, Model, check_product


@dataclass(frozen=True)
class Picks:
    """What is picked: experts by number, int32 [tokens, picks of each]. shared: whether the picks of a token share a row of activations.

    n: rows of each expert's matrix. k: their least length.
    """

    name: str
    experts: int
    ids: NDArray[np.int32]
    shared: bool
    n: int
    k: int


def _picks(one_block: int, rng: np.random.Generator) -> Iterator[Picks]:
    """Experts with no pick, with all, with a last tile of one; few and many, so that each kernel has tails in all that it tiles by."""

    def some(experts: int, tokens: int, each: int) -> NDArray[np.int32]:
        return np.array([rng.permutation(experts)[:each] for _ in range(tokens)], np.int32)

    without = some(5, 3, 2)
    without[without == 1] = 4
    yield Picks("an expert without picks", 5, without, True, 37, 352)
    yield Picks("a row of activations for each pick", 4, some(4, 3, 2), False, 37, 352)
    yield Picks("one pick of one expert, one row of one block", 1, np.zeros((1, 1), np.int32), True, 1, one_block)
    yield Picks("a token's picks, more experts than are picked", 16, some(16, 1, 8), True, 6, 352)
    yield Picks("all picks of the last expert, one more than a tile", 3, np.full((65, 1), 2, np.int32), True, 6, one_block)
    between = rng.permutation(np.repeat(np.array([0, 1, 2], np.int32), (3, 66, 5)))
    yield Picks("two tiles of an expert between others", 3, between.reshape(37, 2), True, 6, one_block)
    yield Picks("several tiles of rows", 4, some(4, 5, 2), True, 131, one_block)
    yield Picks("many experts", 300, some(300, 6, 8), True, 3, one_block)


def picked_product(model: Model, spec: KernelSpec, target: Target, rng: np.random.Generator) -> Iterator[Case]:
    """Picks in all their variety; and rows of activations at the edges, each of which must spoil its own picks only."""
    one_block = max(FORMATS[spec.format].kernel_block_weights(), 32)
    for picks in _picks(one_block, rng):
        yield _call(model, spec, picks, rng)
    ids = np.array([[2, 0], [1, 2], [0, 1], [2, 1], [0, 2], [1, 0], [2, 0]], np.int32)
    assert len(ids) == len(EDGE_ROWS)
    yield _call(model, spec, Picks(", ".join(EDGE_ROWS), 3, ids, True, 5, 352), rng, edges=True)


def _call(model: Model, spec: KernelSpec, picks: Picks, rng: np.random.Generator, edges: bool = False) -> Case:
    fmt, ids, n = FORMATS[spec.format], picks.ids.ravel(), picks.n
    k = row_length(fmt, picks.k)
    packed = references.random_weights(fmt, picks.experts * n, k, rng)
    share = picks.ids.shape[1] if picks.shared else 1
    x = rng.standard_normal((ids.size // share, k), dtype=np.float32)
    if edges:
        x = np.stack([edge(row) for edge, row in zip(EDGE_ROWS.values(), x, strict=True)])
    sizes = {"m": len(x), "share": share, "picks": ids.size, "experts": picks.experts, "n": n, "blocks": k // fmt.kernel_block_weights()}
    weights = references.dequantized(fmt, packed).reshape(picks.experts, n, k)
    check = partial(check_product, model, np.repeat(x, share, axis=0), [weights[e] for e in ids])
    name = f"{picks.name}: {len(picks.ids)} x {picks.ids.shape[1]} picks of {picks.experts}, {n} x {k} each"
    return Case(name, (packed, x, ids), sizes, (((ids.size, n), "f32"),), check, 2 * ids.size * n * k)
