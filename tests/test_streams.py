"""Streams of a GPU: what is enqueued runs later and in order, buffers may be dropped at once, and what lacks an order shows as wrong.

IQ_STREAM_CALLS: how many calls each of four threads makes on an emulated GPU.

On an emulated GPU nothing runs before somebody waits, and then the streams run in an order drawn at random; on a real one (IQ_TEST_DEVICE)
the same tests run as they are, but for those that ask what the emulator saw.
"""

import gc
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import BUNDLE, SPEC, OnDemandFor

import iq
from iq import runtime
from iq.emulator.device import EmulatedGpu
from iq.emulator.memory import Memory
from iq.errors import DeviceError
from iq.runtime.gpu import pool
from iq.targets import TARGETS

EMULATED = [f"emulated:{id}" for id in ("gfx942", "gfx1100", "gfx1201")]
N, K = 40, 256

emulator = pytest.mark.skipif(SPEC != "cpu", reason="about an emulated GPU")


@pytest.fixture(scope="module", params=EMULATED if SPEC == "cpu" else [SPEC])
def device(environment, request):
    return iq.Device(request.param, bundle=BUNDLE)


def emulated(processor="gfx1100", seed=1, keep=False, provider=None, **options):
    """A device of its own, whose streams run in an order drawn from `seed`; keep: with memory and scratch kept as on a real GPU.

    provider: of its kernels, by default the compiler. options: as EmulatedGpu takes them.
    """
    gpu = EmulatedGpu(f"emulated:{processor}", **options)
    opened = runtime.Device(gpu.runtime, provider=provider or OnDemandFor(TARGETS[processor]))
    gpu.defer(seed)
    if keep:
        opened._backend.pool = pool.Pool(opened._backend, keep=True)
        opened._backend.fresh_scratch = False
    return opened, gpu


def weights(device, rng, format="q4_0", n=N, k=K):
    w = iq.QTensor.quantize(rng.standard_normal((n, k), dtype=np.float32), format, device)
    return w, w.dequantize().numpy().astype(np.float64)


def close(y, x, exact):
    """Whether a product is right, to what quantizing the activations costs."""
    want = x.astype(np.float64) @ exact.T
    return ((np.asarray(y) - want) ** 2).sum() <= 1e-3 * (want**2).sum()


# ---- One stream


@emulator
def test_calls_return_before_the_work_is_done(environment, rng):
    device, gpu = emulated()
    w, exact = weights(device, rng)
    x = rng.standard_normal((3, K), dtype=np.float32)
    ran = len(gpu.launches)
    y = w.matmul(x)
    assert len(gpu.launches) == ran
    device.synchronize()
    assert len(gpu.launches) == ran + 2
    assert close(y, x, exact)
    y = w.matmul(x)
    assert close(np.asarray(y), x, exact)  # which waits
    assert len(gpu.launches) == ran + 4


def test_a_chain_is_in_order(device, rng):
    w, exact = weights(device, rng, n=K)
    x = rng.standard_normal((2, K), dtype=np.float32)
    for stream in (None, device.stream()):
        y = device.put(x, stream=stream)
        for _ in range(3):
            y = w.matmul(y, stream=stream)
        want = x @ exact.T @ exact.T @ exact.T
        assert ((y.numpy() - want) ** 2).sum() <= 3e-3 * (want**2).sum()


def test_an_array_may_change_once_the_call_returns(device, rng):
    w, exact = weights(device, rng)
    x = rng.standard_normal((2, K), dtype=np.float32)
    given, ids = x.copy(), np.array([3, 1], np.int64)
    y, rows, put = w.matmul(given), w.get_rows(ids), device.put(given)
    given[:], ids[:] = np.nan, -1
    assert close(y, x, exact)
    assert np.array_equal(rows.numpy(), exact[[3, 1]].astype(np.float32))
    assert np.array_equal(put.numpy(), x)


def test_buffers_may_be_dropped_at_once(device, rng):
    """Their memory is used again by what comes later on the stream, never before."""
    w, exact = weights(device, rng)
    xs = [rng.standard_normal((1, K), dtype=np.float32) for _ in range(20)]
    ys = [w.matmul(device.put(x)) for x in xs]
    for _ in range(20):
        device.zeros((1, K), "f32")  # in the place of what has been dropped
    assert all(close(y, x, exact) for x, y in zip(xs, ys, strict=True))


def test_weights_may_be_dropped_at_once(device, rng):
    x, ys = rng.standard_normal((1, K), dtype=np.float32), []
    for _ in range(4):
        w, exact = weights(device, rng)
        ys.append((w.matmul(x), exact))
        del w
        device.zeros(N * K, "u8")
    assert all(close(y, x, exact) for y, exact in ys)


