"""What formats declare, against the bytes and ggml's table; their names; and which arrays quantize and dequantize take."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest
from format_samples import (
    DIRECT,
    QUANTIZED,
    bits_of,
    block_of,
    extreme_imatrix,
    extremes,
    filled,
    ggml_type,
    needed_imatrix,
    normal,
    quant_bytes,
    reach,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from iq.errors import DtypeError, FormatError, ShapeError
from iq.formats import FORMATS, Format, dequantize, format_of, quantize
from iq.gguf.types import TYPES

# Sizes and names.


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_names_ids_and_sizes_are_ggmls(form: type[Format]) -> None:
    """gguf-py's table, but for q8_1: 36 bytes in ggml's C, 40 in the table. What it does not have yet is held to iq.gguf's own table."""
    type = ggml_type(form)
    name, *expected = TYPES[form.type]
    assert (form.name, form.block_size, form.type_size) == (name, *expected)
    assert type is None or (type.name.lower(), *gguf.GGML_QUANT_SIZES[type]) in ((name, *expected), ("q8_1", 32, 40))
    assert (form.kernel_block_weights(), form.kernel_block_bytes()) == (
        max(expected[0], 8),
        expected[1] * max(expected[0], 8) // expected[0],
    )
    assert form.row_bytes(3 * form.block_size) == 3 * form.type_size
    if form.kind == "weights":
        assert form.sub_block in (16, 32)
        assert form.block_size % form.sub_block == form.block_size % form.interleave == 0


def test_every_format_is_registered_once_under_its_name() -> None:
    assert [form.name for form in FORMATS.values()] == list(FORMATS)
    assert len({form.type for form in FORMATS.values()}) == len(FORMATS)


@pytest.mark.parametrize("form", [FORMATS[name] for name in DIRECT], ids=DIRECT)
def test_zero_signed_and_mins_describe_the_bytes(form: type[Format]) -> None:
    low, high = filled(form, 0, 1, 0), filled(form, 0xFF, 1, 0)  # every scale is positive, every min 0
    top = -1 if form.signed else 2 ** bits_of(form) - 1
    np.testing.assert_array_equal(low * (top - form.zero), high * -form.zero)
    assert ((high < low) if form.signed else (high > low)).all()
    with_min = filled(form, 0, 1, 1)
    assert (with_min < low).all() if form.mins else (with_min == low).all()


@pytest.mark.parametrize("form", [FORMATS[name] for name in DIRECT], ids=DIRECT)
def test_f16_fields_are_the_factors_of_a_block(form: type[Format]) -> None:
    assert not any(quant_bytes(form)[at : at + 2].any() for at in form.f16_fields)
    np.testing.assert_array_equal(filled(form, 0xFF, 2, 2), 2 * filled(form, 0xFF, 1, 1))
    assert (filled(form, 0xFF, 0, 0) == 0).all()


@pytest.mark.parametrize("form", [FORMATS[name] for name in DIRECT], ids=DIRECT)
def test_weights_of_a_sub_block_share_scale_and_min(form: type[Format]) -> None:
    packed = np.random.default_rng(2).integers(0, 256, (8, form.type_size), dtype=np.uint8)
    for row in packed:
        for at in form.f16_fields:
            row[at : at + 2] = np.array([1], np.float16).view(np.uint8)
    packed[:, quant_bytes(form)] = 0xFF
    sub_blocks = dequantize(packed, form.name).reshape(-1, form.sub_block)
    assert (sub_blocks == sub_blocks[:, :1]).all()
    if form.f16_fields and form.type_size > 2 * len(form.f16_fields) + np.count_nonzero(quant_bytes(form)):  # sub-blocks have scales
        assert len(np.unique(sub_blocks[:, 0])) > 2 * len(packed)


