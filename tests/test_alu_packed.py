"""Packed arithmetic and dot products of the emulator, against Python integers and fractions."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from alu_numbers import (
    KEEP,
    M32,
    apply,
    array,
    bf16_bits,
    cases,
    clip,
    exact_binary,
    exact_fma,
    holds,
    integers,
    larger,
    middle,
    rounded,
    same,
    smaller,
    wrap,
)
from hypothesis import given
from hypothesis import strategies as st

from iq.emulator.alu import DOT, PACKED
from iq.emulator.alu.types import dtype, signed, unpack

pytestmark = pytest.mark.usefixtures("quiet")


# Packed arithmetic and dot products.

PACKED_INTEGER: dict[str, Callable[..., int]] = {
    "v_pk_mul_lo_u16": lambda a, b: a * b,
    "v_pk_lshlrev_b16": lambda n, x: x << (n & 15),
    "v_pk_lshrrev_b16": lambda n, x: x >> (n & 15),
    "v_pk_ashrrev_i16": lambda n, x: x >> (n & 15),
    **{f"v_pk_max_{t}16": max for t in "ui"},
    **{f"v_pk_min_{t}16": min for t in "ui"},
}
PACKED_SATURATING: dict[str, Callable[..., int]] = {
    **{f"v_pk_add_{t}16": lambda a, b: a + b for t in "ui"},
    **{f"v_pk_sub_{t}16": lambda a, b: a - b for t in "ui"},
    **{f"v_pk_mad_{t}16": lambda a, b, c: a * b + c for t in "ui"},
}


@pytest.mark.parametrize("name", [*PACKED_INTEGER, *PACKED_SATURATING])
def test_packed_integers(name: str) -> None:
    if name in PACKED_INTEGER:
        holds(PACKED, name, PACKED_INTEGER[name])
    else:
        holds(PACKED, name, PACKED_SATURATING[name], saturated=True)


PACKED_FLOAT: dict[str, Callable[..., float]] = {
    **{
        f"v_pk_{name}_{code}": lambda a, b, name=name, code=code: exact_binary(name, a, b, code)  # type: ignore[misc]
        for name in ("add", "mul")
        for code in ("f16", "f32")
    },
    **{f"v_pk_fma_{code}": lambda a, b, c, code=code: exact_fma(a, b, c, code) for code in ("f16", "f32")},
    "v_pk_fmac_f16": lambda a, b, c: exact_fma(a, b, c, "f16"),
    **{f"v_pk_min{s}_f16": smaller for s in ("", "_num", "imum")},
    **{f"v_pk_max{s}_f16": larger for s in ("", "_num", "imum")},
    "v_pk_minimum3_f16": lambda a, b, c: smaller(smaller(a, b), c),
    "v_pk_maximum3_f16": lambda a, b, c: larger(larger(a, b), c),
}


@pytest.mark.parametrize("name", PACKED_FLOAT)
def test_packed_floats(name: str) -> None:
    op = PACKED[name]

    lanes = cases(op)
    got = apply(op.bind(KEEP), op, lanes)
    assert got.dtype == dtype(op.result)
    for result, sources in zip(got, lanes, strict=True):
        if any(map(math.isnan, sources)):
            assert math.isnan(result) or "imum" not in name
        elif all(map(math.isfinite, sources)):
            assert same(result, PACKED_FLOAT[name](*sources)), sources


def test_every_packed_row_is_tested() -> None:
    assert set(PACKED) == {*PACKED_INTEGER, *PACKED_SATURATING, *PACKED_FLOAT}
    assert PACKED["v_pk_fmac_f16"].tied


def elements(word: int, bits: int, is_signed: bool) -> list[int]:
    parts = [word >> k & (1 << bits) - 1 for k in range(0, 32, bits)]
    return [p - (1 << bits) if is_signed and p >> (bits - 1) else p for p in parts]


DOT_INTEGER = {
    **dict.fromkeys(("v_dot2_i32_i16", "v_dot2c_i32_i16"), (16, "i")),
    "v_dot2_u32_u16": (16, "u"),
    **dict.fromkeys(("v_dot4_i32_i8", "v_dot4c_i32_i8"), (8, "i")),
    "v_dot4_u32_u8": (8, "u"),
    "v_dot4_i32_iu8": (8, "iu"),
    **dict.fromkeys(("v_dot8_i32_i4", "v_dot8c_i32_i4"), (4, "i")),
    "v_dot8_u32_u4": (4, "u"),
    "v_dot8_i32_iu4": (4, "iu"),
}


@pytest.mark.parametrize("name", DOT_INTEGER)
def test_integer_dot_products(name: str) -> None:
    bits, kind = DOT_INTEGER[name]
    op = DOT[name]
    assert op.tied == ("c_" in name) and op.result == ("u32" if kind == "u" else "i32")
    words = st.one_of(st.sampled_from([0, 0x80808080, 0x7F7F7F7F, 0xFFFFFFFF, 0x80008000, 0x88888888, 0x00010001]), st.integers(0, M32))

    @given(words, words, integers(op.result), st.booleans(), st.booleans())
    def check(a: int, b: int, c: int, sign_a: bool, sign_b: bool) -> None:
        signs = (sign_a, sign_b) if kind == "iu" else (kind == "i",) * 2
        sources = [unpack(np.array([[x]], np.uint32), signed(code, sign)) for x, code, sign in zip((a, b), op.sources, signs, strict=False)]
        exact = c + sum(x * y for x, y in zip(elements(a, bits, signs[0]), elements(b, bits, signs[1]), strict=True))
        got = op.function(*sources, array([[c]], op.result))
        assert got.dtype == dtype(op.result) and int(got[0, 0]) == wrap(exact, op.result)
        assert int(op.saturating(*sources, array([[c]], op.result))[0, 0]) == clip(exact, op.result)  # type: ignore[misc]

    check()


@pytest.mark.parametrize("name", ["v_dot2_f32_f16", "v_dot2c_f32_f16", "v_dot2acc_f32_f16", "v_dot2_f16_f16"])
def test_half_dot_products(name: str) -> None:
    op = DOT[name]
    assert op.tied == ("c_" in name)
    small = st.integers(-(2**10), 2**10).map(lambda n: n / 64)

    @given(small, small, small, small, small)
    def check(a: float, b: float, c: float, d: float, e: float) -> None:
        pairs = [np.array([[x]], np.float16).view(np.uint16).astype(np.uint32) for x in (a, b, c, d)]
        x, y = (unpack(low | high << np.uint32(16), "f16x2") for low, high in (pairs[:2], pairs[2:]))
        got = op.bind(KEEP)(x, y, array([[e]], op.result))
        exact = Fraction(a) * Fraction(c) + Fraction(b) * Fraction(d) + Fraction(e)
        assert got.dtype == dtype(op.result) and same(got[0, 0], rounded(exact, op.result))

    check()


@pytest.mark.parametrize("name", ["v_dot2_f32_bf16", "v_dot2c_f32_bf16", "v_dot2acc_f32_bf16", "v_dot2_bf16_bf16"])
def test_bfloat_dot_products(name: str) -> None:
    op = DOT[name]
    assert op.tied == ("c_" in name)
    a, b = (unpack(np.array([[bf16_bits(low) | bf16_bits(high) << 16]], np.uint32), "bf16x2") for low, high in ((1.5, -2.0), (3.0, 0.25)))
    assert float(op.bind(KEEP)(a, b, np.array([[10]], dtype(op.result)))[0, 0]) == 14.0


def test_every_dot_row_is_tested() -> None:
    floats = {f"v_dot2{c}_f32_{t}" for c in ("", "c", "acc") for t in ("f16", "bf16")} | {"v_dot2_f16_f16", "v_dot2_bf16_bf16"}
    assert set(DOT) == {*DOT_INTEGER, *floats}


# The unpacking and packing of types.


def test_unpacking() -> None:
    word = np.array([[0x80FF7F01]], np.uint32)
    assert unpack(word, "i8x4").tolist() == [[[1, 127, -1, -128]]]
    assert unpack(word, "u8x4").tolist() == [[[1, 127, 255, 128]]]
    assert unpack(word, "i4x8").tolist() == [[[1, 0, -1, 7, -1, -1, 0, -8]]]
    assert unpack(word, "u4x8").tolist() == [[[1, 0, 15, 7, 15, 15, 0, 8]]]
    assert unpack(word, "i16x2").tolist() == [[[0x7F01, 0x80FF - 0x10000]]]
    assert unpack(np.array([[0xC0003C00]], np.uint32), "f16x2").tolist() == [[[1.0, -2.0]]]
    assert (signed("iu8x4", True), signed("iu4x8", False), signed("i8x4", False)) == ("i8x4", "u4x8", "i8x4")


def test_the_median_of_floats_is_the_manuals() -> None:
    assert same(middle(1.0, math.nan, -3.0), -3.0) and middle(3.0, 1.0, 2.0) == 2.0
