"""Buffers and arrays of other libraries: what is shared and what copied, in which order, and who keeps whom alive.

On the CPU the other library is numpy. On emulated GPUs, whose streams run nothing before somebody waits, it is one that this file makes up.
"""

import gc
import weakref

import numpy as np
import pytest
from conftest import BUNDLE, SPEC, OnDemandFor

import iq
from iq import runtime
from iq.errors import DeviceError, DtypeError, LayoutError, ShapeError
from iq.runtime import dlpack, foreign
from iq.runtime.dtypes import DTYPES
from iq.targets import TARGETS

on_cpu = pytest.mark.skipif(SPEC != "cpu", reason="what numpy sees lies on the host")

NUMPYS = sorted(set(DTYPES) - {"bf16"})


def cpu():
    return iq.Device("cpu")


def aligned(shape):
    """f32 zeros on a 64-byte boundary."""
    return np.asarray(cpu().zeros(shape, "f32"))


def emulated(**how):
    """An emulated GPU of its own."""
    pytest.importorskip("elftools")
    from iq.emulator.device import EmulatedGpu

    return runtime.Device(EmulatedGpu("emulated:gfx1100").runtime, provider=OnDemandFor(TARGETS["gfx1100"]), **how)


class Owner:
    """Who a producer's memory belongs to."""


class Producer:
    """An array of another library, by its address; `owner` lives as long as somebody uses it."""

    def __init__(self, address, shape, dtype, device, *, readonly=False, old=False, ordered=lambda stream: None):
        self.args = address, shape, dtype
        self.device, self.readonly, self.old, self.ordered = device, readonly, old, ordered
        self.owner = Owner()
        self.streams = []

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, *, stream=None, **later):
        if self.old and later:
            raise TypeError(f"__dlpack__() got an unexpected keyword argument '{next(iter(later))}'")
        self.streams.append(stream)
        self.ordered(stream)
        versioned = dlpack.negotiate(later.get("max_version"))
        return dlpack.export(*self.args, self.device, self.owner, readonly=self.readonly and versioned, versioned=versioned)


# ---- Out, on the CPU


@on_cpu
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (0, 4)])
@pytest.mark.parametrize("name", NUMPYS)
def test_numpy_shares_a_buffer(dev, name, shape):
    buffer = dev.zeros(shape, name)
    array = np.from_dlpack(buffer)
    assert (array.shape, array.dtype) == (shape, buffer.dtype)
    if array.size:
        array[...] = 7
        assert np.all(buffer.numpy() == 7)


@on_cpu
def test_a_slice_is_shared_where_it_lies(dev):
    buffer = dev.put(np.arange(40, dtype=np.int32).reshape(10, 4))
    assert np.array_equal(np.from_dlpack(buffer[3:5]), [[12, 13, 14, 15], [16, 17, 18, 19]])


@on_cpu
def test_memory_lives_as_long_as_its_consumer(dev):
    buffer = dev.put(np.arange(5, dtype=np.float32))
    memory = weakref.ref(buffer.memory)
    array = np.from_dlpack(buffer)
    del buffer
    gc.collect()
    assert memory() is not None
    assert np.array_equal(array, np.arange(5))
    del array
    gc.collect()
    assert memory() is None


@on_cpu
def test_a_copy_is_one(dev):
    buffer = dev.zeros((3,), "f32")
    array = np.from_dlpack(buffer, copy=True)
    array[...] = 1
    assert not buffer.numpy().any()


@on_cpu
def test_old_consumers(dev):
    buffer = dev.put(np.arange(3, dtype=np.float32))
    assert "dltensor_versioned" in repr(buffer.__dlpack__(max_version=(1, 0)))
    capsule = buffer.__dlpack__()
    assert '"dltensor"' in repr(capsule)
    assert dlpack.load(capsule).address == buffer.address


@on_cpu
def test_a_consumer_on_another_device_is_refused(dev):
    buffer = dev.zeros((3,), "f32")
    assert buffer.__dlpack_device__() == (dlpack.CPU, 0)
    with pytest.raises(BufferError, match="in place, or as a copy on the CPU"):
        buffer.__dlpack__(dl_device=(dlpack.CUDA, 0))


# ---- In, on the CPU


@on_cpu
def test_an_array_is_shared(dev):
    array = aligned((3, 4))
    for copy in (None, False):
        buffer = dev.from_dlpack(array, copy=copy)
        assert (buffer.shape, buffer.element, buffer.address) == ((3, 4), "f32", array.ctypes.data)
    array[1, 2] = 5
    assert buffer.numpy()[1, 2] == 5