@pytest.mark.parametrize("form", [FORMATS[name] for name in DIRECT], ids=DIRECT)
def test_interleave_is_the_length_of_runs_that_share_bytes(form: type[Format]) -> None:
    """From quants of 0, a byte of ones changes the quants whose lowest bit it holds by an odd number."""
    block = block_of(form, 1, 1)
    block[quant_bytes(form)] = 0
    step = np.abs(filled(form, 0xFF, 1, 0) - filled(form, 0, 1, 0)) / (1 if form.signed else 2 ** bits_of(form) - 1)
    with np.errstate(all="ignore"):
        change = np.rint(reach(form, block)[quant_bytes(form)] / step).astype(int)
    lowest = change % 2 == 1
    runs = lowest.reshape(len(lowest), -1, form.interleave).any(axis=2)
    assert (runs.sum(axis=1) <= 1).all()
    if form.interleave > 1:
        halves = lowest.reshape(len(lowest), -1, form.interleave // 2).any(axis=2)
        assert (halves.sum(axis=1) > 1).any()


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        *[(spelling, name) for name in FORMATS for spelling in (name, name.upper(), ggml_type(FORMATS[name])) if spelling],
        ("q4k", "q4_k"),
        ("Q6K", "q6_k"),
        ("q6_K", "q6_k"),
    ],
)
def test_aliases(alias: str | gguf.GGMLQuantizationType, name: str) -> None:
    assert format_of(alias) is FORMATS[name]


@pytest.mark.parametrize("name", ["q40", "q4", "", "q4_k_m", " q4_k", gguf.GGMLQuantizationType.I8, 12, None, b"q4_k"])
def test_unknown_formats_are_refused_with_the_known(name: Any) -> None:
    for call in (lambda: format_of(name), lambda: quantize(np.zeros(256), name), lambda: dequantize(np.zeros(256, np.uint8), name)):
        with pytest.raises(FormatError, match=f"unknown format .* known are {', '.join(FORMATS)}"):
            call()


# Shapes, dtypes and refusals.


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(sorted(FORMATS)), st.lists(st.integers(0, 3), max_size=3), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_shapes(name: str, leading: list[int], blocks: int, seed: int) -> None:
    form = FORMATS[name]
    weights = normal((*leading, blocks * form.block_size), seed)
    packed = quantize(weights, name, needed_imatrix(form, weights.shape[-1]))
    assert packed.dtype == np.uint8
    assert packed.shape == (*leading, blocks * form.type_size)
    restored = dequantize(packed, name)
    assert restored.dtype == np.float32
    assert restored.shape == weights.shape
    # Blocks are independent, and in order.
    flat, one = packed.reshape(-1, form.type_size), weights.reshape(-1, form.block_size)
    for i in range(0, len(one), 5):
        np.testing.assert_array_equal(quantize(one[i], name, needed_imatrix(form, form.block_size)), flat[i])


@pytest.mark.parametrize("name", FORMATS)
def test_layout_and_dtype_do_not_matter(name: str) -> None:
    weights = normal((6, 512)).astype(np.float16)
    needed = needed_imatrix(FORMATS[name], 512)
    expected = quantize(weights.astype(np.float32), name, needed)
    imatrix = np.linspace(1, 2, 512)
    for same in (
        weights,
        weights.astype(np.float64),
        weights.astype(">f4"),
        np.asfortranarray(weights),
        np.repeat(weights, 2, axis=1)[:, ::2],
    ):
        np.testing.assert_array_equal(quantize(same, name, needed), expected)
    np.testing.assert_array_equal(quantize(weights, name, imatrix), quantize(weights, name, imatrix.astype(np.float32)))
    np.testing.assert_array_equal(dequantize(np.repeat(expected, 2, axis=1)[:, ::2], name), dequantize(expected, name))


def test_float64_is_rounded_once() -> None:
    np.testing.assert_array_equal(quantize(np.array([1 + 2**-30, 1e-50]), "f32").view(np.float32), np.array([1, 0], np.float32))