# ---- Several streams


def test_a_stream_by_its_handle(device, rng):
    w, exact = weights(device, rng)
    stream = device.stream()
    x = rng.standard_normal((2, K), dtype=np.float32)
    y = w.matmul(x, stream=stream.handle)
    assert close(y, x, exact)
    assert device.stream_of(stream.handle) is stream
    out = device.alloc((2, N), "f32")
    assert w.matmul(device.put(x), out=out, stream=stream.handle) is out
    assert close(out, x, exact)


def test_a_buffer_of_one_stream_on_another(device, rng):
    """The first use elsewhere waits for how it came to be; so may it be dropped."""
    w, exact = weights(device, rng)
    streams = [device.stream() for _ in range(3)]
    xs = [rng.standard_normal((2, K), dtype=np.float32) for _ in range(9)]
    ys = []
    for i, x in enumerate(xs):
        buffer = device.put(x, stream=streams[i % 3])
        ys.append(w.matmul(buffer, stream=streams[(i + 1) % 3]))
        del buffer
        device.zeros((2, K), "f32", stream=streams[i % 3])
    assert all(close(y, x, exact) for x, y in zip(xs, ys, strict=True))


@pytest.mark.parametrize("processor", ["gfx942", "gfx1100", "gfx1201"])
@emulator
def test_without_an_order_results_are_wrong_and_with_one_right(environment, rng, processor):
    """x is overwritten on one stream and read on another, which has used it before: only a wait gives an order then."""
    x = rng.standard_normal((2, 1, K), dtype=np.float32)
    right = {True: 0, False: 0}
    for seed in range(1, 13):
        for waits in right:
            device, _ = emulated(processor, seed)
            w, exact = weights(device, rng)
            writer, reader = device.stream(), device.stream()
            buffer = device.put(x[0])
            w.matmul(buffer, stream=reader)
            buffer.copy_from(device.put(x[1], stream=writer), stream=writer)
            device.synchronize()
            buffer.copy_from(device.put(x[0]), stream=writer)
            if waits:
                reader.wait(writer)
            y = w.matmul(buffer, stream=reader)
            right[waits] += close(y, x[0], exact)
    assert right[True] == 12
    assert right[False] < 12


@emulator
def test_streams_of_other_devices_are_refused(device, rng):
    w, _ = weights(device, rng)
    other, _ = emulated()
    x = rng.standard_normal((1, K), dtype=np.float32)
    for call in (lambda s: w.matmul(x, stream=s), lambda s: device.put(x, stream=s), lambda s: device.stream().wait(s)):
        with pytest.raises(DeviceError, match=r"another device|same device"):
            call(other.stream())
        with pytest.raises(DeviceError, match=r"no stream|same device"):
            call("s")
    for given in (-1, 1 << 64, True, 2.5):
        with pytest.raises(DeviceError, match="no stream"):
            w.matmul(x, stream=given)
    for given in (1, 2):  # CUDA's names for special streams
        with pytest.raises(DeviceError, match="invalid resource handle"):
            w.matmul(x, stream=given)


def test_a_dropped_stream_finishes_its_work(device, rng):
    w, exact = weights(device, rng)
    x = rng.standard_normal((2, K), dtype=np.float32)
    ys = []
    for _ in range(5):
        ys.append(w.matmul(x, stream=device.stream()))
        gc.collect()
    assert all(close(y, x, exact) for y in ys)


def test_threads_with_streams_of_their_own(device, rng):
    made = [weights(device, rng) for _ in range(2)]
    calls = 1000 if SPEC != "cpu" else int(os.environ.get("IQ_STREAM_CALLS", "12"))

    def work(seed):
        mine, stream = np.random.default_rng(seed), device.stream()
        x = mine.standard_normal((2, K), dtype=np.float32)
        buffer, out = device.put(x, stream=stream), device.alloc((2, N), "f32", stream=stream)
        for i in range(calls):
            w, exact = made[i % 2]
            w.matmul(buffer, out=out, stream=stream)
            if i % 5 == 4:
                assert close(out, x, exact)
        stream.synchronize()
        return True

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(4)))


def test_threads_on_one_stream(device, rng):
    """The dispatches of one call are not mixed with another's, whose scratch memory is the same."""
    w, exact = weights(device, rng)

    def work(seed):
        x = np.random.default_rng(seed).standard_normal((2, K), dtype=np.float32)
        return all(close(w.matmul(x), x, exact) for _ in range(4))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(4)))


# ---- Memory as on a real GPU: kept, and used again in stream order


@pytest.fixture
def kept(environment):
    return emulated(keep=True)


