"""Device buffers: what crosses and what does not, slices and views that share memory, and who keeps whom alive."""

import gc
import weakref

import numpy as np
import pytest

import iq
from iq.errors import DeviceError, DtypeError, LayoutError, ShapeError
from iq.runtime.dtypes import DTYPES, dtype_of
from iq.runtime.iree import hal, memory
from iq.runtime.iree.hal import Hal
from iq.runtime.iree.memory import DeviceMemory

ALL = sorted(DTYPES)


def aligned(shape: tuple[int, ...], dtype: type = np.float32, offset: int = 0) -> np.ndarray:
    """A numpy array that starts `offset` bytes past a 64-byte boundary, counting up from 0."""
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(nbytes + 128, np.uint8)
    start = -raw.ctypes.data % 64 + offset
    array = raw[start : start + nbytes].view(dtype).reshape(shape)
    array[...] = np.arange(array.size).reshape(shape)
    return array


@pytest.fixture
def cpu(dev: iq.Device) -> iq.Device:
    """The device, where it works in the host's memory."""
    if not dev.is_cpu:
        pytest.skip("a GPU has its own memory")
    return dev


# ---- There and back


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 3, 4), (0,), (4, 0, 2)])
def test_put_and_numpy_are_inverse(dev, rng, name, shape):
    dtype = DTYPES[name].numpy
    array = rng.integers(0, 100, shape).astype(dtype)
    buffer = dev.put(array)
    back = buffer.numpy()
    assert (back.shape, back.dtype) == (shape, dtype)
    assert back.tobytes() == array.tobytes()
    assert (buffer.shape, buffer.dtype, buffer.element, buffer.ndim) == (shape, dtype, name, len(shape))
    assert (buffer.size, buffer.nbytes) == (array.size, array.nbytes)


@pytest.mark.parametrize("name", ["device", "shape", "size", "nbytes", "dtype", "element", "ndim"])
def test_what_a_buffer_is_cannot_be_set(dev, name):
    buffer = dev.zeros((3, 4), "f32")
    with pytest.raises(AttributeError):
        setattr(buffer, name, getattr(buffer, name))


@pytest.mark.parametrize("name", ["name", "id", "library", "target", "is_cpu"])
def test_what_a_device_is_cannot_be_set(dev, name):
    with pytest.raises(AttributeError):
        setattr(dev, name, None)


@pytest.mark.parametrize("name", ALL)
def test_zeros_are_zero_and_alloc_has_the_shape(dev, name):
    assert not dev.zeros((3, 17), name).numpy().view(np.uint8).any()
    assert dev.alloc(5, name).shape == (5,)


def test_dtypes_by_every_name():
    for what in ("f32", "float32", np.float32, np.dtype("float32"), DTYPES["f32"]):
        assert dtype_of(what) is DTYPES["f32"]
    assert dtype_of("bfloat16") is DTYPES["bf16"]


@pytest.mark.parametrize("what", ["f31", np.complex64, np.uint16, np.bool_, np.dtype(">f4"), object, "float128", None.__class__, 3])
def test_dtypes_no_buffer_holds(dev, what):
    with pytest.raises(DtypeError, match="f16, f32, f64, bf16, u8, i8, u32, i32, i64"):
        dev.alloc((2,), what)


@pytest.mark.parametrize("shape", [(-1,), (2, -3), (1.5,), "ab", None, (2**40, 2**10)])
def test_shapes_that_are_none(dev, shape):
    with pytest.raises(ShapeError):
        dev.alloc(shape, "f32")


def test_no_memory_is_a_device_error(cpu, monkeypatch):
    def refuse(*args):
        raise MemoryError

    monkeypatch.setattr(memory.np, "empty", refuse)
    with pytest.raises(DeviceError, match="cannot allocate 4000 bytes"):
        cpu.alloc((1000,), "f32")


def test_put_refuses_what_is_no_dense_array(dev):
    array = np.zeros((4, 6), np.float32)
    for strided in (array.T, array[:, ::2], array[::2], array[:, :3], np.broadcast_to(np.float32(1), (3, 3))):
        with pytest.raises(LayoutError, match="ascontiguousarray"):
            dev.put(strided)
    with pytest.raises(DtypeError, match="expected a numpy array, got list"):
        dev.put([1.0, 2.0])
    with pytest.raises(DtypeError):
        dev.put(array.astype(">f4"))


# ---- Copied or shared


def test_put_copies(dev):
    array = aligned((4, 4))
    buffer = dev.put(array)
    array[:] = -1
    assert np.array_equal(buffer.numpy(), np.arange(16).reshape(4, 4))


