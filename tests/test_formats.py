"""The formats against ggml: its bytes, its floats, its sizes; and the refusals."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from iq import formats
from iq.errors import DtypeError, FormatError, ShapeError
from iq.formats import FORMATS, Format, dequantize, format_of, quantize
from iq.quant_search import make_qkx2_quants, make_qp_quants, nearest_int, sum_in_order

# ggml's own results for a format: q = its bytes of w (made by its function `quantizer`), deq = its floats of q, and so on.
Golden = Callable[[str], dict[str, NDArray[Any]]]

QUANTIZED = [name for name, form in FORMATS.items() if form.block_size > 1]
PLAIN = [name for name in FORMATS if name not in QUANTIZED]

# sha256 of what ggml d99724f (gcc -O3, x86-64) makes of extremes(): without an imatrix, and with extreme_imatrix().
EXTREMES = {
    "q4_0": ("3fd686d9d44c5640", "35adbdc03339032b"),
    "q8_0": ("fe4c00fe906747e7", "fe4c00fe906747e7"),
    "q8_1": ("d72d068e6de20544", "d72d068e6de20544"),
    "q4_k": ("491ca2a3a10bd138", "2f89f3398148033d"),
    "q6_k": ("26518f0b461facc8", "190d0b340cd9e9c6"),
}

# The largest error of a weight over the largest weight of its block, for normal weights: half a step (q4_0: a step, at the end that its 8
# cannot reach), the rounding of d to f16, and for the K-quants that of the scales to 6 or 8 bits.
WORST_ERROR = {"q4_0": 0.1255, "q8_0": 0.0045, "q8_1": 0.0045, "q4_k": 0.09, "q6_k": 0.0165}


def normal(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def assert_same_bits(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """Every float32 has the same bits; NaNs need only both be NaN."""
    assert actual.dtype == expected.dtype == np.float32
    assert actual.shape == expected.shape
    same = (actual.view(np.uint32) == expected.view(np.uint32)) | (np.isnan(actual) & np.isnan(expected))
    assert same.all(), f"{np.count_nonzero(~same)} differ, first at {np.argwhere(~same)[0]}"


def extremes() -> NDArray[np.float32]:
    """Rows of 1024 at the edges of float32 and of ggml's searches, made of integers and powers of two: the same everywhere."""
    draw = np.random.RandomState(7)  # its stream is frozen
    whole = draw.randint(-(2**20), 2**20, (8, 1024)).astype(np.float32)
    spans = np.repeat(draw.randint(-70, 0, (8, 32)), 32, axis=1)
    rows = [
        np.ldexp(whole, spans),  # spans of very different sizes: scales round to 0
        np.ldexp(whole, spans // 4 - 20),  # f16 scales underflow
        np.ldexp(whole, np.arange(8)[:, None] + 1),  # f16 scales overflow
        np.ldexp(whole, -77),  # less than counts as zero
        np.ldexp(whole, -160),  # subnormal
        -1000 + np.ldexp(whole, draw.randint(-40, -20, (8, 1))),  # nearly constant: the range almost vanishes
        1000 + np.ldexp(whole, draw.randint(-40, -20, (8, 1))),
        np.round(whole / 2**17),  # ties
        (whole.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32),  # bfloat16: quotients near ties (gguf-py before 0.18 errs)
        np.where(whole > 2**19, whole, -0.0),  # sparse, negative zeros
        np.full((1, 1024), -0.0),
        np.repeat(whole[:, ::32], 32, axis=1),  # constant spans
    ]
    return np.concatenate(rows).astype(np.float32)


def extreme_imatrix() -> NDArray[np.float32]:
    """Importances from 0 to 2^40; a block in which nothing matters."""
    draw = np.random.RandomState(34)  # a seed with which the last round of make_qp_quants still changes something
    imatrix = np.ldexp(draw.randint(0, 4, 1024), draw.randint(-40, 40, 1024)).astype(np.float32)
    imatrix[256:512] = 0
    return imatrix


# The bytes and floats of ggml.


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantize_gives_ggmls_bytes(golden: Golden, name: str) -> None:
    data = golden(name)
    assert data["quantizer"] == ("from_float_ref" if name == "q8_1" else "chunk")
    packed = quantize(data["w"], name)
    np.testing.assert_array_equal(packed, data["q"])
    np.testing.assert_array_equal(packed, data["q_ref"])


@pytest.mark.parametrize("name", [name for name in QUANTIZED if name != "q8_1"])
def test_quantize_with_imatrix_gives_ggmls_bytes(golden: Golden, name: str) -> None:
    data = golden(name)
    np.testing.assert_array_equal(quantize(data["w"], name, data["imatrix"]), data["q_imatrix"])


@pytest.mark.parametrize("name", [name for name in QUANTIZED if name != "q8_1"])
def test_dequantize_gives_ggmls_floats(golden: Golden, name: str) -> None:
    data = golden(name)
    assert_same_bits(dequantize(data["q"], name), data["deq"])


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("weighted", [False, True])
def test_quantize_gives_ggmls_bytes_at_the_extremes(name: str, weighted: bool) -> None:
    packed = quantize(extremes(), name, extreme_imatrix() if weighted else None)
    assert hashlib.sha256(packed.tobytes()).hexdigest()[:16] == EXTREMES[name][weighted]


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("weighted", [False, True])
def test_bytes_do_not_depend_on_how_the_work_is_divided(name: str, weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = extremes()
    imatrix = extreme_imatrix() if weighted else None
    whole = quantize(weights, name, imatrix)
    monkeypatch.setattr(formats, "CHUNK", 1)
    np.testing.assert_array_equal(quantize(weights[:20], name, imatrix), whole[:20])
    np.testing.assert_array_equal(dequantize(whole[:20], name), dequantize(whole, name)[:20])


@pytest.mark.parametrize("name", ["q4_k", "q6_k"])
def test_a_block_alone_gives_the_bytes_it_has_in_a_matrix(golden: Golden, name: str) -> None:
    """A single column of a sum is where numpy would leave C's order."""
    data = golden(name)
    size = FORMATS[name].type_size
    for row in range(8, 64):
        np.testing.assert_array_equal(quantize(data["w"][row, :256], name, data["imatrix"][:256]), data["q_imatrix"][row, :size])


@pytest.mark.parametrize("groups", [1, 2, 3, 17])
@pytest.mark.parametrize("members", [8, 32, 256])
def test_sum_in_order_adds_one_by_one(groups: int, members: int) -> None:
    for seed in range(20):
        terms = normal((members, groups), seed)
        total = np.zeros(groups, np.float32)
        for row in terms:
            total = total + row
        np.testing.assert_array_equal(sum_in_order(terms), total)


def test_nearest_int_is_ggmls() -> None:
    values = np.array([0.5, 1.5, -0.5, -2.5, 4194303, 8388608, np.inf, -np.inf, np.nan], np.float32)
    assert nearest_int(values).tolist() == [0, 2, 0, -2, 4194303, -4194304 + 2097152, -4194304, -4194304, 0]


def test_values_below_the_threshold_count_as_zero() -> None:
    with np.errstate(all="ignore"):
        scale, quants = make_qp_quants(np.full((8, 1), 1e-16, np.float32), 63, np.ones((8, 1), np.float32))
    assert scale.tolist() == [0]
    assert not quants.any()


def test_a_negative_scale_wraps_as_in_ggml() -> None:
    """The scales and weights of a block that ggml quantized to these 6-bit scales; nearest_int gave -26 for the sixth."""
    scales = [0.17792009, 0.11971941, 0.15429074, 0.16111304, 0.17235406, -0.073478974, 0.11723954, 0.09583333]
    weights = [1157717000.0, 1527963.9, 19629654000.0, 12493485000.0, 14940744.0, 11921441000000.0, 829640260.0, 262968640000.0]
    with np.errstate(all="ignore"):
        scale, quants = make_qp_quants(np.array(scales, np.float32)[:, None], 63, np.array(weights, np.float32)[:, None])
    assert quants[:, 0].tolist() == [63, 42, 55, 57, 61, 256 - 26, 41, 34]
    assert scale.astype(np.float16).tobytes() == bytes([201, 25])


def test_search_follows_a_range_that_vanishes() -> None:
    """The best offset may reach the group's top, and then 1 / range is infinite: no warning, quants within 0 .. 15."""
    x = np.full((32, 2), -1000, np.float32)
    x[0] = np.nextafter(np.float32(-1000), np.float32(0))
    with np.errstate(all="ignore"):
        scale, offset, quants = make_qkx2_quants(x, np.abs(x), 15, -1.0, 0.1, 20)
    assert np.isfinite(scale).all()
    assert np.isfinite(offset).all()
    assert quants.min() >= 0
    assert quants.max() <= 15


def test_q8_1_block_by_hand() -> None:
    weights = normal((40, 64))
    packed = quantize(weights, "q8_1").reshape(-1, 36)
    restored = dequantize(packed, "q8_1")
    for block, row, weight in zip(packed, restored, weights.reshape(-1, 32), strict=True):
        d, s, *quants = struct.unpack("<ee32b", block.tobytes())
        exact = np.abs(weight).max() / np.float32(127)
        assert d == np.float16(exact)
        assert s == np.float16(np.float32(sum(quants)) * exact)
        np.testing.assert_array_equal(row, np.float32(d) * np.array(quants, np.float32))


def test_plain_formats_by_hand() -> None:
    values = np.array([1, -2, 0.1, 65504, -0.0, 1 + 2**-8, 1 + 3 * 2**-8, 2**-24], np.float32)
    assert quantize(values, "f32").tobytes() == struct.pack("<8f", *values)
    assert quantize(values, "f16").tobytes() == struct.pack("<8e", *values)
    # Ties go to the even mantissa: 1 + 2^-8 down, 1 + 3 * 2^-8 up.
    assert quantize(values, "bf16").view("<u2").tolist() == [0x3F80, 0xC000, 0x3DCD, 0x4780, 0x8000, 0x3F80, 0x3F82, 0x3380]
    assert dequantize(np.array([0x80, 0x3F, 0x80, 0xFF, 0x01, 0x00], np.uint8), "bf16").tolist() == [1.0, -np.inf, 2.0**-133]


@pytest.mark.parametrize("name", PLAIN)
def test_plain_formats_hold_what_is_not_finite(name: str) -> None:
    restored = dequantize(quantize(np.array([np.nan, np.inf, -np.inf], np.float32), name), name)
    np.testing.assert_array_equal(restored, [np.nan, np.inf, -np.inf])


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "q8_1"])
def test_random_bytes_dequantize_as_gguf_py_does(name: str) -> None:
    """Enough for several chunks, in a shape that does not divide evenly: NaN, infinite and subnormal scales come up."""
    form = FORMATS[name]
    blocks = 3 * formats.CHUNK // (5 * form.block_size) + 1
    packed = np.random.default_rng(1).integers(0, 256, (5, blocks * form.type_size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        assert_same_bits(dequantize(packed, name), gguf.quants.dequantize(packed, form.type))


# Sizes and names.


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_sizes_are_ggufs(form: type[Format]) -> None:
    expected = (32, 36) if form.name == "q8_1" else gguf.GGML_QUANT_SIZES[form.type]
    assert (form.block_size, form.type_size) == expected
    assert (form.kernel_block_weights(), form.kernel_block_bytes()) == (expected[0] * form.group, expected[1] * form.group)
    assert form.row_bytes(3 * form.block_size) == 3 * form.type_size
    assert form.kernel_block_weights() % form.unit == form.unit % form.span == 0


def test_the_formats_are_these() -> None:
    assert list(FORMATS) == ["f32", "f16", "bf16", "q4_0", "q8_0", "q8_1", "q4_k", "q6_k"]


# Per format: where its quants lie, how many bits they have, the bytes that make every scale 1 and every min 0, where the first min lies.
ONE = (0x00, 0x3C)  # float16 1
LAYOUT: dict[str, tuple[slice, int, list[tuple[slice, Any]], int | None]] = {
    "q4_0": (slice(2, 18), 4, [(slice(0, 2), ONE)], None),
    "q8_0": (slice(2, 34), 8, [(slice(0, 2), ONE)], None),
    "q8_1": (slice(4, 36), 8, [(slice(0, 2), ONE)], None),
    "q4_k": (slice(16, 144), 4, [(slice(0, 2), ONE), (slice(2, 4), ONE), (slice(4, 8), 1), (slice(12, 16), 1)], 8),
    "q6_k": (slice(0, 192), 6, [(slice(192, 208), 1), (slice(208, 210), ONE)], None),
}


@pytest.mark.parametrize("name", QUANTIZED)
def test_zero_signed_mins_and_span_describe_the_bytes(name: str) -> None:
    form = FORMATS[name]
    quants, bits, scales, first_min = LAYOUT[name]
    block = np.zeros((1, form.type_size), np.uint8)
    for place, value in scales:
        block[:, place] = value
    assert (dequantize(block, name) == -form.zero).all()
    block[:, quants] = 0xFF
    assert (dequantize(block, name) == (-1 if form.signed else 2**bits - 1 - form.zero)).all()
    assert form.mins == (first_min is not None)
    if first_min is not None:
        block[:, first_min] = 5
        restored = dequantize(block, name)[0]
        assert (restored[: form.span] == 2**bits - 1 - 5).all()
        assert (restored[form.span :] == 2**bits - 1).all()


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        *[(spelling, name) for name in FORMATS for spelling in (name, name.upper(), FORMATS[name].type)],
        ("q4k", "q4_k"),
        ("Q6K", "q6_k"),
        ("q6_K", "q6_k"),
    ],
)
def test_aliases(alias: str | gguf.GGMLQuantizationType, name: str) -> None:
    assert format_of(alias) is FORMATS[name]


