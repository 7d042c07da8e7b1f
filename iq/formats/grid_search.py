"""ggml's searches for the grid entries nearest to a group of weights: what iq2 and iq3 share, and the search for neighbours of iq1 too.

As in scale_search every function follows ggml's src/ggml-quants.c operation by operation, over many groups at once. Here too groups are
columns: a sub-block's weights are float32 [members, groups]. What is looked up in a grid are parts, the 8 or 4 weights of an entry: part p
of group g is lane p * groups + g, where lanes are one dimension. Run them under `np.errstate(all="ignore")`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from iq.errors import FormatError
from iq.formats.grids import Grid
from iq.formats.packing import Bytes, Floats, columns
from iq.formats.scale_search import Ints, importances, make_qp_quants, nearest_int, scaled_variance, sum_in_order

Numbers = NDArray[np.intp]
Flags = NDArray[np.bool_]

FLT_MAX = np.finfo(np.float32).max

# Lanes whose neighbours are compared at a time. Measured: their temporaries stay in a cache of 1 MiB.
LANES = 4096


class Neighbours:
    """The entries of a grid near every combination of levels.

    A combination's code is the sum of level * len(levels) ** i over its members i.

    entry: the entry that the code is, or -1: i32[codes]. Those have neighbours instead: the entries at the `distances` smallest distances
    that occur, by distance and then by number, as ggml's qsort orders them. neighbours: all of them in a row; first, count: where those of
    a code begin, and how many there are.
    values: ggml's grid, 2 * level + 1: f32[width, entries].
    """

    def __init__(self, grid: Grid, distances: int) -> None:
        base, width = len(grid.levels), grid.width
        powers = base ** np.arange(width)
        points = grid.numbers
        self.values = np.ascontiguousarray(2 * points.T + 1, np.float32)
        self.entry = np.full(base**width, -1, np.int32)
        self.entry[points @ powers] = np.arange(len(points))

        off = np.flatnonzero(self.entry < 0)
        distance = np.zeros((len(off), len(points)), np.uint8)  # of levels, whose differences are below 8: at most 4 * 49 or 8 * 4
        for level, member in zip(off // powers[:, None] % base, points.T, strict=True):
            squares = np.square(np.arange(base)[:, None] - member).astype(np.uint8)
            distance += squares[level]
        last = distance.min(axis=1, keepdims=True)
        for _ in range(distances - 1):
            last = np.where(distance > last, distance, np.uint8(255)).min(axis=1, keepdims=True)
        owner, near = np.nonzero(distance <= last)
        order = np.lexsort((distance[owner, near], owner))
        self.neighbours = near[order].astype(np.int32)
        self.count = np.zeros(base**width, np.int32)
        self.count[off] = np.bincount(owner, minlength=len(off))
        self.first = np.cumsum(self.count) - self.count

    def nearest(self, x: Floats, weights: Floats, scale: Floats, codes: Ints, values: Floats, skip: Numbers) -> Ints:
        """The neighbour of each lane's code that, times the scale, is nearest to the lane's x: i32[lanes].

        x, weights: f32[width, lanes]; scale: f32[lanes]; codes: of combinations that are no entry.
        values: what entries stand for, f32[width, any number]; a lane's entries begin at its skip.

        ggml's iq2_find_best_neighbour, iq3_find_best_neighbour and iq1_find_best_neighbour2. Raises FormatError where those abort.
        """
        found = np.empty(len(codes), np.int32)
        count = self.count[codes]
        order = np.argsort(count, kind="stable")[::-1]
        for start in range(0, len(order), LANES):
            lanes = order[start : start + LANES]
            xs, ws, scales, skips = x.take(lanes, axis=1), weights.take(lanes, axis=1), scale[lanes], skip[lanes]
            first, counts = self.first[codes[lanes]], count[lanes]
            best, entry = np.full(len(lanes), FLT_MAX), np.full(len(lanes), -1, np.int32)
            for number in range(counts[0]):
                some = slice(np.count_nonzero(counts > number))  # counts descend
                near = self.neighbours[first[some] + number]
                diff = values.take(near + skips[some], axis=1)
                diff *= scales[some]
                diff -= xs[:, some]
                terms = ws[:, some] * diff
                terms *= diff
                distance = sum_in_order(terms)
                closer = distance < best[some]
                np.copyto(best[some], distance, where=closer)
                np.copyto(entry[some], near, where=closer)
            found[lanes] = entry
        require(found >= 0)
        return found


neighbours = cache(Neighbours)


def require(possible: Flags) -> None:
    """Raise FormatError unless all are possible: that ggml asserts the same here, and aborts, is what happens beyond float32's range."""
    if not possible.all():
        raise FormatError(
            f"{np.count_nonzero(~possible)} groups of weights cannot be quantized: squares of weights times importances are beyond float32 "
            "(ggml aborts on them); scale the weights or the imatrix, or leave large weights in another format"
        )