def test_put_shares_when_asked_to(cpu):
    array = aligned((4, 4))
    for copy in (False, None):
        buffer = cpu.put(array, copy=copy)
        array[1, 1] = 77
        assert buffer.numpy()[1, 1] == 77
        buffer.fill_zero()
        assert not array.any()


@pytest.mark.parametrize("why", ["misaligned", "read-only", "empty"])
def test_put_that_cannot_share_refuses_or_copies(dev, why):
    array = {"misaligned": aligned((4,), offset=16), "read-only": aligned((4,)), "empty": aligned((0, 4))}[why]
    array.flags.writeable = why != "read-only"
    with pytest.raises(LayoutError, match="cannot share"):
        dev.put(array, copy=False)
    buffer = dev.put(array, copy=None)
    assert np.array_equal(buffer.numpy(), array)
    buffer.fill_zero()
    assert array.size == 0 or array.any()


def test_shared_array_lives_as_long_as_what_is_made_of_it(cpu):
    array = aligned((1024, 1024))
    gone = weakref.ref(array.base if array.base is not None else array)
    part = cpu.put(array, copy=False)[3:5].view("i32").reshape(-1)
    del array
    gc.collect()
    noise = [np.full((1024, 1024), 255, np.uint8) for _ in range(8)]
    assert np.array_equal(part.numpy().view(np.float32), np.arange(3 * 1024, 5 * 1024))
    del part, noise
    gc.collect()
    assert gone() is None


def test_asarray_shares_and_outlives_the_buffer(cpu):
    buffer = cpu.put(np.arange(6, dtype=np.float32).reshape(2, 3))
    seen = np.asarray(buffer)
    seen[0, 0] = 9
    assert buffer.numpy()[0, 0] == 9
    assert np.array(buffer).base is None or not np.shares_memory(np.array(buffer), seen)
    assert np.asarray(buffer, dtype=np.float64).dtype == np.float64
    del buffer
    gc.collect()
    assert seen.tolist() == [[9, 1, 2], [3, 4, 5]]


def test_numpy_is_a_copy(dev):
    buffer = dev.zeros((3,), "f32")
    buffer.numpy()[:] = 1
    assert not buffer.numpy().any()


# ---- Slices and views


def test_slices_are_numpys(dev):
    array = np.arange(60, dtype=np.int32).reshape(5, 4, 3)
    buffer = dev.put(array)
    for index in (0, 4, -1, -5, slice(1, 3), slice(None), slice(2, None), slice(-2, 99), slice(3, 1), slice(5, 5)):
        assert np.array_equal(buffer[index].numpy(), array[index]), index
        assert buffer[index].shape == array[index].shape
    assert np.array_equal(buffer[1:4][1][2].numpy(), array[1:4][1][2])
    assert len(buffer) == 5
    assert [part.numpy().tolist() for part in dev.put(array[0, 0])] == [0, 1, 2]


def test_slices_share_memory(dev):
    buffer = dev.zeros((5, 3), "f32")
    buffer[1:3].copy_from(np.ones((2, 3), np.float32))
    buffer[4].copy_from(np.full(3, 2, np.float32))
    buffer[2:5][0].fill_zero()
    assert buffer.numpy()[:, 0].tolist() == [0, 1, 0, 0, 2]


def test_slice_keeps_its_parent_alive(dev):
    part = dev.put(np.arange(1 << 20, dtype=np.int64))[5:8]
    gc.collect()
    noise = [np.full(1 << 20, -1) for _ in range(8)]
    assert part.numpy().tolist() == [5, 6, 7]
    del noise


@pytest.mark.parametrize("index", [5, -6, 99])
def test_index_outside(dev, index):
    with pytest.raises(IndexError):
        dev.zeros((5, 2), "f32")[index]


def test_slices_that_are_not_dense(dev):
    with pytest.raises(LayoutError, match="step 2"):
        dev.zeros((5, 2), "f32")[::2]
    with pytest.raises(TypeError, match="no length"):
        dev.zeros((), "f32")[0]


def test_views_are_numpys(dev, rng):
    array = rng.standard_normal((3, 8)).astype(np.float32)
    buffer = dev.put(array)
    for name in ("u8", "i32", "f16", "i64"):
        dtype = DTYPES[name].numpy
        assert np.array_equal(buffer.view(name).numpy().view(np.uint8), array.view(dtype).view(np.uint8))
        assert buffer.view(name).shape == array.view(dtype).shape
    buffer.view("u8").fill_zero()
    assert not buffer.numpy().any()


