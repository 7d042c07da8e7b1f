"""Every kernel against numpy: dequantize and get_rows bit for bit, products against float64 and against a model of the same arithmetic.

Runs on the CPU targets this machine can run; IQ_TEST_DEVICE=cuda (or hip) with IQ_BUNDLE_PATH runs the same on a GPU.
"""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import iq
from iq.formats import FORMATS
from iq.kernels import DTYPES
from iq.kernels.schedules import MOST_VEC_COLUMNS
from iq.verify.references import (
    F16_NMSE,
    F32_NMSE,
    MUL_MAT_NMSE,
    Q8_1_MODEL_NMSE,
    dequantized,
    different_bits,
    mul_mat_nmse,
    nmse,
    q8_1,
    random_bytes,
    random_weights,
    rounded,
)

WEIGHTS = [f for f in FORMATS.values() if f.kind != "activations"]
QUANTIZED = [f for f in WEIGHTS if f.kind == "weights"]
weights = pytest.mark.parametrize("fmt", WEIGHTS, ids=lambda f: f.name)
quantized = pytest.mark.parametrize("fmt", QUANTIZED, ids=lambda f: f.name)


def weight(device, fmt, n, k, seed=0):
    """A weight on the device, and its float32 values."""
    packed = random_weights(fmt, n, k, np.random.default_rng(seed))
    return iq.QTensor.from_bytes(packed, fmt.name, shape=(n, k), device=device), dequantized(fmt, packed)


def activations(m, k, seed=1):
    return np.random.default_rng(seed).standard_normal((m, k), dtype=np.float32)


@weights
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "blocks"), [(1, 1), (3, 2), (37, 5)])
def test_dequantize_is_bit_exact_on_random_bytes(device, fmt, dtype, n, blocks):
    k = blocks * fmt.kernel_block_weights()
    packed = random_bytes(fmt, n, k, np.random.default_rng(n))
    got = iq.QTensor.from_bytes(packed, fmt.name, shape=(n, k), device=device).dequantize(dtype).numpy()
    assert different_bits(got, rounded(dequantized(fmt, packed), dtype)) == 0


@weights
@pytest.mark.parametrize("dtype", DTYPES)
def test_get_rows_is_bit_exact(device, fmt, dtype):
    n, k = 19, 3 * fmt.kernel_block_weights()
    w, values = weight(device, fmt, n, k)
    ids = np.array([[3, 0, n - 1], [3, 7, 1]])
    got = w.get_rows(ids, dtype=dtype).numpy()
    assert got.shape == (2, 3, k)
    assert different_bits(got, rounded(values[ids.ravel()], dtype).reshape(2, 3, k)) == 0


VEC_SHAPES = [(m, n) for m in range(1, MOST_VEC_COLUMNS + 1) for n in (1, 5, 67)]
TILE_SHAPES = [(9, 64), (17, 1), (64, 128), (65, 131), (130, 70)]


@quantized
@pytest.mark.parametrize(("m", "n"), VEC_SHAPES + TILE_SHAPES)
def test_products_via_q8_1(device, fmt, m, n):
    k = 3 * 256 if fmt.block_size == 256 else 11 * fmt.block_size
    w, values = weight(device, fmt, n, k)
    x = activations(m, k)
    got = w.matmul(x, via="q8_1").numpy()
    assert mul_mat_nmse(got, q8_1(x), values) <= Q8_1_MODEL_NMSE
    assert mul_mat_nmse(got, x, values) <= MUL_MAT_NMSE


@weights
@pytest.mark.parametrize("m", range(1, MOST_VEC_COLUMNS + 1))
def test_dequantize_mul_mat_vec(device, fmt, m):
    n, k = 21, 3 * 256 if fmt.block_size == 256 else 11 * fmt.kernel_block_weights()
    w, values = weight(device, fmt, n, k)
    x = activations(m, k)
    assert mul_mat_nmse(w.matmul(x, via="float").numpy(), x, values) <= F32_NMSE


@weights
@pytest.mark.parametrize(("m", "n"), TILE_SHAPES)
def test_mul_mat_via_float(device, fmt, m, n):
    k = 2 * 256 if fmt.block_size == 256 else 9 * fmt.kernel_block_weights()
    w, values = weight(device, fmt, n, k)
    x = activations(m, k)
    got = w.matmul(x, via="float").numpy()
    assert mul_mat_nmse(got, x, values) <= (F16_NMSE if device.target.matrix and fmt.kind == "weights" else F32_NMSE)


