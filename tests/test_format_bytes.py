"""quantize and dequantize against ggml: its bytes, its floats, and how far a weight may be off."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from format_samples import (
    GGUF_PY_DEQUANTIZES,
    GGUF_PY_QUANTIZES,
    PLAIN,
    QUANTIZED,
    SUPER_BLOCKS,
    USE_IMATRIX,
    WEIGHTS,
    assert_same_bits,
    bits_of,
    extreme_imatrix,
    extremes,
    ggml_type,
    needed_imatrix,
    normal,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as arrays_of
from numpy.typing import NDArray

from iq.formats import FORMATS, arrays, dequantize, quantize
from iq.formats.scale_search import make_qkx2_quants, make_qp_quants, nearest_int, sum_in_order

# ggml's own results for a format: q = its bytes of w (made by its function `quantizer`), deq = its floats of q, and so on.
Golden = Callable[[str], dict[str, NDArray[Any]]]

# sha256 of what ggml d99724f (gcc -O3, x86-64) makes of extremes(): without an imatrix, null where it makes nothing, and with
# extreme_imatrix(). iq1_m's bytes depend on the version of ggml, where ways to split a sub-block are equally good: its digests are of the
# ggml in llama-cpp-python 0.3.36, which makes the bytes of the golden data.
EXTREMES = json.loads((Path(__file__).parent / "golden" / "extremes.json").read_text())

# The largest error of a weight over the largest weight of its block, for normal weights: half a step (q4_0 and q5_0: a step, at the end
# that their quants cannot reach), the rounding of d to f16, and for the K-quants that of the scales to 4, 6 or 8 bits. Of three numbers:
# half of d; of two: what is left of the largest weight without the mean. Of codebooks and grids: as measured. For formats that are not
# here: a step, and all that as well.
WORST_ERROR = {"q4_0": 0.1255, "q5_0": 0.063, "q8_0": 0.0045, "q8_1": 0.0045, "q8_k": 0.0045, "q4_k": 0.09, "q6_k": 0.0165}
WORST_ERROR |= {"tq1_0": 0.501, "tq2_0": 0.501, "q2_0": 0.501, "q1_0": 0.81, "iq4_nl": 0.12, "iq4_xs": 0.09, "mxfp4": 0.251, "nvfp4": 0.18}
WORST_ERROR |= {"iq1_s": 0.74, "iq1_m": 1.07, "iq2_xxs": 0.59, "iq2_xs": 0.49, "iq2_s": 0.55, "iq3_xxs": 0.5, "iq3_s": 0.4}

# Formats without and with an imatrix, where ggml makes them so.
CASES = [(name, weighted) for name in QUANTIZED for weighted in (False, True) if weighted or FORMATS[name].imatrix != "required"]

# The bytes and floats of ggml.


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantize_gives_ggmls_bytes(golden: Golden, name: str) -> None:
    data = golden(name)
    required = FORMATS[name].imatrix == "required"
    assert data["quantizer"] in (("chunk+imatrix" if required else "chunk",) if name in WEIGHTS else ("from_float", "from_float_ref"))
    np.testing.assert_array_equal(quantize(data["w"], name, data["imatrix"] if required else None), data["q"])


@pytest.mark.parametrize("name", USE_IMATRIX)
def test_quantize_with_imatrix_gives_ggmls_bytes(golden: Golden, name: str) -> None:
    data = golden(name)
    expected = data["q"] if FORMATS[name].imatrix == "required" else data["q_imatrix"]
    np.testing.assert_array_equal(quantize(data["w"], name, data["imatrix"]), expected)


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in USE_IMATRIX])
def test_an_imatrix_that_ggml_ignores_changes_nothing(golden: Golden, name: str) -> None:
    data = golden("q4_0" if name in PLAIN else name)
    np.testing.assert_array_equal(quantize(data["w"], name, data["imatrix"]), quantize(data["w"], name))
    if name in WEIGHTS:
        np.testing.assert_array_equal(data["q"], data["q_imatrix"])


@pytest.mark.parametrize("name", WEIGHTS)
def test_dequantize_gives_ggmls_floats(golden: Golden, name: str) -> None:
    data = golden(name)
    assert_same_bits(dequantize(data["q"], name), data["deq"])


@pytest.mark.parametrize(("name", "weighted"), CASES)
def test_quantize_gives_ggmls_bytes_at_the_extremes(name: str, weighted: bool) -> None:
    packed = quantize(extremes(), name, extreme_imatrix() if weighted else None)
    assert hashlib.sha256(packed.tobytes()).hexdigest()[:16] == EXTREMES[name][weighted]


@pytest.mark.parametrize(("name", "weighted"), CASES)
def test_bytes_do_not_depend_on_how_the_work_is_divided(name: str, weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = extremes()
    imatrix = extreme_imatrix() if weighted else None
    whole = quantize(weights, name, imatrix)
    monkeypatch.setattr(arrays, "CHUNK", 1)
    np.testing.assert_array_equal(quantize(weights[:20], name, imatrix), whole[:20])
    np.testing.assert_array_equal(dequantize(whole[:20], name), dequantize(whole, name)[:20])


@pytest.mark.parametrize("name", [name for name in SUPER_BLOCKS if name in USE_IMATRIX])
def test_a_block_alone_gives_the_bytes_it_has_in_a_matrix(golden: Golden, name: str) -> None:
    """A single column of a sum is where numpy would leave C's order."""
    data = golden(name)
    size = FORMATS[name].type_size
    whole = quantize(data["w"], name, data["imatrix"])
    for row in range(8, 64):
        np.testing.assert_array_equal(quantize(data["w"][row, :256], name, data["imatrix"][:256]), whole[row, :size])


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


