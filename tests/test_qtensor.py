"""Quantized tensors: what they take and refuse, shapes, devices, and results against numpy on the tensor's own weights."""

import numpy as np
import pytest

import iq
from iq import qtensor
from iq.errors import DeviceError, DtypeError, FormatError, LayoutError, RowIndexError, ShapeError

FORMATS = ["q4_0", "f32", "f16"]
N, K = 37, 256


def rows(rng, *shape):
    return rng.standard_normal(shape, dtype=np.float32)


def weight(device, rng, format, n=N, k=K):
    """A tensor, and its weights as float64."""
    w = iq.QTensor.quantize(rows(rng, n, k), format, device)
    return w, iq.dequantize(w.to_bytes(), format).astype(np.float64)


def close(got, want, tolerance=1e-3):
    """Whether the normalised squared error is small; q8_1 activations are good for about 1e-4."""
    return got.shape == want.shape and np.sum((got - want) ** 2) <= tolerance * np.sum(want**2)


# ---- Making them


@pytest.mark.parametrize("shape", [(N, K), (K,), (3, N, K), (0, K), (2, 0, K)])
@pytest.mark.parametrize("format", FORMATS)
def test_bytes_go_in_and_come_out(dev, rng, format, shape):
    packed = iq.quantize(rows(rng, *shape), format)
    w = iq.QTensor.from_bytes(packed, format, shape, dev)
    assert (w.shape, w.format, w.device, w.nbytes) == (shape, format, dev, packed.nbytes)
    assert np.array_equal(w.to_bytes(), packed)
    assert np.array_equal(iq.QTensor.from_bytes(packed.reshape(-1), format, list(shape), dev).to_bytes(), packed)
    assert np.array_equal(iq.QTensor.quantize(rows(np.random.default_rng(20240607), *shape), format, dev).to_bytes(), packed)


def test_names_of_formats(dev):
    packed = np.zeros((2, 18), np.uint8)
    assert iq.QTensor.from_bytes(packed, "Q4_0", (2, 32), dev).format == "q4_0"
    with pytest.raises(FormatError, match="q4_9"):
        iq.QTensor.from_bytes(packed, "q4_9", (2, 32), dev)
    with pytest.raises(FormatError, match="quantize_q8_1"):
        iq.QTensor.from_bytes(np.zeros((2, 36), np.uint8), "q8_1", (2, 32), dev)


def test_quantize_hears_the_imatrix(dev, rng):
    array, imatrix = rows(rng, N, K), np.square(rows(rng, K))
    w = iq.QTensor.quantize(array, "q4_0", dev, imatrix=imatrix)
    assert np.array_equal(w.to_bytes(), iq.quantize(array, "q4_0", imatrix))
    assert not np.array_equal(w.to_bytes(), iq.quantize(array, "q4_0"))


def test_shapes_that_do_not_fit(dev):
    packed = np.zeros((4, 18), np.uint8)
    refused = {(4, 33): "multiple", (5, 32): "90 bytes, got 72", (): "shape", (1, 1, 4, 32): r"\(E, N, K\), got", (-4, 32): "no shape"}
    for shape, said in refused.items():
        with pytest.raises(ShapeError, match=said):
            iq.QTensor.from_bytes(packed, "q4_0", shape, dev)
    with pytest.raises(ShapeError):
        iq.QTensor.quantize(np.zeros((4, 33), np.float32), "q4_0", dev)


def test_packed_weights_are_dense_bytes(dev):
    with pytest.raises(DtypeError, match="int8"):
        iq.QTensor.from_bytes(np.zeros((4, 18), np.int8), "q4_0", (4, 32), dev)
    with pytest.raises(DtypeError, match="bytes"):
        iq.QTensor.from_bytes(bytes(72), "q4_0", (4, 32), dev)
    with pytest.raises(LayoutError):
        iq.QTensor.from_bytes(np.zeros((4, 36), np.uint8)[:, ::2], "q4_0", (4, 32), dev)


def test_a_buffer_becomes_a_tensor_in_place(dev, rng):
    packed = iq.quantize(rows(rng, 64, 32), "q4_0")
    buffer = dev.put(packed)
    w = iq.QTensor.from_bytes(buffer, "q4_0", (64, 32))
    before = w.to_bytes()
    buffer[0].fill_zero()
    assert not w.to_bytes()[0].any()
    assert np.array_equal(w.to_bytes()[1:], before[1:])
    # 32 rows of 18 bytes end on a 64-byte boundary, one row does not.
    assert np.array_equal(iq.QTensor.from_bytes(buffer[32:], "q4_0", (32, 32)).to_bytes(), packed[32:])
    with pytest.raises(LayoutError, match=r"byte 18 .* copy\(\)"):
        iq.QTensor.from_bytes(buffer[1:], "q4_0", (63, 32))
    with pytest.raises(DeviceError):
        iq.QTensor.from_bytes(buffer, "q4_0", (64, 32), iq.Device("cpu", threads=1))