@emulator
def test_memory_is_used_again_on_its_stream_at_once(kept, rng):
    device, gpu = kept
    w, exact = weights(device, rng)
    x = rng.standard_normal((2, K), dtype=np.float32)
    before, addresses = len(gpu.memory.leaks()), set()
    for _ in range(10):
        y = w.matmul(x)
        addresses.add(y.address)
        assert close(y, x, exact)
    assert len(addresses) <= 2
    assert len(gpu.memory.leaks()) <= before + 4


@emulator
def test_memory_is_not_used_again_by_a_stream_that_may_be_ahead(kept, rng):
    device, _ = kept
    w, exact = weights(device, rng)
    streams = [device.stream() for _ in range(3)]
    checks = []
    for i in range(30):
        x, stream = rng.standard_normal((2, K), dtype=np.float32), streams[i % 3]
        checks.append((w.matmul(device.put(x, stream=streams[(i + 1) % 3]), stream=stream), x))
        if i % 7 == 6:
            assert all(close(y, x, exact) for y, x in checks)
            checks.clear()


@emulator
def test_memory_that_somebody_elses_stream_used_waits_for_the_device(kept, rng):
    device, _ = kept
    w, exact = weights(device, rng)
    theirs = device._backend.context.create_stream()
    for i in range(3 * pool._BATCH):
        x = rng.standard_normal((1, K), dtype=np.float32)
        y = w.matmul(device.put(x), stream=theirs)
        if i % 40 == 0:
            assert close(y, x, exact)
    assert len(device._backend.pool._waiting) < pool._BATCH


@emulator
def test_what_was_made_on_somebody_elses_stream_is_waited_for(environment, rng):
    for seed in range(1, 7):
        device, _ = emulated(seed=seed, keep=seed % 2 == 0)
        w, exact = weights(device, rng, n=K)
        x, theirs = rng.standard_normal((1, K), dtype=np.float32), device._backend.context.create_stream()
        w.matmul(x)
        for stream in (None, device.stream()):
            y = device.put(x, stream=theirs)
            assert close(w.matmul(y, stream=stream), x, exact)
            y = w.matmul(x, stream=theirs)
            want = w.matmul(w.matmul(x)).numpy()
            assert np.array_equal(w.matmul(y, stream=stream).numpy(), want)


@emulator
def test_the_workspace_grows_and_what_it_was_stays(kept, rng):
    device, gpu = kept
    w, exact = weights(device, rng, k=2048, n=8)
    stream = device.stream()
    checks = [(w.matmul(x, stream=stream), x) for x in (rng.standard_normal((m, 2048), dtype=np.float32) for m in (1, 8, 40, 1))]
    assert len(stream.blocks) == 2
    assert all(close(y, x, exact) for y, x in checks)
    blocks = {block.address for block in stream.blocks}
    assert blocks <= {a.start for a in gpu.memory.leaks()}


