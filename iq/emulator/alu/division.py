"""The steps of IEEE division: v_div_scale, v_div_fmas, v_div_fixup.

A quotient is refined with fma from an approximate reciprocal. Where numerator, denominator, reciprocal or quotient would leave the normal
range, div_scale scales them by powers of two; its mask (VCC) says that the quotient is scaled too, and div_fmas undoes that; div_fixup
deals with zeros, infinities and NaN.

The ISA manuals (RDNA3 16.13, V_DIV_SCALE_F32, V_DIV_FMAS_F32) misprint two details, which no correct division could have: div_fmas by
2^32, where div_scale has scaled the quotient by 2^-64 or 2^64; and, where reciprocal and quotient are both denormal, a denominator above
2^126 scaled up. And they do not say that div_fixup turns the NaN of an overflowed quotient, refined, into an infinity. Here div_fmas
scales by 2^64 or 2^-64 as the quotient is above 1 or not, and that denominator is scaled down. So compiled divisions round correctly,
which the tests hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from iq.emulator.alu.floats import bits, floating, fma64, ldexp, odd_fma, round_fraction
from iq.emulator.alu.types import Array, Function, Op


@dataclass(frozen=True)
class _Format:
    """mantissa: its width in bits. scale: the power of two of div_scale. near_overflow: the difference of exponents from which quotients
    are scaled down. tiny: the biased exponent up to which a numerator is scaled up. underflow: the difference of exponents below which the
    quotient is 0."""

    code: str
    mantissa: int
    bias: int
    scale: int
    near_overflow: int
    tiny: int
    underflow: int

    def exponent(self, x: Array) -> Array:
        """The biased exponent field."""
        pattern = bits(x)
        unit = pattern.dtype.type
        field: Array = (pattern << unit(1)) >> unit(self.mantissa + 1)
        return field.astype(np.int32)


_F32 = _Format("f32", 23, 127, 64, 96, 23, -150)
_F64 = _Format("f64", 52, 1023, 128, 768, 52, -1075)


def _scale(form: _Format) -> Function:
    def scale(value: Array, denominator: Array, numerator: Array) -> tuple[Array, Array]:
        value, denominator, numerator = np.broadcast_arrays(value, denominator, numerator)
        smallest = np.finfo(value.dtype).smallest_normal
        is_denominator, is_numerator = value == denominator, value == numerator
        none = np.zeros(value.shape, np.int32)
        up, down = none + np.int32(form.scale), none - np.int32(form.scale)
        zero = (denominator == 0) | (numerator == 0)
        overflow = form.exponent(numerator) - form.exponent(denominator) >= form.near_overflow
        denormal = np.abs(denominator) < smallest
        reciprocal = np.abs(denominator) > 1 / smallest  # the reciprocal would be denormal
        quotient = np.abs(numerator.astype(np.float64) / denominator) < smallest
        tiny = form.exponent(numerator) <= form.tiny
        # The manual's chain of else-ifs.
        cases = [zero, overflow, denormal, reciprocal & quotient, reciprocal, quotient, tiny]
        powers: list[Array] = [
            none,
            np.where(is_denominator, up, none),
            up,
            np.where(is_denominator, down, none),
            down,
            np.where(is_numerator, up, none),
            up,
        ]
        scaled = ldexp(value, np.select(cases, powers))
        mask = np.select(cases, [False, True, False, True, False, True, False], False)
        return np.where(zero, value.dtype.type(np.nan), scaled), mask

    return scale


def _fmas32(a: Array, b: Array, c: Array, scaled: Array) -> Array:
    total = odd_fma(a, b, c)  # scaling it is exact, so it is rounded once
    power = np.where(_F32.exponent(c) > _F32.bias, 2.0**_F32.scale, 2.0**-_F32.scale)
    return np.where(scaled, total * power, total).astype(np.float32)


def _fmas64(a: Array, b: Array, c: Array, scaled: Array) -> Array:
    a, b, c, scaled = np.broadcast_arrays(a, b, c, scaled)
    up = _F64.exponent(c) > _F64.bias
    total = fma64(a, b, c)
    result = np.where(scaled, total * np.where(up, 2.0**_F64.scale, 2.0**-_F64.scale), total)
    # A denormal result must not be rounded twice.
    for i in zip(*np.nonzero(scaled & ~up & np.isfinite(total) & (np.abs(result) < 2.0**-1021)), strict=True):
        exact = (Fraction(float(a[i])) * Fraction(float(b[i])) + Fraction(float(c[i]))) / 2**_F64.scale
        result[i] = round_fraction(exact, float(result[i]))
    return result


def _fixup(quotient: Array, denominator: Array, numerator: Array) -> Array:
    """NaN, infinity and zero as IEEE 754 has them; else the quotient with the right sign."""
    one, infinity, zero = (quotient.dtype.type(x) for x in (1, np.inf, 0))
    sign = np.where(np.signbit(denominator) ^ np.signbit(numerator), -one, one)
    nan = np.isnan(numerator) | np.isnan(denominator)
    invalid = ((denominator == 0) & (numerator == 0)) | (np.isinf(denominator) & np.isinf(numerator))
    infinite = (denominator == 0) | np.isinf(numerator)
    vanishing = np.isinf(denominator) | (numerator == 0)
    return np.select(
        [nan, invalid, infinite, vanishing],
        [numerator + denominator, -quotient.dtype.type(np.nan), sign * infinity, sign * zero],
        np.copysign(quotient, sign),
    )


def _fixup_range(form: _Format) -> Function:
    def fixup(quotient: Array, denominator: Array, numerator: Array) -> Array:
        # Refining a quotient that overflowed gives inf - inf.
        result = _fixup(quotient, denominator, numerator)
        finite = np.isfinite(denominator) & np.isfinite(numerator) & (denominator != 0) & (numerator != 0)
        vanishing = form.exponent(numerator) - form.exponent(denominator) < form.underflow
        result = np.where(finite & np.isnan(quotient), np.copysign(quotient.dtype.type(np.inf), result), result)
        return np.where(finite & vanishing, np.copysign(result.dtype.type(0), result), result)

    return fixup


DIVISION: Mapping[str, Op] = {
    "v_div_scale_f32": floating("f32", ("f32",) * 3, _scale(_F32), carries=True),
    "v_div_scale_f64": floating("f64", ("f64",) * 3, _scale(_F64), carries=True),
    "v_div_fmas_f32": floating("f32", ("f32", "f32", "f32", "mask"), _fmas32),
    "v_div_fmas_f64": floating("f64", ("f64", "f64", "f64", "mask"), _fmas64),
    "v_div_fixup_f16": floating("f16", ("f16", "f16", "f16"), _fixup, keeps=True),
    "v_div_fixup_f32": floating("f32", ("f32", "f32", "f32"), _fixup_range(_F32)),
    "v_div_fixup_f64": floating("f64", ("f64", "f64", "f64"), _fixup_range(_F64)),
}