@pytest.mark.parametrize("name", ["q40", "q4", "", "q4_k_m", " q4_k", gguf.GGMLQuantizationType.IQ1_S, 12, None, b"q4_k"])
def test_unknown_formats_are_refused_with_the_known(name: Any) -> None:
    for call in (lambda: format_of(name), lambda: quantize(np.zeros(256), name), lambda: dequantize(np.zeros(256, np.uint8), name)):
        with pytest.raises(FormatError, match=r"unknown format .* known are f32, f16, .*q4_k, q6_k"):
            call()


# Accuracy: candle's criteria, which are llama.cpp's test-quantize-fns.


def cosine(offset: float) -> NDArray[np.float32]:
    return np.asarray(0.1 + 2 * np.cos(np.arange(4096) + offset), np.float32)


@pytest.mark.parametrize("name", FORMATS)
def test_candle_round_trip(name: str) -> None:
    v = cosine(0)
    restored = dequantize(quantize(v, name), name)
    assert np.sqrt(np.sum(np.square(restored - v, dtype=np.float64))) / v.size <= 0.002


@pytest.mark.parametrize("name", FORMATS)
def test_candle_dot(name: str) -> None:
    a, b = cosine(0), cosine(1)
    # Both sides quantized, as in candle; K-quants meet q8_1 here, as on a GPU.
    dot = dequantize(quantize(a, name), name) @ dequantize(quantize(b, "q8_1"), "q8_1")
    assert abs(dot - a.astype(np.float64) @ b.astype(np.float64)) / a.size <= 0.02


