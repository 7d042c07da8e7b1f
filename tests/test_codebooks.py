"""Formats with codebooks where random weights and random bytes do not get: ties, scales at their limits, denormal scales on a device."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

import iq
from iq.formats import FORMATS, dequantize, quantize
from iq.formats.codebook import IQ4_NL, MXFP4, NVFP4, best_index_int8
from iq.verify.references import different_bits, rounded

CODEBOOKS = [form for form in FORMATS.values() if form.codebook]


def in_c(x: np.float32) -> int:
    """ggml's best_index_int8, line by line."""
    values = [np.float32(v) for v in IQ4_NL.codebook]
    if x <= values[0]:
        return 0
    if x >= values[15]:
        return 15
    low, high = 0, 15
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if x < values[middle] else (middle, high)
    return high - 1 if x - values[high - 1] < values[high] - x else high


@pytest.mark.parametrize("form", CODEBOOKS, ids=lambda form: form.name)
def test_codebooks_are_gguf_pys(form: type[iq.formats.Format]) -> None:
    theirs = gguf.quants._type_traits[gguf.GGMLQuantizationType(form.type)]
    assert form.codebook == tuple(getattr(theirs, "kvalues", gguf.quants.IQ4_NL.kvalues))
    assert (form.signed, form.zero, form.mins) == (True, 0, False)


def test_what_lies_between_two_values_goes_where_ggml_puts_it() -> None:
    """Every value and every middle between two of them, their neighbours among the floats, and what is beyond the last ones."""
    values = np.array(IQ4_NL.codebook, np.float32)
    edges = np.concatenate([values, (values[1:] + values[:-1]) / 2, np.float32([-128, -127.5, 127, 127.5, 1e9, 0, -0.0])])
    x = np.concatenate([edges, np.nextafter(edges, np.float32(np.inf)), np.nextafter(edges, np.float32(-np.inf))])
    x = np.append(x, np.float32([np.inf, -np.inf, np.nan]))
    with np.errstate(all="ignore"):
        assert best_index_int8(x).tolist() == [in_c(value) for value in x]


@pytest.mark.parametrize(
    ("top", "e"),
    [
        (1.0, 125),
        (1.9999999, 125),
        (1023.9997, 135),  # log2f rounds to 10
        (1023.9995, 134),
        (2.0**-125, 0),
        (2.0**-126, 255),  # below, the exponent wraps, as in ggml on x86-64
        (2.0**-149, 232),
        (3e38, 252),
        (0.0, 0),
    ],
)
def test_exponents_of_mxfp4(top: float, e: int) -> None:
    block = np.zeros(32, np.float32)
    block[5] = -top
    assert quantize(block, "mxfp4")[0] == e


def test_nvfp4_beyond_its_largest_scale() -> None:
    """Where a weight is so large that its errors with all values are the same float, ggml takes the first, 0."""
    for top, nibble in ((448 * 6.0, 7), (1e5, 7), (1e30, 0)):
        packed = quantize(np.full(64, -top, np.float32), "nvfp4")
        assert packed[:4].tolist() == [0x7E] * 4
        assert packed[4] == (nibble + 8 if nibble else 0) * 17


def test_ue4m3_is_every_number_of_its_byte() -> None:
    """Through the scale of nvfp4: quants of 1 are half of it."""
    packed = np.zeros((64, 36), np.uint8)
    packed[:, :4] = np.arange(256, dtype=np.uint8).reshape(64, 4)
    packed[:, 4:] = 0x11
    halves = dequantize(packed, "nvfp4").reshape(256, 16)[:, 0]
    exponent, mantissa = np.arange(256) >> 3 & 15, np.arange(256) & 7
    want = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0)) / 2
    want[0x7F] = 0
    np.testing.assert_array_equal(halves, want)


def test_scales_that_are_set_are_those_of_the_blocks() -> None:
    scales, none = np.float32([0.01, -0.01, 3, 2.0**-6]), np.zeros(4, np.float32)
    packed = np.full((4, 17), 0x11, np.uint8)
    MXFP4.set_scales(packed, scales, none)
    np.testing.assert_array_equal(dequantize(packed, "mxfp4")[:, 0], [2.0**-7, 2.0**-7, 4, 2.0**-6])
    packed = np.full((4, 36), 0x11, np.uint8)
    NVFP4.set_scales(packed, scales, none)
    np.testing.assert_allclose(dequantize(packed, "nvfp4")[:, 0], np.abs(scales), rtol=1 / 16)


def test_ggml_refuses_an_exponent_of_255() -> None:
    packed = np.zeros((3, 17), np.uint8)
    packed[1, 0], packed[2, 0] = 255, 254
    assert MXFP4.finite(packed).tolist() == [True, False, True]


def denormal_weights() -> NDArray[np.uint8]:
    """Every value of mxfp4 with the smallest and largest exponents, uint8 [8, 17]."""
    packed = np.empty((8, 17), np.uint8)
    packed[:, 0] = [0, 1, 2, 3, 252, 253, 254, 255]
    packed[:, 1:] = np.arange(16) * 16 + np.arange(16)[::-1]
    return packed


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_denormal_scales_dequantize_as_in_ggml(device: iq.Device, dtype: str) -> None:
    packed = denormal_weights()
    w = iq.QTensor.from_bytes(packed, "mxfp4", shape=(8, 32), device=device)
    want = dequantize(packed, "mxfp4")
    assert (np.abs(want[:2]) < 2.0**-126).sum() > (want[:2] == 0).sum() > 0
    assert different_bits(w.dequantize(dtype).numpy(), rounded(want, dtype)) == 0


@pytest.mark.parametrize("m", [1, 3, 12])
def test_products_of_denormal_scales(device: iq.Device, m: int) -> None:
    """On a CPU they count for nothing beside others, and a weight that has no others is 0 (see MXFP4)."""
    packed = denormal_weights()[:4]
    w = iq.QTensor.from_bytes(packed, "mxfp4", shape=(4, 32), device=device)
    x = np.full((m, 32), 1e38, np.float32) * np.sign(dequantize(packed[:1], "mxfp4"))
    want = x.astype(np.float64) @ dequantize(packed, "mxfp4").astype(np.float64).T
    got = w.matmul(x, via="q8_1").numpy()
    if device.target.family == "cpu":
        assert (got[:, :2] == 0).all()
        got, want = got[:, 2:], want[:, 2:]
    np.testing.assert_allclose(got, want, rtol=1e-5)
