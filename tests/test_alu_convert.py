"""Conversions and comparisons of the emulator's vector ALU, against Python integers, fractions and struct."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from alu_numbers import (
    CONDITIONS,
    DTYPE,
    FLOAT_CONDITIONS,
    KEEP,
    apply,
    apply_one,
    bf16_bits,
    cases,
    clip,
    holds,
    integers,
    limits,
    numbers,
    rounded,
    same,
)
from hypothesis import given
from hypothesis import strategies as st

from iq.emulator.alu import COMPARE, VECTOR, Mode
from iq.emulator.alu.types import dtype

pytestmark = pytest.mark.usefixtures("quiet")


# Conversions.


def to_integer(x: float, code: str, rounding: Callable[[Any], int] = math.trunc) -> int:
    if math.isnan(x):
        return 0
    low, high = limits(code)
    return (low if x < 0 else high) if math.isinf(x) else clip(rounding(Fraction(x)), code)


TO_INTEGER: dict[str, tuple[str, str, Callable[[Any], int]]] = {
    "v_cvt_i16_f16": ("f16", "i16", math.trunc),
    "v_cvt_u16_f16": ("f16", "u16", math.trunc),
    "v_cvt_i32_f32": ("f32", "i32", math.trunc),
    "v_cvt_u32_f32": ("f32", "u32", math.trunc),
    "v_cvt_i32_f64": ("f64", "i32", math.trunc),
    "v_cvt_u32_f64": ("f64", "u32", math.trunc),
    "v_cvt_flr_i32_f32": ("f32", "i32", math.floor),
    "v_cvt_floor_i32_f32": ("f32", "i32", math.floor),
}


@pytest.mark.parametrize("name", TO_INTEGER)
def test_conversion_to_integers_truncates_and_saturates(name: str) -> None:
    code, to, rounding = TO_INTEGER[name]
    op = VECTOR[name]
    assert (op.sources, op.result) == ((code,), to)

    @given(
        st.one_of(
            numbers(code), st.floats(-70000, 70000, width=int(code[1:]) if code != "f16" else 32), st.integers(-40, 40).map(lambda n: n / 4)
        )
    )
    def check(x: float) -> None:
        x = float(DTYPE[code](x))
        got = apply_one(op.bind(KEEP), op, (x,))
        assert got.dtype == dtype(to) and int(got[0, 0]) == to_integer(x, to, rounding)

    check()


@pytest.mark.parametrize("name", ["v_cvt_rpi_i32_f32", "v_cvt_nearest_i32_f32"])
def test_conversion_to_the_nearest_integer(name: str) -> None:
    for x, wanted in ((0.5, 1), (-0.5, 0), (1.5, 2), (2.49, 2), (-2.51, -3), (3e9, 2**31 - 1), (-3e9, -(2**31)), (math.nan, 0)):
        assert apply_one(VECTOR[name].bind(KEEP), VECTOR[name], (x,))[0, 0] == wanted


FROM_INTEGER = [
    *(("v_cvt_f16_u16", "u16", "f16"), ("v_cvt_f16_i16", "i16", "f16"), ("v_cvt_f32_i32", "i32", "f32"), ("v_cvt_f32_u32", "u32", "f32")),
    *(("v_cvt_f64_i32", "i32", "f64"), ("v_cvt_f64_u32", "u32", "f64")),
]


@pytest.mark.parametrize(("name", "code", "to"), FROM_INTEGER)
def test_conversion_from_integers_rounds_to_even(name: str, code: str, to: str) -> None:
    op = VECTOR[name]
    assert (op.sources, op.result) == ((code,), to)

    @given(integers(code))
    def check(x: int) -> None:
        got = apply_one(op.bind(KEEP), op, (x,))
        assert got.dtype == dtype(to) and same(got[0, 0], rounded(Fraction(x), to))

    check()


@pytest.mark.parametrize(("code", "to"), [("f16", "f32"), ("f32", "f16"), ("f32", "f64"), ("f64", "f32")])
def test_conversion_between_floats(code: str, to: str) -> None:
    op = VECTOR[f"v_cvt_{to}_{code}"]

    @given(st.one_of(numbers(code), numbers(to).map(lambda x: float(DTYPE[code](x)))))
    def check(x: float) -> None:
        got = apply_one(op.bind(KEEP), op, (x,))
        assert got.dtype == dtype(to) and same(got[0, 0], rounded(Fraction(x), to, x) if math.isfinite(x) else x)

    check()


def test_bytes_become_floats() -> None:
    for k in range(4):
        op = VECTOR[f"v_cvt_f32_ubyte{k}"]
        assert apply_one(op.bind(KEEP), op, (0xFE017F80,))[0, 0] == (0x80, 0x7F, 0x01, 0xFE)[k]


def test_widening_integers() -> None:
    holds(VECTOR, "v_cvt_i32_i16", lambda x: x)
    holds(VECTOR, "v_cvt_u32_u16", lambda x: x)


def halves(packed: Any, code: str) -> tuple[Any, Any]:
    return struct.unpack({"f16": "<ee", "i16": "<hh", "u16": "<HH"}[code], struct.pack("<I", int(packed)))  # type: ignore[return-value]


def toward_zero(x: float) -> float:
    if not math.isfinite(x):
        return x
    near = rounded(Fraction(x), "f16", x)
    while abs(near) > abs(x):
        near = float(np.nextafter(np.float16(near), np.float16(0)))
    return near


@pytest.mark.parametrize("name", ["v_cvt_pkrtz_f16_f32", "v_cvt_pk_rtz_f16_f32"])
def test_pkrtz_rounds_toward_zero(name: str) -> None:
    @given(*[st.one_of(numbers("f32"), numbers("f16"), st.floats(-70000, 70000, width=32), st.floats(-(2.0**-13), 2.0**-13, width=32))] * 2)
    def check(a: float, b: float) -> None:
        low, high = halves(apply_one(VECTOR[name].bind(KEEP), VECTOR[name], (a, b))[0, 0], "f16")
        assert same(low, toward_zero(a)) and same(high, toward_zero(b)), (a, b)

    check()
    low, high = halves(apply_one(VECTOR[name].function, VECTOR[name], (65535.0, -1e30))[0, 0], "f16")
    assert (low, high) == (65504.0, -65504.0)  # never infinite


def test_bf16() -> None:
    op = VECTOR["v_cvt_pk_bf16_f32"]

    @given(numbers("f32"), numbers("f32"))
    def check(a: float, b: float) -> None:
        got = halves(apply_one(op.bind(KEEP), op, (a, b))[0, 0], "u16")
        for bits, x in zip(got, (a, b), strict=True):
            assert bits & 0x7FFF > 0x7F80 if math.isnan(x) else bits == bf16_bits(x)

    check()
    widen = VECTOR["v_cvt_f32_bf16"]
    assert widen.sources == ("bf16",)
    got = widen.bind(KEEP)(np.array([[0x3FC0, 0x8001]], np.uint16).view(dtype("bf16")))
    assert got.dtype == np.float32 and got.view(np.uint32).tolist() == [[0x3FC00000, 0x80010000]]


PACKING: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "v_cvt_pk_f16_f32": ("f16", lambda x: rounded(Fraction(x), "f16", x) if math.isfinite(x) else x),
    "v_cvt_pk_i16_f32": ("i16", lambda x: to_integer(x, "i16")),
    "v_cvt_pk_u16_f32": ("u16", lambda x: to_integer(x, "u16")),
    "v_cvt_pk_i16_i32": ("i16", lambda x: clip(x, "i16")),
    "v_cvt_pk_u16_u32": ("u16", lambda x: clip(x, "u16")),
    **{
        f"v_cvt_{pk}norm_{code}_f32": (code, lambda x, low=low, top=top: 0 if math.isnan(x) else round(Fraction(min(max(x, low), 1)) * top))
        for pk in ("pk", "pk_")
        for code, low, top in (("i16", -1, 32767), ("u16", 0, 65535))
    },
}


@pytest.mark.parametrize("name", PACKING)
def test_packing_conversions(name: str) -> None:
    code, wanted = PACKING[name]
    op = VECTOR[name]
    values = st.one_of(numbers("f32"), st.floats(-2, 2, width=32)) if op.sources[0] == "f32" else integers(op.sources[0])

    @given(values, values)
    def check(a: Any, b: Any) -> None:
        packed = apply_one(op.bind(KEEP), op, (a, b))
        assert packed.dtype == dtype(op.result) == np.uint32
        got = halves(packed[0, 0], code)
        for result, x in zip(got, (a, b), strict=True):
            assert same(result, wanted(x)), (name, x)

    check()


def test_pk_u8_replaces_a_byte() -> None:
    op = VECTOR["v_cvt_pk_u8_f32"]
    for x, byte in ((0.4, 0), (1.5, 2), (2.5, 2), (-3.0, 0), (300.0, 255), (math.nan, 0)):
        for k in range(4):
            got = apply_one(op.bind(KEEP), op, (x, k, 0x44332211))[0, 0]
            assert int(got).to_bytes(4, "little") == bytes(byte if j == k else (0x11, 0x22, 0x33, 0x44)[j] for j in range(4))


# Comparisons.


@pytest.mark.parametrize("code", ["u16", "i16", "u32", "i32", "u64", "i64", "f16", "f32", "f64"])
def test_comparisons(code: str) -> None:
    conditions = FLOAT_CONDITIONS if code[0] == "f" else {**CONDITIONS, "lg": CONDITIONS["ne"]}
    assert {f"v_cmp_{name}_{code}" for name in conditions} <= set(COMPARE)

    for name, wanted in conditions.items():
        op = COMPARE[f"v_cmp_{name}_{code}"]
        lanes = cases(op, most=500)
        got = apply(op.bind(KEEP), op, lanes)
        assert got.dtype == bool and got.shape == (len(lanes),)
        for decided, sources in zip(got.tolist(), lanes, strict=True):
            assert decided == wanted(*sources), (name, sources)


def test_comparisons_flush_denormals_by_mode() -> None:
    op = COMPARE["v_cmp_gt_f32"]
    for setting, wanted in ((0, False), (1, True), (2, False), (3, True)):
        assert apply_one(op.bind(Mode(denormals_f32=setting)), op, (2.0**-140, 0.0))[0, 0] == wanted


@pytest.mark.parametrize(("code", "mantissa"), [("f16", 10), ("f32", 23), ("f64", 52)])
def test_classes(code: str, mantissa: int) -> None:
    bits = int(code[1:])
    sign, exponents = 1 << (bits - 1), (1 << (bits - 1 - mantissa)) - 1
    quiet, infinity = 1 << (mantissa - 1), exponents << mantissa
    patterns = [infinity | 1, infinity | quiet | 1, sign | infinity, sign | infinity - 1, sign | 1, sign, 0, 3, 1 << mantissa, infinity]
    patterns_negative_nan = [sign | infinity | 1, sign | infinity | quiet]
    op = COMPARE[f"v_cmp_class_{code}"]
    for wanted, pattern in [*enumerate(patterns), *enumerate(patterns_negative_nan)]:
        x = np.array([[pattern]], f"u{bits // 8}").view(DTYPE[code])
        got = [bool(op.bind(KEEP)(x, np.array([[1 << k]], np.uint32))[0, 0]) for k in range(10)]
        assert got == [k == wanted for k in range(10)], hex(pattern)
        assert op.bind(KEEP)(x, np.array([[0x3FF]], np.uint32))[0, 0] and not op.bind(KEEP)(x, np.array([[0xFC00]], np.uint32))[0, 0]