@pytest.mark.parametrize("name", GGUF_PY_DEQUANTIZES)
def test_random_bytes_dequantize_as_gguf_py_does(name: str) -> None:
    """Enough for several chunks, in a shape that does not divide evenly: NaN, infinite and subnormal scales come up."""
    form = FORMATS[name]
    blocks = 3 * arrays.CHUNK // (5 * form.block_size) + 1
    packed = np.random.default_rng(1).integers(0, 256, (5, blocks * form.type_size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        assert_same_bits(dequantize(packed, name), gguf.quants.dequantize(packed, ggml_type(form)))


@settings(deadline=None)
@given(st.sampled_from(GGUF_PY_DEQUANTIZES), st.data())
def test_any_bytes_dequantize_as_gguf_py_does(name: str, data: st.DataObject) -> None:
    form = FORMATS[name]
    blocks = data.draw(st.integers(1, 3))
    packed = np.frombuffer(data.draw(st.binary(min_size=blocks * form.type_size, max_size=blocks * form.type_size)), np.uint8)
    with np.errstate(all="ignore"):
        assert_same_bits(dequantize(packed, name), gguf.quants.dequantize(packed, ggml_type(form)))


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
TIES = st.integers(-32, 32).map(lambda n: n / 2)
SUBNORMAL = st.floats(-(2.0**-126), 2.0**-126, width=32)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(GGUF_PY_QUANTIZES), st.sampled_from([FINITE, TIES, SUBNORMAL, FINITE | TIES | SUBNORMAL]), st.data())
def test_any_floats_quantize_as_in_gguf_py(name: str, values: st.SearchStrategy[float], data: st.DataObject) -> None:
    form = FORMATS[name]
    weights = data.draw(arrays_of(np.float32, max(32, form.block_size), elements=values))
    with np.errstate(all="ignore"):
        # gguf-py takes other zeros than ggml where there are some of both signs: there are no negative ones here.
        weights = weights + np.float32(0) if form.kind == "weights" else weights
        expected = gguf.quants.quantize(weights, ggml_type(form)).view(np.uint8)
    np.testing.assert_array_equal(quantize(weights, name), expected)


@settings(deadline=None)
@given(arrays_of(np.uint32, 8, elements=st.integers(0, 2**32 - 1)))
def test_any_bits_become_bf16_as_in_gguf_py(bits: NDArray[np.uint32]) -> None:
    """NaNs of any payload too."""
    values = bits.view(np.float32)
    np.testing.assert_array_equal(quantize(values, "bf16"), gguf.quants.quantize(values, gguf.GGMLQuantizationType.BF16))


# Accuracy: the criteria of llama.cpp's tests/test-quantize-fns.cpp, which are candle's for the formats that it knows. The error of all
# weights together, and of a dot product, over their number. Formats that cannot be made without an imatrix, and iq1_m, have none.
TOTAL_ERROR = {"q1_0": 0.025, "q2_0": 0.01, "tq1_0": 0.01, "tq2_0": 0.01, "q2_k": 0.0075, "iq2_s": 0.0075}
TOTAL_ERROR |= {"q3_k": 0.004, "iq3_s": 0.004, "iq3_xxs": 0.005, "nvfp4": 0.003}
DOT_ERROR = {
    "q1_0": 0.4,
    "q2_0": 0.15,
    "tq1_0": 0.15,
    "tq2_0": 0.15,
    "q2_k": 0.04,
    "iq2_s": 0.04,
    "iq3_s": 0.04,
    "iq3_xxs": 0.04,
    "nvfp4": 0.03,
}
HAVE_CRITERIA = [name for name, form in FORMATS.items() if form.imatrix != "required" and name != "iq1_m"]


def cosine(offset: float) -> NDArray[np.float32]:
    return np.asarray(0.1 + 2 * np.cos(np.arange(4096) + offset), np.float32)


@pytest.mark.parametrize("name", HAVE_CRITERIA)
def test_round_trip_is_as_near_as_llama_cpps(name: str) -> None:
    v = cosine(0)
    restored = dequantize(quantize(v, name), name)
    assert np.sqrt(np.sum(np.square(restored - v, dtype=np.float64))) / v.size < TOTAL_ERROR.get(name, 0.002)


@pytest.mark.parametrize("name", HAVE_CRITERIA)
def test_dot_is_as_near_as_llama_cpps(name: str) -> None:
    a, b = cosine(0), cosine(1)
    # Both sides quantized; K-quants meet q8_1 here, as on a GPU.
    dot = dequantize(quantize(a, name), name) @ dequantize(quantize(b, "q8_1"), "q8_1")
    assert abs(dot - a.astype(np.float64) @ b.astype(np.float64)) / a.size < DOT_ERROR.get(name, 0.02)


@pytest.mark.parametrize("name", QUANTIZED)
def test_no_weight_is_far_off(name: str) -> None:
    form = FORMATS[name]
    weights = normal((64, 1024))
    restored = dequantize(quantize(weights, name, needed_imatrix(form, 1024)), name)
    error = np.abs(restored - weights).reshape(-1, form.block_size).max(axis=1)
    largest = np.abs(weights).reshape(-1, form.block_size).max(axis=1)
    assert (error / largest).max() <= (WORST_ERROR[name] if name in WORST_ERROR else 2 / (2 ** bits_of(form) - 1))


@pytest.mark.parametrize("name", USE_IMATRIX)
def test_an_imatrix_lowers_the_error_it_weighs(name: str) -> None:
    weights = normal((64, 1024))
    imatrix = np.square(normal((1024,), 1)) + np.float32(0.01)

    def weighed(packed: NDArray[np.uint8]) -> float:
        return float(np.sum(imatrix * np.square(dequantize(packed, name) - weights)))

    assert weighed(quantize(weights, name, imatrix)) < 0.85 * weighed(quantize(weights, name, needed_imatrix(FORMATS[name], 1024)))