@on_cpu
def test_a_copy_is_taken(dev):
    array = aligned((3,))
    buffer = dev.from_dlpack(array, copy=True)
    array[...] = 1
    assert not buffer.numpy().any()


@on_cpu
@pytest.mark.parametrize("why", ["readonly", "misaligned", "empty"])
def test_what_cannot_be_shared_is_copied(dev, why):
    array = aligned((8,))
    if why == "readonly":
        array.flags.writeable = False
    array = {"readonly": array, "misaligned": array[1:], "empty": array[:0]}[why]
    buffer = dev.from_dlpack(array)
    assert np.array_equal(buffer.numpy(), array)
    assert not array.size or buffer.address != array.ctypes.data
    with pytest.raises(LayoutError, match=r"cannot share|copy=None"):
        dev.from_dlpack(array, copy=False)


@on_cpu
def test_elements_that_numpy_cannot_say(dev):
    source = dev.put(np.arange(6).astype(DTYPES["bf16"].numpy))
    taken = dev.from_dlpack(source)
    assert (taken.element, taken.address) == ("bf16", source.address)
    assert np.array_equal(taken.numpy(), source.numpy())


@pytest.mark.parametrize(
    ("array", "error"),
    [
        ([1.0], DtypeError),
        (np.zeros(3, np.complex64), DtypeError),
        (np.zeros((4, 4), np.float32)[:, ::2], LayoutError),
        (np.zeros((4, 2), np.float32).T, LayoutError),
    ],
    ids=["no __dlpack__", "complex", "strided", "transposed"],
)
def test_what_is_refused(dev, array, error):
    with pytest.raises(error):
        dev.from_dlpack(array)


def test_a_producers_own_refusal_is_passed_on(dev):
    class Refuses:
        def __dlpack_device__(self):
            return (dlpack.CPU, 0)

        def __dlpack__(self, **arguments):
            raise BufferError("not today")

    with pytest.raises(BufferError, match="not today"):
        dev.from_dlpack(Refuses())


@on_cpu
@pytest.mark.parametrize("old", [False, True])
def test_a_producer_is_kept_alive(dev, old):
    array = aligned((16,))
    producer = Producer(array.ctypes.data, (16,), "f32", (dlpack.CPU, 0), old=old)
    buffer = dev.from_dlpack(producer, copy=False)[4:8]
    owner = weakref.ref(producer.owner)
    del producer
    gc.collect()
    assert owner() is not None
    del buffer
    gc.collect()
    assert owner() is None


def test_another_devices_array_that_does_not_come_to_the_host(dev):
    producer = Producer(4096, (4,), "f32", (dlpack.ROCM, 77), old=True)
    with pytest.raises(DeviceError, match=r"hip:77 does not copy itself to the host"):
        dev.from_dlpack(producer)
    with pytest.raises(DeviceError, match="hip:77, not on"):
        dev.from_dlpack(producer, copy=False)


# ---- Products and weights of other libraries' arrays