def test_views_that_do_not_fit(dev):
    with pytest.raises(ShapeError, match="no whole number of f32"):
        dev.zeros((4, 6), "u8").view("f32")
    with pytest.raises(ShapeError):
        dev.zeros((), "f32").view("u8")
    with pytest.raises(LayoutError, match="between two f32"):
        dev.zeros((9,), "u8")[1:9].view("f32")
    assert dev.zeros((), "f32").view("i32").shape == ()


def test_reshape(dev):
    buffer = dev.put(np.arange(12, dtype=np.int32))
    assert np.array_equal(buffer.reshape((3, -1)).numpy(), np.arange(12).reshape(3, 4))
    assert buffer.reshape((2, 2, 3)).reshape(-1).shape == (12,)
    assert dev.zeros((0, 3), "f32").reshape((3, 0)).shape == (3, 0)
    for wrong in ((5, -1), (3, 3), (-1, -1), (0, -1), (-2, -6)):
        with pytest.raises(ShapeError):
            buffer.reshape(wrong)


# ---- copy_from


def test_copy_from_checks(dev):
    buffer = dev.zeros((2, 3), "f32")
    with pytest.raises(ShapeError, match=r"\(3, 2\)"):
        buffer.copy_from(np.zeros((3, 2), np.float32))
    with pytest.raises(ShapeError):
        buffer.copy_from(np.zeros(3, np.float32))
    with pytest.raises(DtypeError, match="f64"):
        buffer.copy_from(np.zeros((2, 3)))
    with pytest.raises(DtypeError):
        buffer.copy_from(dev.zeros((2, 3), "i32"))
    with pytest.raises(LayoutError):
        buffer.copy_from(np.zeros((3, 2), np.float32).T)
    with pytest.raises(DeviceError, match="another device"):
        buffer.copy_from(iq.Device("cpu", threads=1).zeros((2, 3), "f32"))


def test_copy_from_itself_moves(dev):
    buffer = dev.put(np.arange(6, dtype=np.int32))
    buffer[2:6].copy_from(buffer[0:4])
    assert buffer.numpy().tolist() == [0, 1, 0, 1, 2, 3]
    assert buffer[1:3].overlaps(buffer[2:4])
    assert not buffer[1:3].overlaps(buffer[3:4])
    assert not buffer[1:1].overlaps(buffer)
    assert not buffer.overlaps(buffer.copy())


def test_overlaps_sees_what_is_shared_with_numpy(cpu):
    buffer = cpu.zeros(32, "f32")
    again = cpu.put(np.asarray(buffer), copy=False)
    assert buffer.overlaps(again)
    assert not buffer[:16].overlaps(again[16:])


def test_copy_is_its_own(dev):
    buffer = dev.put(np.arange(6, dtype=np.int32))
    copied = buffer[1:4].copy()
    buffer.fill_zero()
    assert copied.numpy().tolist() == [1, 2, 3]


# ---- IREE's way to GPUs, over the CPU's driver


@pytest.fixture
def staged(monkeypatch):
    """The memory of a GPU as the CPU's driver gives it, with so little staging memory that transfers take several rounds."""
    from iree.runtime._binding import create_hal_driver

    monkeypatch.setattr(hal, "STAGING_BYTES", 100)
    device = Hal(create_hal_driver("local-sync").create_default_device())
    return lambda nbytes: DeviceMemory(device, nbytes)


def test_staged_transfers(staged, rng):
    data = rng.integers(0, 256, 1234, dtype=np.uint8)
    there = staged(2000)
    there.fill_zero(0, 2000, None)
    there.write(17, data, None)
    assert np.array_equal(there.read(17, 1234), data)
    assert np.array_equal(there.read(27, 250), data[10:260])
    assert not there.read(0, 17).any()
    assert not there.read(1251, 749).any()
    assert there.host(0, 10) is None
    there.fill_zero(30, 5, None)
    assert np.flatnonzero(there.read(17, 1234) != data).tolist() == [i for i in range(13, 18) if data[i]]


def test_staged_copies(staged, rng):
    data = rng.integers(0, 256, 500, dtype=np.uint8)
    one, other = staged(500), staged(700)
    one.write(0, data, None)
    other.fill_zero(0, 700, None)
    other.copy_within(100, one, 50, 333, None)
    assert np.array_equal(other.read(100, 333), data[50:383])
    assert not other.read(433, 267).any()