@emulator
def test_no_memory_left_gives_back_what_is_kept(kept, rng):
    device, gpu = kept
    nbytes = gpu.memory.capacity // 4
    for _ in range(9):
        buffer = device.alloc(nbytes // 4, "f32")
        with pytest.raises(DeviceError, match=r"cannot allocate \d+ bytes: \d+ of \d+ are free on emulated:gfx1100"):
            device.alloc(gpu.memory.capacity, "u8")
        del buffer
    assert device.zeros(4, "f32").numpy().sum() == 0


@emulator
def test_large_copies_take_several_pieces(kept, rng):
    device, _ = kept
    data = rng.integers(0, 256, (77 << 20) + 13, dtype=np.uint8)
    buffer = device.put(data)
    assert np.array_equal(buffer.numpy(), data)
    assert np.array_equal(buffer[12345:].numpy(), data[12345:])
    streams = [device.stream() for _ in range(2)]
    parts = [device.put(data[i << 20 : (i << 20) + 3_000_000], stream=streams[i % 2]) for i in range(20)]
    assert all(np.array_equal(part.numpy(), data[i << 20 : (i << 20) + 3_000_000]) for i, part in enumerate(parts))


@emulator
def test_many_small_copies_take_few_events(kept, rng):
    device, gpu = kept
    before = gpu.handles
    buffers = [device.put(np.full(3, i, np.int32)) for i in range(1000)]
    assert gpu.handles <= before + 260
    assert all((buffer.numpy() == i).all() for i, buffer in enumerate(buffers))


@emulator
def test_no_event_is_looked_at_whose_stream_is_gone_or_captured(environment, rng, monkeypatch):
    """HIP reads the stream that an event was recorded on, and HIP 6 invalidates a capture of it."""
    device, _ = emulated()
    context, recorded, gone = device._backend.context, {}, set()

    def watch(name, then):
        does = getattr(context, name)
        monkeypatch.setattr(context, name, lambda *arguments: (then(*arguments), does(*arguments))[1])

    def look(event):
        assert recorded[event] not in gone
        assert not context.is_capturing(recorded[event])

    watch("record_event", recorded.__setitem__)
    watch("destroy_stream", gone.add)
    watch("query_event", look)
    watch("synchronize_event", look)
    large = rng.standard_normal(3 << 20, dtype=np.float32)  # a few fill the ring: the next waits for the first
    device.put(large)
    first, second, dropped, foreign = device.stream(), device.stream(), device.stream(), context.create_stream()
    for stream in (first, second, dropped, foreign):
        device.put(large, stream=stream)
    context.synchronize_stream(foreign)
    context.destroy_stream(foreign)
    del stream, dropped
    gc.collect()
    for _ in range(3):
        device.put(large)
    other = device.stream()
    assert len(gone) == 2
    buffer = device.put(large, stream=first)
    with device.capture(first) as graph:
        second.wait(first)
        first.wait(second)
        with ThreadPoolExecutor(1) as thread:
            for _ in range(4):
                assert np.array_equal(thread.submit(lambda: device.put(large).numpy()).result(), large)
        with ThreadPoolExecutor(1) as thread:
            for _ in range(4):
                thread.submit(lambda: device.put(large, stream=other)).result()
    graph.launch()
    assert np.array_equal(buffer.numpy(), large)


@emulator
def test_memory_that_a_stream_is_to_free_is_waited_for(environment, monkeypatch):
    monkeypatch.setattr("iq.emulator.device.Memory", lambda: Memory(96 << 20))  # the ring of copies takes a third of it
    device, _ = emulated()
    for _ in range(3):
        buffer = device.zeros(50 << 20, "u8")
        del buffer
    with device.capture() as graph:
        buffer = device.zeros(50 << 20, "u8")
    graph.launch()
    assert not buffer.numpy().any()


@emulator
def test_a_thread_whose_device_is_gone_uses_another(environment):
    """It may have the number that the first one had."""
    with ThreadPoolExecutor(1) as thread:
        for _ in range(3):
            device, _ = emulated()
            assert np.array_equal(thread.submit(lambda d: d.put(np.arange(9)).numpy(), device).result(), np.arange(9))
            thread.submit(gc.collect).result()
            del device, _
            gc.collect()


# ---- Failures


@emulator
def test_a_fault_surfaces_at_a_wait_and_loses_the_device(environment, rng):
    device, gpu = emulated()
    w, _ = weights(device, rng)
    x = device.put(rng.standard_normal((1, K), dtype=np.float32))
    gpu.memory.free(w._packed.memory.address)
    y = w.matmul(x)
    with pytest.raises(iq.errors.IqError, match="has been freed"):
        y.numpy()
    for call in (lambda: w.matmul(x), y.numpy, device.synchronize, lambda: device.alloc(1, "u8"), device.stream):
        with pytest.raises(DeviceError, match="lost, with all that is on it"):
            call()


@emulator
def test_what_was_lost_is_opened_anew(environment, rng):
    device = iq.Device("emulated:gfx1031", bundle=None)
    assert iq.Device("emulated:gfx1031") is device
    buffer = device.put(np.ones(4, np.float32))
    device.emulated.failed(RuntimeError("planted"))
    with pytest.raises(RuntimeError, match="planted"):
        buffer.numpy()
    device._backend.unusable = "lost"
    again = iq.Device("emulated:gfx1031")
    assert again is not device
    assert again.put(np.ones(4, np.float32)).numpy().sum() == 4


@emulator
def test_a_cpu_has_streams_that_are_always_done(environment, rng):
    cpu = iq.Device("cpu")
    w, exact = weights(cpu, rng)
    stream = cpu.stream()
    x = rng.standard_normal((2, K), dtype=np.float32)
    assert close(w.matmul(x, stream=stream), x, exact)
    stream.synchronize()
    stream.wait(cpu.stream())
    cpu.synchronize()
    for given in (3, "s", iq.Device("cpu", threads=1).stream()):
        with pytest.raises(DeviceError, match="no stream of cpu"):
            w.matmul(x, stream=given)
    with pytest.raises(DeviceError, match="no graphs"), cpu.capture():
        pass


@emulator
def test_a_thread_that_waits_lets_others_call(environment, rng):
    device, _ = emulated()
    w, exact = weights(device, rng)
    x = rng.standard_normal((2, K), dtype=np.float32)
    done = threading.Event()

    def work():
        for _ in range(5):
            assert close(w.matmul(x), x, exact)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    while not done.is_set():
        device.synchronize()
    thread.join()