@pytest.mark.needs_extras
def test_the_default_device_is_one(monkeypatch):
    from iq.device import default_device

    one, other = (iq.QTensor.quantize(np.ones((2, 32), np.float32), "q4_0") for _ in range(2))
    assert one.device is other.device is default_device()
    assert close(one.matmul(np.ones((1, 32), np.float32)).numpy(), np.full((1, 2), 32.0))


@pytest.mark.needs_extras
def test_a_device_by_name(monkeypatch):
    one, other = (iq.QTensor.quantize(np.ones((2, 32), np.float32), "q4_0", "cpu") for _ in range(2))
    assert one.device is other.device
    assert iq.QTensor.from_bytes(one.to_bytes(), "q4_0", (2, 32), device="cpu").device is one.device
    assert iq.quantize_q8_1(np.ones((1, 32), np.float32), "cpu").device is one.device
    monkeypatch.setenv("IQ_DEVICE", "cpu")
    assert iq.QTensor.quantize(np.ones((2, 32), np.float32), "q4_0").device is one.device
    with pytest.raises(DeviceError, match="unknown device 'gpu'"):
        iq.QTensor.quantize(np.ones((2, 32), np.float32), "q4_0", "gpu")


@pytest.mark.parametrize("name", ["shape", "format", "device", "nbytes"])
def test_what_a_tensor_is_cannot_be_set(dev, name):
    w = iq.QTensor.quantize(np.ones((2, 32), np.float32), "q4_0", dev)
    with pytest.raises(AttributeError):
        setattr(w, name, getattr(w, name))


# ---- matmul


@pytest.mark.parametrize("via", [None, "float", "q8_1"])
@pytest.mark.parametrize("lead", [(), (1,), (8,), (9,), (2, 3), (3, 1, 4)])
@pytest.mark.parametrize("format", FORMATS)
def test_matmul(device, rng, format, lead, via):
    w, values = weight(device, rng, format)
    x = rows(rng, *lead, K)
    if via == "q8_1" and format != "q4_0":
        with pytest.raises(FormatError, match="not quantized"):
            w.matmul(x, via=via)
        return
    want = x.astype(np.float64) @ values.T
    for given in (x, device.put(x)):
        y = w.matmul(given, via=via)
        assert (y.shape, y.dtype, y.device) == ((*lead, N), np.float32, device)
        assert close(y.numpy(), want)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("m", [1, 7, 13])
def test_matmul_of_f16_is_that_of_the_same_f32(device, rng, format, m):
    w, _ = weight(device, rng, format)
    x = rows(rng, m, K).astype(np.float16)
    want = w.matmul(x.astype(np.float32)).numpy()
    for given in (x, device.put(x)):
        assert np.array_equal(w.matmul(given).numpy(), want)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("shape", "n"), [((0, K), N), ((2, 0, K), N), ((3, K), 0), ((0, K), 0)])
def test_matmul_of_nothing(dev, rng, format, shape, n):
    y = iq.QTensor.quantize(np.zeros((n, K), np.float32), format, dev).matmul(np.zeros(shape, np.float32))
    assert y.shape == (*shape[:-1], n)
    assert y.numpy().size == 0


def test_matmul_of_a_single_row(device, rng):
    packed = iq.quantize(rows(rng, K), "q4_0")
    x = rows(rng, 3, K)
    y = iq.QTensor.from_bytes(packed, "q4_0", (K,), device).matmul(x)
    assert close(y.numpy(), x @ iq.dequantize(packed, "q4_0")[:, None])


def test_matmul_into_out(device, rng):
    w, values = weight(device, rng, "q4_0", n=32)
    x = rows(rng, 4, K)
    whole = device.zeros((8, 32), "f32")
    out = whole[2:6]
    assert w.matmul(x, out=out) is out
    assert close(out.numpy(), x @ values.T)
    assert np.array_equal(whole.numpy()[2:6], out.numpy())
    assert not whole.numpy()[[0, 1, 6, 7]].any()