@quantized
@pytest.mark.parametrize("m", [1, 8, 33])
def test_long_rows_and_large_activations(device, fmt, m):
    n, k = 3, 16384
    w, values = weight(device, fmt, n, k)
    x = activations(m, k) * np.float32(1e5)
    x[0, ::7] = 1e5
    for via in ("q8_1", "float"):
        assert mul_mat_nmse(w.matmul(x, via=via).numpy(), x, values) <= MUL_MAT_NMSE


@quantized
def test_rows_of_very_different_size_keep_their_precision(device, fmt):
    w, values = weight(device, fmt, 33, 512)
    x = activations(20, 512) * np.logspace(-30, 30, 20, dtype=np.float32)[:, None]
    for via in ("q8_1", "float"):
        got = w.matmul(x, via=via).numpy()
        for i in range(len(x)):
            assert mul_mat_nmse(got[i : i + 1], x[i : i + 1], values) <= MUL_MAT_NMSE


@weights
def test_no_rows_make_an_empty_result(device, fmt):
    w, _ = weight(device, fmt, 5, 256)
    assert w.matmul(np.zeros((0, 256), np.float32)).shape == (0, 5)
    assert w.get_rows(np.zeros((0,), np.int64)).shape == (0, 256)


@quantized
@pytest.mark.parametrize("via", ["q8_1", "float"])
@pytest.mark.parametrize("m", [3, 12])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_activation_spoils_its_own_row_only(device, fmt, via, m, bad):
    w, _ = weight(device, fmt, 40, 512)
    x = activations(m, 512)
    clean = w.matmul(x, via=via).numpy()
    x[1, 100] = bad
    got = w.matmul(x, via=via).numpy()
    assert not np.isfinite(got[1]).any()
    others = np.arange(m) != 1
    assert np.array_equal(got[others], clean[others])


@quantized
@pytest.mark.parametrize("m", [2, 8, 20])
def test_equal_rows_give_equal_bits(device, fmt, m):
    """candle's qmm_batch: a row's result does not depend on where in the batch it is."""
    w, _ = weight(device, fmt, 70, 512)
    x = np.repeat(activations(1, 512), m, axis=0)
    for via in ("q8_1", "float"):
        got = w.matmul(x, via=via).numpy()
        assert np.array_equal(got, np.repeat(got[:1], m, axis=0))


@pytest.mark.parametrize("fmt", [FORMATS["q4_0"], FORMATS["q4_k"], FORMATS["q6_k"]], ids=lambda f: f.name)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_shape(device, fmt, data):
    m, n = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 150))
    k = fmt.block_size * data.draw(st.integers(1, 6))
    w, values = weight(device, fmt, n, k, seed=n)
    x = activations(m, k, seed=m)
    got = w.matmul(x).numpy()
    assert got.shape == (m, n)
    assert mul_mat_nmse(got, x, values) <= MUL_MAT_NMSE


@pytest.mark.parametrize(("m", "k", "padding"), [(1, 32, 32), (3, 256, 512), (2, 100, 128), (4, 16, 512), (1, 33, 64)])
def test_quantize_q8_1_writes_the_bytes_of_ggml(device, m, k, padding):
    x = activations(m, k) * np.float32(10)
    x[0, : min(k, 32)] = 0
    padded = np.zeros((m, -(-k // padding) * padding), np.float32)
    padded[:, :k] = x
    got = iq.quantize_q8_1(x, device=device, padding=padding).numpy()
    assert np.array_equal(got, iq.quantize(padded, "q8_1"))


@pytest.mark.parametrize("fmt", QUANTIZED, ids=lambda f: f.name)
def test_golden_weights(device, fmt, golden):
    """ggml's own bytes, its own float64 product; rows of tiny, huge, zero and tied weights among them."""
    data = golden(fmt.name)
    w = iq.QTensor.from_bytes(data["q"], fmt.name, shape=data["w"].shape, device=device)
    assert different_bits(w.dequantize().numpy(), data["deq"]) == 0
    assert nmse(w.matmul(data["x"], via="q8_1").numpy(), data["mm_f64"]) <= MUL_MAT_NMSE
