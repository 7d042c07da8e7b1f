"""Quantizing by kernels: ggml's bytes from every format's, from host arrays and from buffers; set_rows.

Runs on the CPU targets this machine can run; IQ_TEST_DEVICE=cuda (or hip) with IQ_BUNDLE_PATH runs the same on a GPU.
"""

import numpy as np
import pytest
from format_samples import extreme_imatrix, extremes

import iq
from iq import formats, quantizing
from iq.errors import DeviceError, DtypeError, FormatError, LayoutError, RowIndexError, ShapeError
from iq.formats import FORMATS
from iq.kernels import kernels
from iq.verify.references import hadamard

HAVE = {op: list(dict.fromkeys(spec.format for spec in kernels() if spec.op == op)) for op in ("quantize", "quantize_imatrix", "set_rows")}


def with_op(op):
    return pytest.mark.parametrize("fmt", HAVE[op])


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def test_which_formats_have_what():
    assert set(HAVE["quantize_imatrix"]) == {f for f in HAVE["quantize"] if FORMATS[f].imatrix != "ignored"}
    assert {"q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "f16"} <= set(HAVE["set_rows"])
    assert {"q2_k", "q3_k", "q4_k", "q5_k", "q6_k"} <= set(HAVE["quantize_imatrix"]) - set(HAVE["set_rows"])


@with_op("quantize")
def test_buffers_become_ggmls_bytes(device, fmt, golden):
    """ggml's own; rows of tiny, huge, zero and tied weights among them."""
    data = golden(fmt) if FORMATS[fmt].kind == "weights" else {"w": normal(5, 64)}
    w = iq.QTensor.quantize(device.put(data["w"]), fmt)
    assert (w.device, w.format, w.shape) == (device, fmt, data["w"].shape)
    np.testing.assert_array_equal(w.to_bytes(), data["q"] if "q" in data else formats.quantize(data["w"], fmt))


@with_op("quantize_imatrix")
def test_buffers_become_ggmls_bytes_with_an_imatrix(device, fmt, golden):
    data = golden(fmt)
    w = iq.QTensor.quantize(device.put(data["w"]), fmt, imatrix=data["imatrix"])
    np.testing.assert_array_equal(w.to_bytes(), data["q_imatrix"])


@with_op("quantize")
def test_extremes(device, fmt):
    """Denormal weights too: the CPU's workers would take them for 0."""
    x = extremes()
    np.testing.assert_array_equal(iq.QTensor.quantize(device.put(x), fmt).to_bytes(), formats.quantize(x, fmt))
    if fmt in HAVE["quantize_imatrix"]:
        w = iq.QTensor.quantize(device.put(x), fmt, imatrix=device.put(extreme_imatrix()))
        np.testing.assert_array_equal(w.to_bytes(), formats.quantize(x, fmt, extreme_imatrix()))


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("fmt", ["q8_0", "q4_k"])
def test_narrow_weights(device, fmt, dtype):
    narrow = iq.QTensor.quantize(device.put(normal(3, 512)), "f32").dequantize(dtype)
    wide = iq.QTensor.from_bytes(narrow.view("u8"), dtype, (3, 512), device).dequantize().numpy()
    np.testing.assert_array_equal(iq.QTensor.quantize(narrow, fmt).to_bytes(), formats.quantize(wide, fmt))


def test_shapes(device):
    for shape in ((64,), (2, 3, 64), (0, 64)):
        w = iq.QTensor.quantize(device.put(normal(*shape)), "q8_0")
        assert w.shape == shape
        np.testing.assert_array_equal(w.to_bytes(), formats.quantize(normal(*shape), "q8_0"))


@pytest.mark.parametrize(
    ("x", "fmt", "imatrix", "error", "text"),
    [
        (normal(2, 48), "q8_0", None, ShapeError, "no multiple"),
        (normal(2, 4), "f16", None, ShapeError, "multiples of 8"),
        (normal(2, 64).astype(np.float64), "q8_0", None, DtypeError, "f64"),
        (normal(2, 64), "q4_0", normal(32), ShapeError, r"f32 of shape \(32,\)"),
        (normal(2, 256), "iq1_s", None, FormatError, "no kernel quantizes to iq1_s"),
        (normal(2, 64), "q8_1", None, FormatError, "activations"),
    ],
)
def test_refusals(device, x, fmt, imatrix, error, text):
    with pytest.raises(error, match=text):
        iq.QTensor.quantize(device.put(x), fmt, imatrix=imatrix)


def set_bytes(fmt, x):
    """What set_rows makes of rows, in numpy."""
    form = FORMATS[fmt]
    return form.set_blocks(x.reshape(-1, form.block_size)).reshape(len(x), -1)


@with_op("set_rows")
def test_set_rows(device, fmt):
    n, k = 9, 160
    w = iq.QTensor.quantize(device.put(normal(n, k)), fmt)
    x = normal(2, 2, k, seed=1)
    w.set_rows([[7, 0], [3, 8]], x)
    want = formats.quantize(normal(n, k), fmt)
    want[[7, 0, 3, 8]] = set_bytes(fmt, x.reshape(4, k))
    np.testing.assert_array_equal(w.to_bytes(), want)
    w.set_rows(np.zeros((0,), np.int64), normal(0, k))
    w.set_rows(device.put(np.array([4], np.int32)), device.put(x[0, :1].astype(np.float16)))
    want[4] = set_bytes(fmt, x[0, :1].astype(np.float16).astype(np.float32))[0]
    np.testing.assert_array_equal(w.to_bytes(), want)


@pytest.mark.parametrize(
    ("ids", "x", "error", "text"),
    [
        ([0, 9], normal(2, 64), RowIndexError, r"id 9 at \(1,\) is outside the tensor's 9 rows"),
        ([0, -1], normal(2, 64), RowIndexError, "id -1"),
        ([3, 1, 3], normal(3, 64), RowIndexError, "row 3 is set more than once"),
        ([0.5], normal(1, 64), DtypeError, "integers"),
        ([0, 1], normal(2, 32), ShapeError, r"it takes \(2, 64\)"),
        ([0], normal(2, 64), ShapeError, r"it takes \(1, 64\)"),
        ([0], normal(1, 64).astype(np.float64), DtypeError, "f64"),
    ],
)
def test_set_rows_refuses(device, ids, x, error, text):
    w = iq.QTensor.quantize(device.put(normal(9, 64)), "q8_0")
    before = w.to_bytes()
    with pytest.raises(error, match=text):
        w.set_rows(ids, x)
    np.testing.assert_array_equal(w.to_bytes(), before)


def test_set_rows_is_for_caches(device):
    w = iq.QTensor.quantize(normal(2, 256), "q4_k", device)
    with pytest.raises(FormatError, match=r"set_rows: writes .*q8_0.*, not q4_k"):
        w.set_rows([0], normal(1, 256))


def test_set_rows_of_its_own_memory(device):
    packed = device.put(normal(2, 64))
    w = iq.QTensor.from_bytes(packed.view("u8").reshape(-1), "f32", (2, 64), device)
    with pytest.raises(LayoutError, match="shares memory"):
        w.set_rows([0], packed[1:])


@pytest.mark.parametrize("width", [64, 128, 256, 512])
def test_hadamard(device, width):
    """ggml's order of additions, so ggml's bits; and it is its own inverse."""
    x = normal(3, 2, 1536)
    y = iq.hadamard(device.put(x), width)
    np.testing.assert_array_equal(y.numpy(), hadamard(x, width))
    np.testing.assert_allclose(iq.hadamard(y, width).numpy(), x, atol=1e-5)
    matrix = np.array([[(-1) ** (i & j).bit_count() for j in range(width)] for i in range(width)]) / np.sqrt(width)
    np.testing.assert_allclose(y.numpy().reshape(-1, width), x.reshape(-1, width).astype(np.float64) @ matrix, atol=1e-5)


def test_hadamard_takes_narrow_activations_and_refuses_others(device):
    x = normal(2, 128)
    np.testing.assert_array_equal(iq.hadamard(x.astype(np.float16), device=device).numpy(), hadamard(x.astype(np.float16).astype("f4"), 64))
    assert iq.hadamard(normal(0, 64), device=device).shape == (0, 64)
    for given, width, error, text in (
        (x, 96, ShapeError, "width 96"),
        (normal(2, 96), 64, ShapeError, r"\(2, 96\); its last axis"),
        (x.astype(np.float64), 64, DtypeError, "f64"),
    ):
        with pytest.raises(error, match=text):
            iq.hadamard(device.put(given), width)


# Arrays of the host.


@pytest.mark.parametrize("fmt", ["q8_0", "q4_k", "f16"])
@pytest.mark.parametrize("weighted", [False, True])
def test_large_arrays_go_through_kernels_to_the_same_bytes(environment, monkeypatch, fmt, weighted):
    monkeypatch.setattr(quantizing, "KERNEL_WEIGHTS", 0)
    used = []
    there = quantizing.quantize_there
    monkeypatch.setattr(quantizing, "quantize_there", lambda *given: used.append(given) or there(*given))
    imatrix = np.square(normal(512, seed=3)) if weighted else None
    for x in (normal(3, 512), normal(2, 2, 512).astype(np.float16), normal(512).astype(np.float64), normal(0, 512)):
        want = formats.quantize(x, fmt, imatrix)
        got = iq.quantize(x, fmt, imatrix)
        assert got.shape == want.shape
        np.testing.assert_array_equal(got, want)
        if x.size:
            np.testing.assert_array_equal(iq.QTensor.quantize(x, fmt, imatrix=imatrix).to_bytes(), want)
    assert len(used) == 7


def test_large_arrays_are_checked_as_small_ones(environment, monkeypatch):
    monkeypatch.setattr(quantizing, "KERNEL_WEIGHTS", 0)
    x = normal(2, 64)
    x[1, 3] = np.nan
    for call in (lambda: iq.quantize(x, "q8_0"), lambda: iq.QTensor.quantize(x, "q8_0")):
        with pytest.raises(FormatError, match=r"1 of the 128 values of the array are; the first is \[1, 3\] = nan"):
            call()
    with pytest.raises(ShapeError, match="imatrix"):
        iq.quantize(normal(2, 64), "q4_0", normal(32))


def test_without_kernels_numpy_makes_the_same_bytes(environment, monkeypatch, tmp_path):
    """No bundle, nothing to compile with: nobody is the worse for it but in time."""
    monkeypatch.setattr(quantizing, "KERNEL_WEIGHTS", 0)
    monkeypatch.setenv("IQ_DISABLE_COMPILE", "1")
    device = iq.Device("cpu", threads=1)
    x = normal(3, 512)
    want = formats.quantize(x, "q5_k")
    np.testing.assert_array_equal(quantizing.quantize_for(device, x, FORMATS["q5_k"], None), want)


def test_a_buffer_elsewhere_is_refused(device):
    with pytest.raises(DeviceError, match="x is on"):
        iq.QTensor.quantize(device.put(normal(2, 64)), "q8_0", iq.Device("cpu", threads=1))