@settings(deadline=None)
@given(st.sampled_from(QUANTIZED), st.integers(1, 2000))
def test_rows_that_are_no_multiple_of_the_block_are_refused(name: str, k: int) -> None:
    form = FORMATS[name]
    if k % form.block_size:
        for call in (lambda: quantize(np.zeros((2, k)), name), lambda: form.row_bytes(k)):
            with pytest.raises(ShapeError, match=rf"blocks of {form.block_size} weights; a row of {k} "):
                call()
    if k % form.type_size:
        with pytest.raises(ShapeError, match=rf"blocks of {form.type_size} bytes; shape \(2, {k}\)"):
            dequantize(np.zeros((2, k), np.uint8), name)


@pytest.mark.parametrize("name", FORMATS)
def test_0d_arrays_are_refused(name: str) -> None:
    with pytest.raises(ShapeError, match="0-d"):
        quantize(np.float32(1), name)
    with pytest.raises(ShapeError, match=r"shape \(\)"):
        dequantize(np.uint8(1), name)


def test_negative_rows_are_refused() -> None:
    with pytest.raises(ShapeError):
        FORMATS["q4_0"].row_bytes(-32)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, np.bool_, np.complex64, np.object_, np.longdouble, "S4"])
@pytest.mark.parametrize("name", ["f32", "q4_k"])
def test_other_dtypes_are_refused(name: str, dtype: Any) -> None:
    with pytest.raises(DtypeError, match="float32, float16 or float64, not"):
        quantize(np.zeros(256, dtype), name)
    with pytest.raises(DtypeError, match="imatrix must be"):
        quantize(np.zeros(256), name, np.zeros(256, dtype))
    if dtype is not np.uint8:
        with pytest.raises(DtypeError, match="uint8"):
            dequantize(np.zeros(FORMATS[name].type_size, dtype), name)


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_with_count_and_place(name: str, value: float) -> None:
    weights = normal((2, 3, 512))
    weights[1, 0, 300] = weights[1, 2, 5] = value
    with pytest.raises(FormatError, match=rf"{name} .*: 2 of the 3072 values of the array are; the first is \[1, 0, 300\] = {value}"):
        quantize(weights, name)


@pytest.mark.parametrize("name", QUANTIZED)
def test_float64_beyond_float32_is_refused(name: str) -> None:
    with pytest.raises(FormatError, match=r"as float32.*: 1 of .* \[7\] = -inf"):
        quantize(np.where(np.arange(256) == 7, -1e39, 1.0), name)


@pytest.mark.parametrize("name", FORMATS)
def test_an_imatrix_that_does_not_fit_is_refused(name: str) -> None:
    for shape in ((511,), (2, 512), (1, 512), (), (0,)):
        with pytest.raises(ShapeError, match=r"need \(512,\)"):
            quantize(np.zeros((2, 512)), name, np.ones(shape))
    with pytest.raises(FormatError, match="1 of the 512 values of the imatrix"):
        quantize(np.zeros((2, 512)), name, np.where(np.arange(512) == 3, np.nan, 1.0))


@pytest.mark.parametrize("name", FORMATS)
def test_no_rows_are_fine(name: str) -> None:
    form = FORMATS[name]
    packed = quantize(np.zeros((3, 0, 256), np.float32), name, np.ones(256))
    assert packed.shape == (3, 0, form.row_bytes(256))
    assert dequantize(packed, name).shape == (3, 0, 256)
    assert quantize(np.zeros((2, 0), np.float32), name, np.ones(0)).shape == (2, 0)
    assert dequantize(np.zeros(0, np.uint8), name).shape == (0,)


def test_nothing_warns() -> None:
    """The reference divides by zero on purpose in lanes it discards."""
    weights, imatrix = extremes(), extreme_imatrix()
    with np.errstate(all="raise"):
        for name in FORMATS:
            dequantize(quantize(weights, name, imatrix), name)