def test_out_that_does_not_fit(dev, rng):
    w, _ = weight(dev, rng, "q4_0", n=K)
    x = dev.put(rows(rng, 4, K))
    refused = [
        (dev.zeros((4, K + 1), "f32"), ShapeError),
        (dev.zeros((4 * K,), "f32"), ShapeError),
        (dev.zeros((4, K), "f16"), DtypeError),
        (iq.Device("cpu", threads=1).zeros((4, K), "f32"), DeviceError),
        (x, LayoutError),
        (dev.zeros(4 * K + 1, "f32")[1:].reshape((4, K)), LayoutError),
    ]
    for out, error in refused:
        with pytest.raises(error):
            w.matmul(x, out=out)


def test_matmul_checks_x(dev, rng):
    w, _ = weight(dev, rng, "q4_0")
    refused = [
        (rows(rng, 4, K + 32), ShapeError),
        (rows(rng, K, 4), ShapeError),
        (np.ones((), np.float32), ShapeError),
        (np.zeros((4, K), np.int32), DtypeError),
        (np.zeros((4, K)), DtypeError),
        (np.zeros((4, K), ">f4"), DtypeError),
        ([[0.0] * K], DtypeError),
        (rows(rng, K, 4).T, LayoutError),
        (rows(rng, 4, 2 * K)[:, ::2], LayoutError),
        (iq.Device("cpu", threads=1).zeros((4, K), "f32"), DeviceError),
        (dev.zeros((4, K), "f64"), DtypeError),
        (dev.zeros(4 * K + 1, "f32")[1:].reshape((4, K)), LayoutError),
    ]
    for x, error in refused:
        with pytest.raises(error):
            w.matmul(x)
    with pytest.raises(ShapeError, match=rf"\(4, {K + 32}\).*\({N}, {K}\).*must be {K}"):
        w.matmul(refused[0][0])
    with pytest.raises(FormatError, match="via='q8'"):
        w.matmul(rows(rng, 4, K), via="q8")


@pytest.mark.parametrize("via", ["q8_1", "float"])
@pytest.mark.parametrize("m", [3, 12])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_activations_stay_in_their_row(device, rng, via, m, bad):
    w, _ = weight(device, rng, "q4_0")
    x = rows(rng, m, K)
    clean = w.matmul(x, via=via).numpy()
    x[1, 100] = bad
    got = w.matmul(x, via=via).numpy()
    assert not np.isfinite(got[1]).any()
    assert np.array_equal(np.delete(got, 1, axis=0), np.delete(clean, 1, axis=0))


def test_matmul_lets_go_of_the_host_array(dev, rng):
    """The result may not depend on what happens to x afterwards, whether it was shared or copied."""
    w, values = weight(dev, rng, "q4_0")
    x = rows(rng, 4, K)
    want = x @ values.T
    y = w.matmul(x)
    x[:] = np.nan
    assert close(y.numpy(), want)


def test_tensors_of_three_axes_are_for_moe(dev, rng):
    w = iq.QTensor.quantize(rows(rng, 2, 4, K), "q4_0", dev)
    with pytest.raises(ShapeError, match=rf"\(2, 4, {K}\); w\[e\] is one"):
        w.matmul(rows(rng, 1, K))


def test_plain_rows_that_are_no_multiple_of_eight(dev):
    w = iq.QTensor.quantize(np.ones((3, 12), np.float32), "f32", dev)
    assert w.to_bytes().shape == (3, 48)
    for op in (lambda: w.matmul(np.ones((1, 12), np.float32)), w.dequantize, lambda: w.get_rows([0])):
        with pytest.raises(ShapeError, match="multiples of 8"):
            op()


# ---- dequantize and get_rows


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("format", FORMATS)
def test_dequantize(device, rng, format, dtype):
    w, values = weight(device, rng, format)
    got = w.dequantize(dtype)
    assert (got.shape, got.dtype.name) == ((N, K), dtype)
    assert np.array_equal(got.numpy(), values.astype(np.float32).astype(got.dtype))


def test_dequantize_of_one_row_and_of_none(device, rng):
    packed = iq.quantize(rows(rng, K), "q4_0")
    assert np.array_equal(iq.QTensor.from_bytes(packed, "q4_0", (K,), device).dequantize().numpy(), iq.dequantize(packed, "q4_0"))
    assert iq.QTensor.quantize(np.zeros((0, K), np.float32), "q4_0", device).dequantize().shape == (0, K)


@pytest.mark.parametrize("dtype", ["float64", "int32", "f31", "u8"])
def test_types_that_weights_do_not_become(dev, rng, dtype):
    w, _ = weight(dev, rng, "q4_0")
    for op in (lambda: w.dequantize(dtype), lambda: w.get_rows([0], dtype)):
        with pytest.raises(DtypeError):
            op()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("format", FORMATS)