class Wrapped:
    """An array that is none of numpy's but has its __dlpack__."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **arguments):
        return self.array.__dlpack__(**arguments)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


@pytest.mark.parametrize("format", ["q4_0", "f16"])
def test_weights_and_activations(dev, rng, format):
    w = iq.QTensor.quantize(rng.standard_normal((37, 256), dtype=np.float32), format, dev)
    x = rng.standard_normal((3, 256), dtype=np.float32)
    taken = iq.QTensor.from_bytes(Wrapped(w.to_bytes()), format, w.shape, dev)
    assert np.array_equal(taken.to_bytes(), w.to_bytes())
    assert np.array_equal(taken.matmul(Wrapped(x)).numpy(), w.matmul(x).numpy())
    with pytest.raises(DtypeError, match="uint8"):
        iq.QTensor.from_bytes(Wrapped(x), format, w.shape, dev)
    with pytest.raises(ShapeError):
        iq.QTensor.from_bytes(Wrapped(w.to_bytes()), format, (38, 256), dev)


# ---- On GPUs


@pytest.fixture
def gpu(environment):
    if SPEC != "cpu":
        pytest.skip("emulated")
    return emulated()


def wrapped(buffer, **how):
    """A producer on the memory of a buffer, which the test keeps."""
    return Producer(buffer.address, buffer.shape, buffer.element, buffer.__dlpack_device__(), **how)


def test_a_buffer_goes_out_and_comes_in(gpu):
    buffer = gpu.put(np.arange(12, dtype=np.float32).reshape(3, 4))
    taken = gpu.from_dlpack(buffer, copy=False)
    assert (taken.shape, taken.element, taken.address) == ((3, 4), "f32", buffer.address)
    taken.fill_zero()
    assert not buffer.numpy().any()
    memory = weakref.ref(buffer.memory)
    del buffer
    assert memory() is not None
    assert not taken.numpy().any()
    del taken
    gpu.synchronize()
    gpu.synchronize()
    # The last use was by somebody who had its address: it goes when a batch of them does.
    for _ in range(64):
        gpu.from_dlpack(gpu.zeros((1,), "f32"))
    gpu.synchronize()
    assert memory() is None


def test_an_emulated_gpu_is_none_that_other_libraries_know(gpu):
    kind, _ = gpu.zeros((1,), "f32").__dlpack_device__()
    assert kind == foreign.EXTENSION not in (dlpack.ROCM, dlpack.CUDA, dlpack.CPU)


def test_a_copy_for_the_host(gpu):
    buffer = gpu.put(np.arange(4, dtype=np.float32))
    assert np.array_equal(np.from_dlpack(buffer, device="cpu"), np.arange(4))
    with pytest.raises(BufferError, match="in place"):
        buffer.__dlpack__(dl_device=(dlpack.CPU, 0), copy=False)


def test_devices_cross_through_the_host(gpu):
    other = emulated()
    buffer = gpu.put(np.arange(4, dtype=np.float32))
    assert np.array_equal(other.from_dlpack(buffer).numpy(), np.arange(4))
    assert np.array_equal(cpu().from_dlpack(buffer).numpy(), np.arange(4))
    assert np.array_equal(gpu.from_dlpack(np.arange(4)).numpy(), np.arange(4))
    for device, array in ((other, buffer), (cpu(), buffer), (gpu, np.arange(4))):
        with pytest.raises(DeviceError, match="not on"):
            device.from_dlpack(array, copy=False)


@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "control"])
def test_a_consumers_stream_waits_for_what_was_enqueued(gpu, ordered):
    mine, theirs = gpu.stream(), gpu.stream()
    buffer, seen = gpu.zeros((64,), "f32"), gpu.zeros((64,), "f32")
    gpu.synchronize()
    buffer.copy_from(np.ones(64, np.float32), stream=mine)
    buffer.__dlpack__(stream=theirs.handle if ordered else -1)
    gpu._backend.context.copy_on(seen.address, buffer.address, buffer.nbytes, theirs.handle)
    theirs.synchronize()
    assert np.all(seen.numpy() == ordered)


@pytest.mark.parametrize("stream", [1, 2, -2, "0", True])
def test_streams_that_are_none(gpu, stream):
    with pytest.raises(BufferError, match="none that DLPack knows"):
        gpu.zeros((1,), "f32").__dlpack__(stream=stream)


def test_a_producer_orders_itself_before_the_devices_stream(gpu):
    theirs, buffer = gpu.stream(), gpu.zeros((64,), "f32")
    gpu.synchronize()
    context = gpu._backend.context

    def order(stream):
        event = context.create_event()
        context.record_event(event, theirs.handle)
        context.wait_event(stream, event)
        context.destroy_event(event)

    context.fill(buffer.address, 1, buffer.nbytes, theirs.handle)
    producer = wrapped(buffer.view("u8"), ordered=order)
    other = gpu.stream()
    taken = gpu.from_dlpack(producer, stream=other)
    assert producer.streams == [gpu._backend.own.handle]
    copied = taken.copy(stream=other)
    assert np.all(copied.numpy() == 1)


def test_what_cannot_be_shared_is_copied_on_the_device(gpu):
    held = gpu.put(np.arange(16, dtype=np.float32))
    for producer, why in ((wrapped(held, readonly=True), "read-only"), (wrapped(held[1:9]), "16-byte boundary")):
        taken = gpu.from_dlpack(producer)
        assert taken.address != producer.args[0]
        assert np.array_equal(taken.numpy(), held.numpy()[:16] if why == "read-only" else held.numpy()[1:9])
        with pytest.raises(LayoutError, match=why):
            gpu.from_dlpack(producer, copy=False)
    assert gpu.from_dlpack(wrapped(held), copy=True).address != held.address
    assert gpu.borrow(wrapped(held, readonly=True)).address == held.address  # it is only read
    assert gpu.from_dlpack(wrapped(gpu.zeros((0, 3), "f32"))).shape == (0, 3)


def test_a_producer_that_says_two_things(gpu):
    producer = wrapped(gpu.zeros((4,), "f32"))
    producer.__class__ = type("Liar", (Producer,), {"__dlpack_device__": lambda self: gpu.dlpack_device})
    producer.device = (dlpack.ROCM, 5)
    with pytest.raises(DeviceError, match="capsule that it lies on hip:5"):
        gpu.from_dlpack(producer)


def q4_k(rng):
    return iq.quantize(rng.standard_normal((4, 256), dtype=np.float32), "q4_k")


@pytest.mark.parametrize("elsewhere", [False, True], ids=["own stream", "another stream"])
def test_a_producer_lives_until_what_is_enqueued_is_done(gpu, rng, elsewhere):
    packed = q4_k(rng)
    held = gpu.put(packed)
    gpu.synchronize()
    stream = gpu.stream() if elsewhere else None
    producer = wrapped(held)
    owner = weakref.ref(producer.owner)
    w = iq.QTensor.from_bytes(gpu.from_dlpack(producer, copy=False), "q4_k", (4, 256))
    y = w.dequantize(stream=stream)
    del w, producer
    gc.collect()
    gpu.zeros((1,), "f32")  # takes in what was dropped
    assert owner() is not None
    (stream or gpu).synchronize()
    gpu.synchronize()
    gpu.synchronize()
    assert owner() is None
    assert np.array_equal(y.numpy(), iq.dequantize(packed, "q4_k"))


def test_owners_of_what_others_streams_used_go_in_batches(gpu):
    """The default stream is not iq's."""
    held = gpu.put(np.zeros(64, np.float32))
    owners = []
    for _ in range(64):
        producer = wrapped(held)
        owners.append(weakref.ref(producer.owner))
        gpu.from_dlpack(producer).fill_zero(stream=0)
        del producer
    gc.collect()
    assert all(owner() is not None for owner in owners)
    gpu.zeros((1,), "f32")
    assert all(owner() is None for owner in owners)


