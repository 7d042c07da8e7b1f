"""ggml's searches for the scales of a group of weights, over many groups at once.

Every function here follows the function of the same name in ggml's src/ggml-quants.c, operation by operation: the bytes come out the same
only if each float32 rounding does. The bytes are those of ggml on x86-64, where its build gives this file no -mfma; a compiler that fuses
multiply and add (aarch64 by default) makes a ggml that differs in a few blocks of a hundred.

Groups are columns: arrays are float32 [members, groups], so that a sum over a group adds rows in ggml's order and every operation runs
along contiguous memory. What no sane weight reaches (a vanishing range, overflow) follows C too. Run them under
`np.errstate(all="ignore")`: lanes that a condition discards may divide by zero.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from iq.formats.packing import Floats, columns

Ints = NDArray[np.int32]

# ggml's GROUP_MAX_EPS: a group whose largest weight is below this counts as all zero.
GROUP_MAX_EPS = np.float32(1e-15)


def sum_in_order(terms: Floats, start: float = 0.0) -> Floats:
    """Sum f32[members, groups] over members, one after another as a C loop does -> f32[groups].

    start: what the loop starts from; -0.0 where that is the first term: of zeros alone it tells the sign, which is stored.
    """
    # numpy adds row to row, in order, unless the rows are a single element: then it sums the column pairwise.
    if terms.shape[1] == 1:
        last: Floats = np.add.accumulate(terms, axis=0)[-1] + np.float32(start)
        return last
    total: Floats = np.add.reduce(terms, axis=0, initial=start)
    return total


def nearest_int(values: Floats) -> Ints:
    """Round to the nearest int, ties to even, as ggml does: by adding 1.5 * 2^23 and reading the mantissa.

    The same as np.rint below 2^22; beyond, and for NaN and infinities, it is ggml's own number, which the bytes depend on.
    """
    return ((values + np.float32(12582912)).view(np.int32) & 0x7FFFFF) - 0x400000


def roundf(values: Floats) -> Floats:
    """Round half away from zero, as C's roundf. Overwrites `values`, which are a whole block's and in no other use."""
    whole: Floats = np.trunc(values)
    values -= whole
    values *= np.float32(2)
    whole += np.trunc(values, out=values)
    return whole


def times_inverse(values: Floats, scale: Floats) -> Floats:
    """values times 1 / scale, or times 0 where the scale is 0."""
    return values * np.where(scale != 0, np.float32(1) / scale, np.float32(0))


def largest(values: Floats, axis: int) -> Floats:
    """The values of the largest magnitude along an axis, with their signs; the first of several. The axis stays, with a length of 1."""
    return np.take_along_axis(values, np.abs(values).argmax(axis=axis, keepdims=True), axis=axis)


def largest_scales(scales: Floats) -> tuple[Floats, Floats]:
    """Of f32[n, sub-blocks] the largest with their signs, and their magnitudes: f32[n, 1] each.

    A scale that overflowed to NaN loses every comparison in C; where all did, the magnitude is 0.
    """
    sizes = np.fmax(np.abs(scales), np.float32(0))
    return np.take_along_axis(scales, sizes.argmax(axis=1, keepdims=True), axis=1), sizes.max(axis=1, keepdims=True)


def importances(x: Floats, given: Floats | None, variance: Floats, floor: float = 0) -> Floats:
    """How much each weight matters: given * sqrt(variance + x * x), or, where none are given, floor * variance + x * x.

    x, given: f32[members, groups]; variance: f32[blocks], of scaled_variance. Returns f32[members, groups].
    """
    squares = x * x
    spread = np.repeat(variance, x.shape[1] // len(variance))
    if given is not None:
        return given * np.sqrt(spread + squares)
    return squares if floor == 0 else np.float32(floor) * spread + squares


def scaled_variance(blocks: Floats, factor: int) -> Floats:
    """factor * the mean square of each block: f32[n, 256] -> f32[n]."""
    return np.float32(factor) * sum_in_order(columns(blocks * blocks, 256)) / np.float32(256)


def requantize(x: Floats, scale: Floats, searched: Ints, least: int, most: int) -> Ints:
    """The quants once more, with the scales as stored; a sub-block whose scale was rounded to 0 keeps those of the search.

    x: f32[members, groups]; scale: f32[groups]; searched: i32[members, groups]. Returns x / scale as integers from least to most, as many
    above least: i32[members, groups].
    """
    return np.where(scale == 0, searched, np.clip(nearest_int(x / scale), least, most) - np.int32(least))


def wrap(quants: Floats) -> Floats:
    """Whole numbers modulo 256, as C stores them in a uint8."""
    return quants.astype(np.int32).astype(np.uint8).astype(np.float32)


def make_qx_quants(x: Floats, nmax: int, weights: Floats | None) -> tuple[Floats, Ints]:
    """Find scales for weights centred on zero: x ~ scale * (quant - nmax), with quants in 0 .. 2 nmax - 1 (ggml's rmse_type 1).

    x: f32[members, groups]; weights: importances of the same shape, or None for x * x.
    Returns the scale f32[groups] and the quants i32[members, groups]. A group of zeros has scale 0 and, as in ggml, quants 0, not nmax.
    """
    top = largest(x, axis=0)[0]
    zeros = np.abs(top) < GROUP_MAX_EPS
    w = x * x if weights is None else weights
    wx = w * x
    # Bounds as rows: numpy's minimum and maximum with a scalar are three times slower.
    low, high = np.full_like(top, -nmax), np.full_like(top, nmax - 1)
    quants, terms = np.empty_like(x), np.empty_like(x)

    def quantize(inverse: Floats) -> None:
        np.multiply(inverse, x, out=quants)
        np.rint(quants, out=quants)
        np.maximum(quants, low, out=quants)
        np.minimum(quants, high, out=quants)

    scale, best, best_inverse = top, top, top
    for step in (0, *range(-9, 0), *range(1, 10)):
        inverse = -(np.float32(nmax) + np.float32(0.1) * np.float32(step)) / top
        quantize(inverse)
        sum_lx = sum_in_order(np.multiply(wx, quants, out=terms))
        np.multiply(w, quants, out=terms)
        sum_l2 = sum_in_order(np.multiply(terms, quants, out=terms))
        ratio = sum_lx / sum_l2
        if step == 0:
            scale = np.where(sum_l2 != 0, ratio, np.float32(0))
            best, best_inverse = scale * sum_lx, inverse
        else:
            better = (sum_l2 > 0) & (sum_lx * sum_lx > best * sum_l2)
            scale = np.where(better, ratio, scale)
            best = np.where(better, scale * sum_lx, best)
            best_inverse = np.where(better, inverse, best_inverse)
    quantize(best_inverse)
    quants += np.float32(nmax)
    quants[:, zeros] = 0
    scale[zeros] = 0
    return scale, quants.astype(np.int32)


def make_q3_quants(x: Floats, nmax: int) -> tuple[Floats, Ints]:
    """Find scales for weights centred on zero as make_qx_quants does, from one scale on, by moving one quant at a time (do_rmse).

    x: f32[members, groups], its own importance as x * x. Returns the same as make_qx_quants.
    """
    top = largest(x, axis=0)[0]
    zeros = np.abs(top) < GROUP_MAX_EPS
    w = x * x
    wx = w * x
    quants = np.clip(nearest_int(np.float32(-nmax) / top * x), -nmax, nmax - 1).astype(np.float32)
    sum_lx, sum_l2 = sum_in_order(wx * quants), sum_in_order(w * quants * quants)
    # ggml stops when a pass changes nothing; more passes would change nothing either.
    for _ in range(5):
        for wi, wxi, xi, quant in zip(w, wx, x, quants, strict=True):
            rest_lx, rest_l2 = sum_lx - wxi * quant, sum_l2 - wi * quant * quant
            new = np.clip(nearest_int(xi * rest_l2 / rest_lx), -nmax, nmax - 1).astype(np.float32)
            changes = (rest_lx > 0) & (new != quant)
            new_lx, new_l2 = rest_lx + wxi * new, rest_l2 + wi * new * new
            better = changes & (new_l2 > 0) & (new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2)
            quant[better] = new[better]
            sum_lx, sum_l2 = np.where(better, new_lx, sum_lx), np.where(better, new_l2, sum_l2)
    quants += np.float32(nmax)
    quants[:, zeros] = 0
    scale = np.where(~zeros & (sum_l2 > 0), sum_lx / sum_l2, np.float32(0))
    return scale, quants.astype(np.int32)


def make_qkx2_quants(
    x: Floats, weights: Floats, nmax: int, rmin: float, rdelta: float, nstep: int, use_mad: bool = False
) -> tuple[Floats, Floats, Ints]:
    """Find scales and mins: x ~ scale * quant - min, with quants in 0 .. nmax and min >= 0, by squared (use_mad: absolute) error.

    x, weights: f32[members, groups]. Tries the inverse scales (nmax + rmin + rdelta * i) / range for i in 0 .. nstep.
    Returns scale f32[groups], min f32[groups] and the quants i32[members, groups].
    make_qkx3_quants is the same function when it is given weights, which its callers always do.
    """
    # Of zeros of either sign the first is ggml's min: q4_1 and q5_1 store it.
    least, top = np.take_along_axis(x, x.argmin(axis=0, keepdims=True), axis=0)[0], x.max(axis=0)
    low = np.where(least > 0, np.float32(0), least)
    peak = np.maximum(top, -low)
    sum_w, sum_x = sum_in_order(weights), sum_in_order(weights * x, start=-0.0)
    zero, limit = np.zeros_like(top), np.full_like(top, nmax)  # rows, as in make_qx_quants
    quants, terms, wl = np.empty_like(x), np.empty_like(x), np.empty_like(x)

    def quantize(inverse: Floats, offset: Floats) -> None:
        np.subtract(x, offset, out=quants)
        np.multiply(inverse, quants, out=quants)
        # The range, and so the inverse, follows the best offset so far; where it vanishes the quants are beyond what np.rint may stand for.
        wild = ~(np.abs(inverse) * (peak - offset) < 4e6)
        wild_quants = nearest_int(quants[:, wild]) if wild.any() else None
        np.rint(quants, out=quants)
        if wild_quants is not None:
            quants[:, wild] = wild_quants
        np.maximum(quants, zero, out=quants)
        np.minimum(quants, limit, out=quants)

    def error_of(scale: Floats, offset: Floats) -> Floats:
        np.multiply(scale, quants, out=terms)
        np.add(terms, offset, out=terms)
        np.subtract(terms, x, out=terms)
        if use_mad:
            np.abs(terms, out=terms)
        else:
            np.multiply(terms, terms, out=terms)
        return sum_in_order(np.multiply(weights, terms, out=terms))

    best_inverse, best_low = np.float32(nmax) / (top - low), low
    scale, offset = np.float32(1) / best_inverse + np.float32(0), low  # + 0 turns -0 into 0: of zeros, top - low may be -0
    quantize(best_inverse, low)
    best = error_of(scale, offset)
    for step in range(nstep + 1):
        inverse = (np.float32(rmin) + np.float32(rdelta) * np.float32(step) + np.float32(nmax)) / (top - offset)
        quantize(inverse, offset)
        sum_l = sum_in_order(np.multiply(weights, quants, out=wl))
        sum_l2 = sum_in_order(np.multiply(wl, quants, out=terms))
        sum_xl = sum_in_order(np.multiply(wl, x, out=terms))
        determinant = sum_w * sum_l2 - sum_l * sum_l
        this_scale: Floats = np.divide(sum_w * sum_xl - sum_x * sum_l, determinant)
        this_offset: Floats = np.divide(sum_l2 * sum_x - sum_l * sum_xl, determinant)
        positive = this_offset > 0
        this_scale = np.where(positive, sum_xl / sum_l2, this_scale)
        this_offset = np.where(positive, np.float32(0), this_offset)
        error = error_of(this_scale, this_offset)
        better = (determinant > 0) & (error < best)
        best = np.where(better, error, best)
        scale = np.where(better, this_scale, scale)
        best_inverse, best_low = np.where(better, inverse, best_inverse), np.where(better, offset, best_low)
        offset = np.where(better, this_offset, offset)
    quantize(best_inverse, best_low)
    # ggml returns early where all weights are equal; here that comes out as 1 / range infinite and no step with a determinant. Zeros of
    # either sign would give the scale one.
    return np.where(top == low, np.float32(0), scale), -offset, quants.astype(np.int32)


def make_qp_quants(x: Floats, nmax: int, weights: Floats) -> tuple[Floats, NDArray[np.uint8]]:
    """Find scales for values that are not negative: x ~ scale * quant, with quants in 0 .. nmax. Used for the scales and mins themselves.

    Rounding can make a scale negative after all, where weights differ by many orders. Then ggml's quant, a uint8, wraps; so it does here.
    x, weights: f32[members, groups]. Returns scale f32[groups] and the quants u8[members, groups].
    """
    top = x.max(axis=0)
    zeros = top < GROUP_MAX_EPS

    def squared_error(inverse: Floats, quants: Floats) -> Floats:
        diff = x - (np.float32(1) / inverse) * quants
        return sum_in_order(weights * diff * diff)

    def quantize(inverse: Floats) -> Floats:
        return np.minimum(nearest_int(inverse * x), nmax).astype(np.float32)

    best_inverse = np.float32(nmax) / top
    best = squared_error(best_inverse, wrap(quantize(best_inverse)))
    for step in (*range(-4, 0), *range(1, 5)):
        inverse = (np.float32(0.1) * np.float32(step) + np.float32(nmax)) / top
        error = squared_error(inverse, quantize(inverse))
        better = error < best
        best, best_inverse = np.where(better, error, best), np.where(better, inverse, best_inverse)

    wx = weights * x
    quants = quantize(best_inverse)
    sum_lx, sum_l2 = sum_in_order(wx * quants), sum_in_order(weights * quants * quants)
    quants = wrap(quants)
    # Move one quant at a time while that lowers the error. ggml stops when a pass changes nothing; more passes would change nothing either.
    for _ in range(5):
        for w, wxi, xi, quant in zip(weights, wx, x, quants, strict=True):
            rest_lx, rest_l2 = sum_lx - wxi * quant, sum_l2 - w * quant * quant
            new = np.minimum(nearest_int(xi * rest_l2 / rest_lx), nmax).astype(np.float32)
            changes = (rest_lx > 0) & (rest_l2 > 0) & (new != quant)
            new_lx, new_l2 = rest_lx + wxi * new, rest_l2 + w * new * new
            better = changes & (new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2)
            quant[better] = wrap(new[better])
            sum_lx, sum_l2 = np.where(better, new_lx, sum_lx), np.where(better, new_l2, sum_l2)
    quants[:, zeros] = 0
    scale = np.where(~zeros & (sum_l2 > 0), sum_lx / sum_l2, np.float32(0))
    return scale, quants.astype(np.uint8)