@pytest.mark.parametrize("name", QUANTIZED)
def test_no_weight_is_far_off(name: str) -> None:
    weights = normal((64, 1024))
    block = FORMATS[name].block_size
    error = np.abs(dequantize(quantize(weights, name), name) - weights).reshape(-1, block).max(axis=1)
    assert (error / np.abs(weights).reshape(-1, block).max(axis=1)).max() <= WORST_ERROR[name]


@pytest.mark.parametrize("name", ["q4_0", "q4_k", "q6_k"])
def test_an_imatrix_lowers_the_error_it_weighs(name: str) -> None:
    weights = normal((64, 1024))
    imatrix = np.square(normal((1024,), 1)) + np.float32(0.01)

    def weighed(packed: NDArray[np.uint8]) -> float:
        return float(np.sum(imatrix * np.square(dequantize(packed, name) - weights)))

    assert weighed(quantize(weights, name, imatrix)) < 0.85 * weighed(quantize(weights, name))


# Shapes, dtypes and refusals.


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(sorted(FORMATS)), st.lists(st.integers(0, 3), max_size=3), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_shapes(name: str, leading: list[int], blocks: int, seed: int) -> None:
    form = FORMATS[name]
    weights = normal((*leading, blocks * form.block_size), seed)
    packed = quantize(weights, name)
    assert packed.dtype == np.uint8
    assert packed.shape == (*leading, blocks * form.type_size)
    restored = dequantize(packed, name)
    assert restored.dtype == np.float32
    assert restored.shape == weights.shape
    # Blocks are independent, and in order.
    flat, one = packed.reshape(-1, form.type_size), weights.reshape(-1, form.block_size)
    for i in range(0, len(one), 5):
        np.testing.assert_array_equal(quantize(one[i], name), flat[i])


@pytest.mark.parametrize("name", FORMATS)
def test_layout_and_dtype_do_not_matter(name: str) -> None:
    weights = normal((6, 512)).astype(np.float16)
    expected = quantize(weights.astype(np.float32), name)
    imatrix = np.linspace(1, 2, 512)
    for same in (
        weights,
        weights.astype(np.float64),
        weights.astype(">f4"),
        np.asfortranarray(weights),
        np.repeat(weights, 2, axis=1)[:, ::2],
    ):
        np.testing.assert_array_equal(quantize(same, name), expected)
    np.testing.assert_array_equal(quantize(weights, name, imatrix), quantize(weights, name, imatrix.astype(np.float32)))
    np.testing.assert_array_equal(dequantize(np.repeat(expected, 2, axis=1)[:, ::2], name), dequantize(expected, name))


def test_float64_is_rounded_once() -> None:
    np.testing.assert_array_equal(quantize(np.array([1 + 2**-30, 1e-50]), "f32").view(np.float32), np.array([1, 0], np.float32))


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