def round_scales(scales: Floats, divisor: int, top: int) -> tuple[Floats, Bytes]:
    """Scales f32[n, sub-blocks] ~ d * (2 s + 1) -> d f32[n], which is the largest scale / divisor, and s in 0 .. top, u8[n, sub-blocks]."""
    d = scales.max(axis=1) / np.float32(divisor)
    s = np.clip(nearest_int(np.float32(0.5) * ((np.float32(1) / d)[:, None] * scales - np.float32(1))), 0, top)
    s[scales.max(axis=1) == 0] = 0
    return d, s.astype(np.uint8)


@dataclass(frozen=True)
class SignedSearch:
    """How ggml searches for scale, signs and entries of a sub-block of the formats of two and three bits.

    grid, sub_block: the format's. distances: as of Neighbours.
    steps, step: the inverse scales tried are (2 * levels - 1 + step * i) / peak, for i in -steps .. steps. The peak is the largest weight,
        or, if `fitted`, what make_qp_quants makes of it.
    even: whether of 8 signs an even number must be set; then the sign of the least important weight is flipped if need be.
    variance: the factor of scaled_variance. floor: as in `importances`.
    smallest: sub-blocks whose largest weight is below count as zero.
    redo: what is searched for again at the scale found: "all" parts, those "off" the grid, or "any": all if one is off.
    fudge: a factor of ggml's for d. clears: whether a block of scale 0 loses its quants.
    """

    grid: Grid
    sub_block: int
    distances: int
    steps: int
    step: float
    variance: int
    redo: Literal["all", "off", "any"]
    fitted: bool = False
    even: bool = False
    floor: float = 0
    smallest: float = 1e-8
    fudge: float = 1
    clears: bool = False

    def of_blocks(self, blocks: Floats, given: Floats | None) -> tuple[Floats, Ints, Bytes, Bytes]:
        """Search over f32[n, 256], given importances of the same shape or None.

        Returns d f32[n], entries i32[n, 256 / width], signs u8[n, 32], a bit a weight, and s u8[n, 256 / sub_block]:
        a weight is sign * d * (2 s + 1) * entry. Raises FormatError where ggml aborts.
        """
        x = columns(blocks, self.sub_block)
        w = importances(x, None if given is None else columns(given, self.sub_block), scaled_variance(blocks, self.variance), self.floor)
        scales, entries, signs = self.of_groups(x, w)
        scales = scales.reshape(len(blocks), -1)
        d, s = round_scales(scales, 31, 15)
        entries, signs = entries.T.reshape(len(blocks), -1), signs.T.reshape(len(blocks), -1)
        if self.clears:
            none = scales.max(axis=1) == 0
            entries[none] = 0
            signs[none] = 0
        return d * np.float32(self.fudge), entries, signs, s

    def of_groups(self, x: Floats, w: Floats) -> tuple[Floats, Ints, Bytes]:
        """f32[members, groups], and importances -> scales f32[groups], entries i32[parts, groups], signs u8[members / 8, groups].

        Of a group that counts as zero all of them are 0.
        """
        groups = x.shape[1]
        magnitudes, signs = split_signs(x, w, self.even)
        top = magnitudes.max(axis=0)
        levels = len(self.grid.levels)
        start, peak = top / np.float32(2 * levels - 1), top
        if self.fitted:
            start = make_qp_quants(magnitudes, levels + 1, w)[0]
            peak = start * np.float32(levels)
        zero = (top < self.smallest) | (peak <= 0)
        scales, entries = np.zeros(groups, np.float32), np.zeros((len(x) // self.grid.width, groups), np.int32)
        signs[:, zero] = 0
        live = np.flatnonzero(~zero)
        if len(live):
            found, entries[:, live] = self.entries(magnitudes[:, live], w[:, live], start[live], peak[live])
            # A negative scale, as importances of 0 can make it, is turned round, with all signs (of which the eighth is not stored).
            signs[:, live] ^= np.where(found < 0, np.uint8(255), np.uint8(0))
            scales[live] = np.abs(found)
        return scales, entries, signs

    def entries(self, x: Floats, w: Floats, scale: Floats, peak: Floats) -> tuple[Floats, Ints]:
        """Search for the scales and entries of magnitudes f32[members, groups], from scale and peak f32[groups] on."""
        grid = neighbours(self.grid, self.distances)
        width, levels = self.grid.width, len(self.grid.levels)
        members, groups = x.shape
        parts = members // width
        wx = w * x
        lanes_x, lanes_w = (a.reshape(parts, width, groups).swapaxes(0, 1).reshape(width, -1) for a in (x, np.sqrt(w)))

        def search(inverse: Floats, scale: Floats, which: Flags | np.bool_) -> tuple[Ints, Flags]:
            """The entries nearest to inverse * x, i32[parts, groups], sought for parts in `which`; and whether they are x's very own."""
            level = np.clip(nearest_int(np.float32(0.5) * (inverse * x - np.float32(1))), 0, levels - 1).reshape(parts, width, groups)
            code = level[:, -1]
            for member in range(width - 2, -1, -1):
                code = code * levels + level[:, member]
            code = code.ravel()
            entry = grid.entry[code]
            on_grid = entry >= 0
            off = np.flatnonzero(~on_grid & which.ravel())
            at = np.zeros_like(off)
            entry[off] = grid.nearest(lanes_x[:, off], lanes_w[:, off], scale[off % groups], code[off], grid.values, at)
            return entry.reshape(parts, groups), on_grid.reshape(parts, groups)

        def sums(entry: Ints) -> tuple[Floats, Floats]:
            quants = grid.values.take(entry, axis=1).swapaxes(0, 1).reshape(members, groups)
            return sum_in_order(wx * quants), sum_in_order(w * quants * quants)

        best = np.zeros_like(scale)
        entries = np.zeros((parts, groups), np.int32)
        on_grid = np.full((parts, groups), self.redo == "off")
        for number in range(-self.steps, self.steps + 1):
            inverse = (np.float32(2 * levels - 1) + np.float32(number) * np.float32(self.step)) / peak
            tried, tried_on_grid = search(inverse, np.float32(1) / inverse, np.True_)
            sum_qx, sum_q2 = sums(tried)
            better = (sum_q2 > 0) & (sum_qx * sum_qx > best * sum_q2)
            ratio = sum_qx / sum_q2
            scale = np.where(better, ratio, scale)
            best = np.where(better, ratio * sum_qx, best)
            entries = np.where(better, tried, entries)
            on_grid = np.where(better, tried_on_grid, on_grid)

        off = ~on_grid
        again = {"all": np.ones_like(off), "off": off, "any": off.any(axis=0)}[self.redo] & (scale > 0)
        again = np.broadcast_to(again, off.shape)
        if again.any():
            entries = np.where(again, search(np.float32(1) / scale, scale, again)[0], entries)
            sum_qx, sum_q2 = sums(entries)
            scale = np.where(again.any(axis=0) & (sum_q2 > 0), sum_qx / sum_q2, scale)
        require(~np.isnan(scale))
        return scale, entries


def split_signs(x: Floats, w: Floats, even: bool) -> tuple[Floats, Bytes]:
    """f32[members, groups] -> magnitudes f32[members, groups], and signs u8[members / 8, groups], a bit each.

    Where an even number of signs must be set and is not, the magnitude of the weight that matters least comes out negative instead, the
    first of those with the least w * x * x.
    """
    eights = x.reshape(-1, 8, x.shape[1])
    negative = eights < 0
    magnitudes = np.abs(x)
    if even:
        odd = np.bitwise_xor.reduce(negative, axis=1)
        cost = (w * x * x).reshape(eights.shape)
        least, where = cost[:, 0], np.zeros(odd.shape, np.intp)
        for member in range(1, 8):  # not argmin, to which a NaN, of an importance that is infinite, is the least
            less = cost[:, member] < least
            least, where = np.where(less, cost[:, member], least), np.where(less, member, where)
        flip = (np.arange(8)[:, None] == where[:, None]) & odd[:, None]
        negative ^= flip
        np.negative(magnitudes, out=magnitudes, where=flip.reshape(x.shape))
    return magnitudes, np.packbits(negative, axis=1, bitorder="little")[:, 0]
