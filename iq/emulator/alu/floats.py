"""What the float instructions share: denormal flushing by mode, exactly rounded fma, the orderings of min and max, approximated functions.

Approximate, and so for every table that uses it: transcendental functions (exp, log, sin, cos, rcp, rsq, sqrt) are computed in float64 and
rounded, so at most one unit in the last place from the true value; the hardware's own are within 1 ulp (rcp_f64 and rsq_f64: 2^29 ulp).
Results that are NaN are quiet NaNs whose payload is numpy's; signalling NaNs are read as quiet ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iq.emulator.alu.types import Array, Function, Mode, Op

FLOATS = frozenset({"f16", "f32", "f64", "bf16", "mix"})
_BITS: dict[int, type[np.unsignedinteger[Any]]] = {2: np.uint16, 4: np.uint32, 8: np.uint64}


def bits(x: Array) -> Array:
    """The bit patterns of floats, as unsigned integers of their size."""
    return np.ascontiguousarray(x).view(_BITS[x.dtype.itemsize])


def flush(x: Array, smallest: float | None = None) -> Array:
    """Denormals to zeros of their sign. smallest: the normal number that they are below, by default that of the type."""
    small = np.abs(x) < (np.finfo(x.dtype).smallest_normal if smallest is None else smallest)
    # There is seldom any but zeros, and to look is faster than to replace.
    return np.where(small, np.copysign(x.dtype.type(0), x), x) if x[small].any() else x


def floating(result: str, sources: tuple[str, ...], function: Function, **more: Any) -> Op:
    """A row whose float sources and result are flushed as the mode says, and which rounds to nearest even.

    With denormals kept, the default of compilers on these processors, it is the plain function.
    """

    def under(mode: Mode) -> Function:
        types = [code for code in (result, *sources) if code in FLOATS]
        for code in types:
            mode.require_nearest(code)
        inputs = [code in FLOATS and mode.denormals(code) in (0, 2) for code in sources]
        output = result in FLOATS and mode.denormals(result) in (0, 1)
        return flushed(function, inputs, output)

    return Op(result, sources, under, moded=True, **more)


def flushed(function: Function, inputs: list[bool], output: bool) -> Function:
    """A function with those of its inputs flushed, and its output; itself where there is nothing to flush."""
    if not any(inputs) and not output:
        return function

    def wrapped(*sources: Array) -> Any:
        r = function(*(flush(x) if f else x for x, f in zip(sources, inputs, strict=True)))
        if not output:
            return r
        return (flush(r[0]), *r[1:]) if isinstance(r, tuple) else flush(r)  # (v_div_scale has a mask as well)

    return wrapped


def approximate(function: Callable[[Array], Array], dtype: type[np.floating[Any]]) -> Function:
    """A function computed in float64 and rounded once."""
    return lambda x: function(x.astype(np.float64)).astype(dtype)


def always_flushed(function: Function) -> Function:
    """For f32 rcp, rsq, sqrt, exp, log: "denormals are flushed", whatever the mode (RDNA3 ISA 16.8). Compilers scale around it."""
    return flushed(function, [True], True)


def toward(total: Array, error: Array) -> Array:
    """`total`, a rounded sum whose rounding error is `error`, rounded to odd instead: rounding that once more, to a narrower type, rounds
    the exact sum correctly (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008)."""
    even = (bits(total) & np.uint64(1)) == 0
    odd: Array = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    return np.where(even & (error != 0) & np.isfinite(error), odd, total)


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """a + b rounded, and the rounding error, exactly (Knuth)."""
    total = a + b
    virtual = total - a
    return total, (a - (total - virtual)) + (b - virtual)


def odd_fma(a: Array, b: Array, c: Array) -> NDArray[np.float64]:
    """a * b + c of f16 or f32, rounded to odd in float64 (where their products are exact)."""
    return toward(*two_sum(a.astype(np.float64) * b, c.astype(np.float64)))


def _narrow_fma(dtype: type[np.floating[Any]], dropped: int) -> Function:
    """fma of f32 or f16: float64 has `dropped` mantissa bits more. The sum in float64 rounds like the exact one unless it looks like a tie
    of the narrow type, or the result is denormal; those few lanes are done again with care."""
    mask, tie = np.uint64((1 << dropped) - 1), np.uint64(1 << (dropped - 1))
    smallest = dtype(np.finfo(dtype).smallest_normal)
    # Of f32, the dropped bits lie in the lower word, whose test is the faster.
    low = dropped < 32

    def like_ties(total: Array) -> Array:
        words = np.ascontiguousarray(total).view(np.uint32)[..., 0::2] & np.uint32(mask) if low else bits(total) & mask
        found: Array = words == words.dtype.type(tie)
        return found

    def fma(a: Array, b: Array, c: Array) -> Array:
        total = np.asarray(a.astype(np.float64) * b + c)
        result = np.asarray(total.astype(dtype))
        ties, small = like_ties(total), np.abs(result) < smallest
        if ties.any() or small.any():
            doubtful = ties | (small & (total != 0))
            lanes = (np.broadcast_to(x, total.shape)[doubtful] for x in (a, b, c))
            result[doubtful] = odd_fma(*lanes).astype(dtype)
        return result

    return fma


fma32 = _narrow_fma(np.float32, 29)
fma16 = _narrow_fma(np.float16, 42)


def fma64(a: Array, b: Array, c: Array) -> Array:
    """fma of float64, correctly rounded: Boldo and Melquiond's in the range where their proof holds, exact fractions elsewhere."""
    a, b, c = np.broadcast_arrays(a, b, c)
    product, low = _two_product(a, b)
    high, error = two_sum(c, low)
    total, rest = two_sum(product, high)
    result = total + toward(*two_sum(error, rest))
    easy = _within(a, 400) & _within(b, 400) & (_within(c, 900) | (c == 0)) & (_within(result, 900) | (result == 0))
    result = np.where(easy, result, a * b + c)  # right where that is exact, infinite or NaN
    hard = ~easy & np.isfinite(a) & np.isfinite(b) & np.isfinite(c) & (a != 0) & (b != 0)
    for i in zip(*np.nonzero(hard), strict=True):
        result[i] = round_fraction(Fraction(float(a[i])) * Fraction(float(b[i])) + Fraction(float(c[i])), float(result[i]))
    return result


