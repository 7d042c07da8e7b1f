"""ggml's searches for the scale, the shift and the grid entries of iq1's sub-blocks: quants of -1, 0 and 1, all shifted by an eighth.

A sub-block's weights are sorted, and every way to split them into those that become -1, 0 and 1 is tried. As in scale_search every function
follows ggml's src/ggml-quants.c operation by operation, and groups are columns. Run them under `np.errstate(all="ignore")`.

For iq1_m that is ggml as the golden data have it. Older ones add up the sums in another way, and choose otherwise between ways to split
that are equally good.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from iq.formats import grids
from iq.formats.grid_search import FLT_MAX, Flags, Numbers, neighbours, require, round_scales
from iq.formats.packing import Bytes, Floats, columns
from iq.formats.scale_search import Ints, importances, scaled_variance, sum_in_order

# What the quants stand for where an eighth is added, and where it is taken away.
PLUS, MINUS = np.array([[-0.875, 0.125, 1.125], [-1.125, -0.125, 0.875]], np.float32)
# Of every entry, what it stands for with PLUS; then the same with MINUS: f32[8, 2 * entries].
VALUES = np.hstack([PLUS[grids.IQ1.numbers.T], MINUS[grids.IQ1.numbers.T]])
ENTRIES = len(grids.IQ1.numbers)

# Sums over a group of weight * quant * x, and of weight * quant^2, for ways to split it: f32[splits, shifts, groups].
Sums = tuple[Floats, Floats]


def search_iq1_s(blocks: Floats, given: Floats | None) -> tuple[Floats, Ints, Flags, Bytes]:
    """Search over f32[n, 256] with importances of the same shape, which ggml requires.

    Returns d f32[n], entries i32[n, 32], whether an eighth is taken from each sub-block of 32, bool[n, 8], and s u8[n, 8].
    Raises FormatError where ggml aborts.
    """
    x = columns(blocks, 32)
    w = importances(x, None if given is None else columns(given, 32), scaled_variance(blocks, 2))
    scales, entries, shift = _search(x, w, np.float32(1e-12), 2)
    scales = scales.reshape(-1, 8)
    d, s = round_scales(scales, 15, 7)
    minus = (shift.reshape(-1, 8) == 1) & (scales.max(axis=1) > 0)[:, None]
    return d * np.float32(1.125), entries.T.reshape(-1, 32), minus, s


def search_iq1_m(blocks: Floats, given: Floats | None) -> tuple[Floats, Ints, Flags, Bytes]:
    """Search over f32[n, 256], given importances of the same shape or None.

    Returns d f32[n], entries i32[n, 32], whether an eighth is taken from each of them, bool[n, 32], and s u8[n, 16].
    Raises FormatError where ggml aborts.
    """
    x = columns(blocks, 16)
    w = importances(x, None if given is None else columns(given, 16), scaled_variance(blocks, 2))
    scales, entries, shift = _search(x, w, np.float32(1e-7), 4)
    scales = scales.reshape(-1, 16)
    d, s = round_scales(scales, 15, 7)
    zero = scales.max(axis=1) == 0
    entries, minus = entries.T.reshape(-1, 32), _minus(shift, 2).T.reshape(-1, 32) & ~zero[:, None]

    # d once more, for the quants and s as stored.
    values = VALUES.T[entries + ENTRIES * minus].reshape(-1, 16, 16) * (2 * s + 1).astype(np.float32)[:, :, None]
    q, x, w = columns(values, 256), columns(blocks, 256), columns(w.T, 256)
    sum_qx, sum_q2 = sum_in_order(w * q * x), sum_in_order(w * q * q)
    d = np.where(sum_q2 > 0, sum_qx / sum_q2, d)
    d[zero] = 0
    return d * np.float32(1.1125), entries, minus, s


def _minus(shift: NDArray[np.signedinteger], parts: int) -> Flags:
    """Whether an eighth is taken from each part: [groups] -> bool[parts, groups].

    Where two parts have a shift each (iq1_m) it is a number of two bits, the first part's above. Four parts have one in common.
    """
    bits = np.array([[1], [0]] if parts == 2 else [[0]] * parts)
    minus: Flags = (shift >> bits & 1) == 1
    return minus


def _search(x: Floats, w: Floats, smallest: np.float32, shifts: int) -> tuple[Floats, Ints, Ints]:
    """f32[members, groups], and importances -> scales f32[groups], entries i32[parts, groups], shifts i32[groups].

    Groups whose weights are all below `smallest`, or of which none matters, have 0 for all of them.
    """
    members, groups = x.shape
    parts = members // 8
    order = np.argsort(x, axis=0, kind="stable")  # glibc's qsort is stable too
    sorted_x, sorted_w = np.take_along_axis(x, order, axis=0), np.take_along_axis(w, order, axis=0)
    sums = _sums_of_prefixes(sorted_x, sorted_w) if shifts == 2 else _sums_of_halves(sorted_x, sorted_w, order < 8)
    scale, choice = _best(sums, groups)
    live = np.flatnonzero((choice >= 0) & (np.abs(x).max(axis=0) >= smallest))
    scales, entries, chosen = np.zeros(groups, np.float32), np.zeros((parts, groups), np.int32), np.zeros(groups, np.int32)
    x, w, order, scale, choice = x[:, live], w[:, live], order[:, live], scale[live], choice[live]

    splits = np.array([(first, second) for first in range(members + 1) for second in range(first, members + 1)])
    first, second = splits[choice // shifts].T
    rank = np.arange(members)[:, None]
    levels = np.empty(x.shape, np.int32)
    np.put_along_axis(levels, order, (rank >= first).astype(np.int32) + (rank >= second), axis=0)
    shift = choice % shifts
    negative = scale < 0
    levels = np.where(negative, 2 - levels, levels)
    shift = np.where(negative, shifts - 1 - shift, shift)
    scale = np.abs(scale)

    grid = neighbours(grids.IQ1, 3)
    code = (levels.reshape(parts, 8, -1) * 3 ** np.arange(8)[:, None]).sum(axis=1).ravel()
    entry = grid.entry[code]
    off = np.flatnonzero(entry < 0)
    skip = (ENTRIES * _minus(shift, parts)).ravel()
    lanes_x, lanes_w = (a.reshape(parts, 8, -1).swapaxes(0, 1).reshape(8, -1)[:, off] for a in (x, w))
    entry[off] = grid.nearest(lanes_x, lanes_w, np.tile(scale, parts)[off], code[off], VALUES, skip[off])

    # The scale once more where a part was off the grid.
    q = VALUES[:, entry + skip].reshape(8, parts, -1).swapaxes(0, 1).reshape(members, -1)
    sum_qx, sum_q2 = sum_in_order(w * q * x), sum_in_order(w * q * q)
    moved = (grid.entry[code] < 0).reshape(parts, -1).any(axis=0)
    scale = np.where(moved & (sum_qx > 0) & (sum_q2 > 0), sum_qx / sum_q2, scale)
    require(~np.isnan(scale))
    scales[live], entries[:, live], chosen[live] = scale, entry.reshape(parts, -1), shift
    return scales, entries, chosen


def _best(sums: Iterator[Sums], groups: int) -> tuple[Floats, Numbers]:
    """The scale f32[groups] of the best of all splits and shifts, and its number in the order tried, or -1 if none fits at all.

    What is best depends on the order: a candidate must beat the best one's rounded score.
    """
    best, scale, choice = np.full(groups, -FLT_MAX), np.zeros(groups, np.float32), np.full(groups, -1)
    number = 0
    for sum_qx, sum_q2 in sums:
        ratio = sum_qx / sum_q2
        score = ratio * sum_qx
        square = np.where(sum_q2 > 0, sum_qx * sum_qx, -np.inf)  # never better
        for candidate in np.ndindex(square.shape[:2]):
            better = square[candidate] > best * sum_q2[candidate]
            np.copyto(best, score[candidate], where=better)
            np.copyto(scale, ratio[candidate], where=better)
            np.copyto(choice, number, where=better)
            number += 1
    return scale, choice


def _sums_of_prefixes(x: Floats, w: Floats) -> Iterator[Sums]:
    """iq1_s: of sorted x f32[members, groups], for each first bound the sums with all second bounds, by differences of prefix sums."""
    upto_x, upto_w = _prefixes(w * x), _prefixes(w)
    for first in range(len(upto_x)):
        low_x, middle_x, high_x = upto_x[first], upto_x[first:] - upto_x[first], upto_x[-1] - upto_x[first:]
        low_w, middle_w, high_w = upto_w[first], upto_w[first:] - upto_w[first], upto_w[-1] - upto_w[first:]
        sum_qx = [low_x * a + middle_x * b + high_x * c for a, b, c in (PLUS, MINUS)]
        sum_q2 = [low_w * a * a + middle_w * b * b + high_w * c * c for a, b, c in (PLUS, MINUS)]
        yield np.stack(sum_qx, axis=1), np.stack(sum_q2, axis=1)


def _sums_of_halves(x: Floats, w: Floats, in_first: Flags) -> Iterator[Sums]:
    """iq1_m: the same for the shifts of its two parts (++, +-, -+, --), by prefix sums over each part.

    in_first: which of the sorted weights belong to the first part.
    """
    halves = [(_prefixes(np.where(half, w * x, 0)), _prefixes(np.where(half, w, 0))) for half in (in_first, ~in_first)]
    for first in range(len(x) + 1):
        # The three quants are 1 apart: of the sum with all of them high, 1 is taken below the second bound, and 1 more below the first.
        sum_qx = [[x[-1] * c - (x[first] + x[first:]) for _, _, c in (PLUS, MINUS)] for x, _ in halves]
        sum_q2 = [
            [w[-1] * c * c + w[first] * (a * a - b * b) + w[first:] * (b * b - c * c) for a, b, c in (PLUS, MINUS)] for _, w in halves
        ]
        yield _each_with_each(*sum_qx), _each_with_each(*sum_q2)


def _prefixes(terms: Floats) -> Floats:
    """Sums of the first 0, 1, 2, ... members: f32[members, groups] -> f32[members + 1, groups]."""
    return np.add.accumulate(np.vstack([np.zeros_like(terms[:1]), terms]))


def _each_with_each(some: list[Floats], others: list[Floats]) -> Floats:
    return np.stack([one + other for one in some for other in others], axis=1)