def test_a_graph_keeps_a_producer(gpu):
    held, target = gpu.put(np.arange(16, dtype=np.float32)), gpu.zeros((16,), "f32")
    producer = wrapped(held)
    owner = weakref.ref(producer.owner)
    taken = gpu.from_dlpack(producer)
    with gpu.capture() as graph:
        target.copy_from(taken)
    del taken, producer
    gc.collect()
    gpu.synchronize()
    graph.launch()
    assert owner() is not None
    assert np.array_equal(target.numpy(), np.arange(16))
    del graph
    gc.collect()
    for _ in range(3):
        gpu.synchronize()
    assert owner() is None


def test_what_is_taken_in_while_a_thread_captures_waits_for_its_producer(gpu):
    held, own = gpu.put(np.arange(4, dtype=np.float32)), gpu.stream_of(None)
    producer = wrapped(held)
    with gpu.capture() as graph:
        duplicate = gpu.from_dlpack(producer).copy()
    assert producer.streams == [own.handle]
    graph.launch()
    assert np.array_equal(duplicate.numpy(), np.arange(4))


def test_what_kernels_may_read_past_is_not_shared(gpu, rng):
    """q4_0's kernels read past the last block, q4_k's do not."""
    for format, shared in (("q4_0", False), ("q4_k", True)):
        packed = iq.quantize(rng.standard_normal((4, 256), dtype=np.float32), format)
        held = gpu.put(packed)
        w = iq.QTensor.from_bytes(wrapped(held), format, (4, 256), gpu)
        assert (w._packed.address == held.address) == shared
        assert np.array_equal(w.to_bytes(), packed)
        if not shared:
            with pytest.raises(LayoutError, match="16 bytes past the last block"):
                iq.QTensor.from_bytes(wrapped(held), format, (4, 256), gpu, copy=False)
        assert iq.QTensor.from_bytes(wrapped(held), format, (4, 256), gpu, copy=True)._packed.address != held.address


def test_activations_are_read_in_place(gpu, rng):
    w = iq.QTensor.quantize(rng.standard_normal((4, 256), dtype=np.float32), "q4_0", gpu)
    x = rng.standard_normal((2, 256), dtype=np.float32)
    held = gpu.put(x)
    producer = wrapped(held, readonly=True)
    owner = weakref.ref(producer.owner)
    y = w.matmul(producer)
    del producer
    gc.collect()
    assert owner() is not None
    assert np.array_equal(y.numpy(), w.matmul(x).numpy())


@on_cpu
def test_iree_does_not_say_where_memory_lies(environment):
    device = emulated(runtime="iree")
    buffer = device.from_dlpack(np.arange(3, dtype=np.float32))
    assert np.array_equal(buffer.numpy(), np.arange(3))
    for call in (buffer.__dlpack_device__, buffer.__dlpack__):
        with pytest.raises(BufferError, match="IREE's runtime"):
            call()


def test_the_device_of_a_gpu():
    if SPEC == "cpu":
        pytest.skip("there is none")
    device = iq.Device(SPEC, bundle=BUNDLE)
    kind, _, index = device.name.partition(":")
    assert device.dlpack_device == ({"cuda": dlpack.CUDA, "hip": dlpack.ROCM}[kind], int(index))