def round_fraction(exact: Fraction, zero: float = 0.0) -> float:
    """The float64 nearest to a fraction, infinite beyond the largest; where the fraction is 0, `zero` (for its sign)."""
    if exact == 0:
        return zero
    try:
        return float(exact)
    except OverflowError:
        return math.inf if exact > 0 else -math.inf


def _within(x: Array, exponent: int) -> NDArray[np.bool_]:
    size = np.abs(x)
    return (size > 2.0**-exponent) & (size < 2.0**exponent)


def _two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """a * b rounded, and the rounding error, exactly (Dekker; Veltkamp's split)."""
    product = a * b
    (ah, al), (bh, bl) = _split(a), _split(b)
    return product, al * bl - (((product - ah * bh) - al * bh) - ah * bl)


def _split(x: Array) -> tuple[Array, Array]:
    t = x * (2.0**27 + 1)
    high = t - (t - x)
    return high, x - high


def fma_of(code: str) -> Function:
    """The fma of a float type."""
    return {"f16": fma16, "f32": fma32, "f64": fma64}[code]


def minimum_number(a: Array, b: Array) -> Array:
    """The smaller, -0 below +0; of a number and a NaN, the number (v_min_f32, v_min_num_f32)."""
    r = np.fmin(a, b)
    return _ordered_zeros(r, a, b, np.bitwise_or)


def maximum_number(a: Array, b: Array) -> Array:
    """The larger, +0 above -0; of a number and a NaN, the number (v_max_f32, v_max_num_f32)."""
    r = np.fmax(a, b)
    return _ordered_zeros(r, a, b, np.bitwise_and)


def minimum(a: Array, b: Array) -> Array:
    """IEEE 754-2019 minimum: NaN if either is (gfx12 v_minimum_f32)."""
    return _ordered_zeros(np.minimum(a, b), a, b, np.bitwise_or)


def maximum(a: Array, b: Array) -> Array:
    """IEEE 754-2019 maximum: NaN if either is (gfx12 v_maximum_f32)."""
    return _ordered_zeros(np.maximum(a, b), a, b, np.bitwise_and)


def _ordered_zeros(r: Array, a: Array, b: Array, sign: Callable[[Array, Array], Array]) -> Array:
    """Of two zeros numpy returns either; the hardware orders them (CDNA3 ISA, V_MIN_F32)."""
    if not (r == 0).any():
        return r
    return np.where((a == 0) & (b == 0), sign(bits(a), bits(b)).view(r.dtype), r)


def median_number(a: Array, b: Array, c: Array) -> Array:
    """The middle of three; the smallest number where one is NaN (CDNA3 ISA, V_MED3_F32)."""
    nan = np.isnan(a) | np.isnan(b) | np.isnan(c)
    smallest = minimum_number(minimum_number(a, b), c)
    middle = maximum_number(minimum_number(a, b), minimum_number(maximum_number(a, b), c))
    return np.where(nan, smallest, middle)


def fract(x: Array) -> Array:
    """x - floor(x), kept below 1 (RDNA3 ISA, V_FRACT_F32)."""
    below_one = np.nextafter(x.dtype.type(1), x.dtype.type(0))
    fraction: Array = np.minimum(x - np.floor(x), below_one)
    return fraction


def ldexp(x: Array, exponent: Array) -> Array:
    """x * 2^exponent, rounded once."""
    # Beyond +-4000 nothing changes any more, and C's int suffices.
    scaled: Array = np.ldexp(x, np.clip(exponent.astype(np.int32), -4000, 4000))
    return scaled


def frexp_exponent(x: Array, dtype: type[np.signedinteger[Any]]) -> Array:
    """The exponent with a mantissa in [0.5, 1); 0 for zero, infinity and NaN."""
    return np.where(np.isfinite(x), np.frexp(np.where(np.isfinite(x), x, 0))[1], 0).astype(dtype)


def frexp_mantissa(x: Array) -> Array:
    """The mantissa in +-[0.5, 1); zero, infinity and NaN as they are."""
    return np.where(np.isfinite(x), np.frexp(x)[0], x)


def sine(x: Array) -> Array:
    """sin(2 pi x); 0 outside [-256, 256] (CDNA3 ISA, V_SIN_F32)."""
    return np.where(np.abs(x) > 256, 0.0, np.sin(2 * np.pi * (x - np.rint(x)))) + np.where(np.isfinite(x), 0.0, np.nan)


def cosine(x: Array) -> Array:
    """cos(2 pi x); 1 outside [-256, 256] (CDNA3 ISA, V_COS_F32)."""
    return np.where(np.abs(x) > 256, 1.0, np.cos(2 * np.pi * (x - np.rint(x)))) + np.where(np.isfinite(x), 0.0, np.nan)


def multiply_legacy(a: Array, b: Array) -> Array:
    """Multiplication where 0 times anything is +0 (v_mul_legacy_f32, v_mul_dx9_zero_f32)."""
    return np.where((a == 0) | (b == 0), a.dtype.type(0), a * b)