def test_get_rows(device, rng, format, dtype):
    w, values = weight(device, rng, format)
    ids = rng.integers(0, N, (2, 3, 5))
    got = w.get_rows(ids, dtype)
    assert got.shape == (2, 3, 5, K)
    assert np.array_equal(got.numpy(), values[ids].astype(np.float32).astype(got.dtype))


def test_ids_of_every_kind(dev, rng):
    w, values = weight(dev, rng, "q4_0")
    for ids in (0, N - 1, [], [[]], [3, 3], np.array(5), np.arange(10)[::3], *(np.array([[1], [36]], t) for t in "bBhHiIlL")):
        want = values[np.asarray(ids, dtype=int)]
        assert np.array_equal(w.get_rows(ids).numpy(), want)
    for dtype in ("i32", "i64", "u32", "u8"):
        ids = dev.alloc((2, 2), dtype)
        ids.copy_from(np.array([[1, 0], [36, 1]]).astype(ids.dtype))
        assert np.array_equal(w.get_rows(ids).numpy(), values[[[1, 0], [36, 1]]])


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (N, rf"id {N} at \(\)"),
        ([0, -1], r"id -1 at \(1,\)"),
        ([[0, 1], [N + 2, -5]], rf"id {N + 2} at \(1, 0\)"),
        (np.array([2**40]), rf"id {2**40}"),
        (np.array([2**64 - 1], np.uint64), rf"id {2**64 - 1}"),
    ],
)
def test_ids_outside(dev, rng, ids, said):
    w, _ = weight(dev, rng, "q4_0")
    with pytest.raises(RowIndexError, match=said):
        w.get_rows(ids)
    assert issubclass(RowIndexError, IndexError)


def test_ids_that_are_no_integers(dev, rng):
    w, _ = weight(dev, rng, "q4_0")
    for ids in ([0.5], [True], ["a"], dev.zeros(3, "f32"), [2**70]):
        with pytest.raises(DtypeError):
            w.get_rows(ids)


# ---- quantize_q8_1


@pytest.mark.parametrize(("m", "k", "padding"), [(1, 256, 512), (5, 512, 512), (3, 16, 512), (2, 100, 32), (0, 64, 32), (2, 0, 32)])
def test_quantize_q8_1(device, rng, m, k, padding):
    x = rows(rng, m, k)
    padded = np.zeros((m, -(-k // padding) * padding), np.float32)
    padded[:, :k] = x
    for given in (x, device.put(x)):
        got = iq.quantize_q8_1(given, device, padding)
        assert (got.shape, got.element) == ((m, padded.shape[1] // 32 * 36), "u8")
        assert np.array_equal(got.numpy(), iq.quantize(padded, "q8_1"))
    assert iq.quantize_q8_1(device.put(x), padding=padding).device is device


def test_quantize_q8_1_refuses(dev):
    x = np.zeros((2, 64), np.float32)
    for padding in (0, 33, -32):
        with pytest.raises(ShapeError):
            iq.quantize_q8_1(x, dev, padding)
    for wrong, error in [(x[0], ShapeError), (x.astype(np.float16), DtypeError), (x.T, LayoutError), ([1.0], DtypeError)]:
        with pytest.raises(error):
            iq.quantize_q8_1(wrong, dev)
    with pytest.raises(DeviceError):
        iq.quantize_q8_1(dev.put(x), iq.Device("cpu", threads=1))


@pytest.mark.parametrize("kind", ["array", "buffer"])
def test_ids_that_change_once_they_are_checked(dev, rng, monkeypatch, kind):
    """As another thread would change them: the rows are those of the ids that were checked."""
    w, values = weight(dev, rng, "q4_0")
    held = np.zeros(64 + 16, np.int32)
    ids = held[-held.ctypes.data % 64 // 4 :][:5]  # aligned, as the kernel would take it without a copy
    ids[:] = wanted = [3, 0, 36, 1, 2]
    given = ids if kind == "array" else dev.put(ids, copy=None)
    check, outside = qtensor.ids_on_host, np.full(5, 2**31 - 1, np.int32)

    def check_and_change(*checked):
        rows = check(*checked)
        np.copyto(given, outside) if kind == "array" else given.copy_from(outside)
        return rows

    monkeypatch.setattr(qtensor, "ids_on_host", check_and_change)
    assert np.array_equal(w.get_rows(given).numpy(), values[wanted].astype(np.float32))
    monkeypatch.undo()
    with pytest.raises(RowIndexError):
        w.get_rows(given)
