"""Graphs: captured once, run again and again on other inputs; what cannot be captured is refused, and nothing is lost by that."""

import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import BUNDLE, SPEC
from test_streams import EMULATED, K, N, close, emulated, emulator, weights

import iq
from iq.errors import DeviceError


@pytest.fixture(scope="module", params=EMULATED if SPEC == "cpu" else [SPEC])
def device(environment, request):
    return iq.Device(request.param, bundle=BUNDLE)


def activations(rng, m=2):
    return rng.standard_normal((m, K), dtype=np.float32)


def test_a_graph_runs_on_what_its_buffers_hold(device, rng):
    w, exact = weights(device, rng)
    x, y = device.put(activations(rng)), device.alloc((2, N), "f32")
    w.matmul(x)  # loads its kernels
    with device.capture() as graph:
        assert w.matmul(x, out=y) is y
    for stream in (None, device.stream(), device.stream().handle):
        now = activations(rng)
        x.copy_from(now, stream=stream)
        y.fill_zero(stream=stream)
        graph.launch(stream)
        assert close(y, now, exact)


@emulator
def test_nothing_runs_in_a_capture(environment, rng):
    device, gpu = emulated()
    w, exact = weights(device, rng)
    now = activations(rng)
    x, y = device.put(now), device.zeros((2, N), "f32")
    w.matmul(x, out=y).fill_zero()
    device.synchronize()
    ran = len(gpu.launches)
    with device.capture() as graph:
        w.matmul(x, out=y)
    assert not y.numpy().any()
    assert len(gpu.launches) == ran
    graph.launch()
    assert len(gpu.launches) == ran
    assert close(y, now, exact)
    assert len(gpu.launches) == ran + 2


def test_a_chain_with_buffers_of_its_own(device, rng):
    """Results between are made in the capture; the graph keeps them, whoever drops them, and nobody else gets their memory."""
    (a, exact_a), (b, exact_b) = weights(device, rng, n=K), weights(device, rng, "q8_0")
    x = device.put(activations(rng))
    b.matmul(a.matmul(x))
    with device.capture() as graph:
        y = b.matmul(a.matmul(x))
    gc.collect()
    others = [device.zeros((2, K), "f32") for _ in range(8)]
    for _ in range(3):
        now = activations(rng)
        x.copy_from(now)
        graph.launch()
        want = now @ exact_a.T @ exact_b.T
        assert ((y.numpy() - want) ** 2).sum() <= 3e-3 * (want**2).sum()
    assert not any(other.numpy().any() for other in others)


def test_scratch_of_a_graph_is_its_own(device, rng):
    """A replay on one stream while calls run on another, which the capture was made on."""
    w, exact = weights(device, rng)
    now, stream = activations(rng, 8), device.stream()
    x, y = device.put(now), device.alloc((8, N), "f32")
    w.matmul(x, stream=stream)
    with device.capture(stream) as graph:
        w.matmul(x, out=y)
    theirs = [activations(rng, 8) for _ in range(6)]
    results = []
    for other in theirs:
        graph.launch()
        results.append(w.matmul(other, stream=stream))
    assert close(y, now, exact)
    assert all(close(result, other, exact) for result, other in zip(results, theirs, strict=True))


def test_copies_and_zeros_are_captured(device, rng):
    source, target = device.put(np.arange(64, dtype=np.float32)), device.zeros(64, "f32")
    with device.capture() as graph:
        target.fill_zero()
        target[8:16].copy_from(source[40:48])
        duplicate = target.copy()
    target.copy_from(np.ones(64, np.float32))
    source.copy_from(np.arange(64, 128, dtype=np.float32))
    graph.launch()
    want = np.zeros(64, np.float32)
    want[8:16] = np.arange(104, 112)
    assert np.array_equal(target.numpy(), want)
    assert np.array_equal(duplicate.numpy(), want)


def test_two_streams_in_one_capture(device, rng):
    (a, exact_a), (b, exact_b) = weights(device, rng), weights(device, rng)
    x = device.put(activations(rng))
    first, second = device.stream(), device.stream()
    a.matmul(x, stream=first), b.matmul(x, stream=second)
    with device.capture(first) as graph:
        second.wait(first)
        y = a.matmul(x)
        z = b.matmul(x, stream=second)
        first.wait(second)
        copied = z.copy()
    for _ in range(4):
        now = activations(rng)
        x.copy_from(now)
        graph.launch()
        assert close(y, now, exact_a) and close(z, now, exact_b) and close(copied, now, exact_b)
    assert close(b.matmul(x, stream=second), now, exact_b)  # the streams are as they were


def test_replays_on_different_streams_follow_one_another(device, rng):
    w, exact = weights(device, rng)
    now = activations(rng)
    x, y = device.put(now), device.alloc((2, N), "f32")
    w.matmul(x)
    with device.capture() as graph:
        w.matmul(x, out=y)
    streams = [device.stream() for _ in range(3)]
    for i in range(9):
        graph.launch(streams[i % 3])
    assert close(y, now, exact)


# ---- What cannot be captured


def refusals(device, w, x, y):
    other = iq.QTensor.from_bytes(w.to_bytes(), "q4_0", w.shape, device)
    return {
        "reading a buffer": lambda: np.asarray(y),
        "copying from the host": lambda: device.put(np.ones(4, np.float32)),
        "copying from the host.*": lambda: x.copy_from(np.zeros(x.shape, np.float32)),
        "waiting for the device": device.synchronize,
        "copying from the host ": lambda: other.matmul(np.zeros(x.shape, np.float32)),
        "reading a buffer on the host": w.to_bytes,
        "copying from the host cannot be captured": lambda: w.get_rows([1, 2]),
        "captures do not nest": lambda: device.capture().__enter__(),
    }


def test_what_cannot_be_captured_says_why_and_leaves_the_capture_alone(device, rng):
    w, exact = weights(device, rng)
    now = activations(rng)
    x, y = device.put(now), device.alloc((2, N), "f32")
    w.matmul(x), w.get_rows([0])
    calls = refusals(device, w, x, y)
    with device.capture() as graph:
        for said, call in calls.items():
            with pytest.raises(DeviceError, match=said):
                call()
        w.matmul(x, out=y)
    graph.launch()
    assert close(y, now, exact)


@emulator
def test_kernels_have_to_be_loaded_before(environment, rng):
    device, _ = emulated()
    w, exact = weights(device, rng)
    x8 = iq.QTensor.quantize(rng.standard_normal((N, K), dtype=np.float32), "q8_0", device)
    now = activations(rng)
    x, y = device.put(now), device.alloc((2, N), "f32")
    with (
        pytest.raises(DeviceError, match=r"loading the kernels of .*q8_0 \(call what needs them once\) cannot be captured"),
        device.capture(),
    ):
        x8.matmul(x, out=y)
    x8.matmul(x)
    with device.capture() as graph:
        w.matmul(x, out=y)
    graph.launch()
    assert close(y, now, exact)


def test_an_error_ends_the_capture_and_nothing_else(device, rng):
    w, exact = weights(device, rng)
    now, stream = activations(rng), device.stream()
    x, y = device.put(now), device.alloc((2, N), "f32")
    w.matmul(x, out=y)
    with pytest.raises(ZeroDivisionError), device.capture(stream) as failed:
        w.matmul(x, out=y)
        1 / 0  # noqa: B018
    with pytest.raises(DeviceError, match="before its capture has ended, or after that has failed"):
        failed.launch()
    assert close(w.matmul(x, stream=stream), now, exact)
    with device.capture(stream) as graph:
        w.matmul(x, out=y)
        with pytest.raises(DeviceError, match="before its capture has ended"):
            graph.launch()
        with pytest.raises(DeviceError, match="is being captured"):
            stream.synchronize()
    graph.launch(stream)
    assert close(y, now, exact)


def test_a_stream_that_does_not_come_back_is_refused(device, rng):
    w, exact = weights(device, rng)
    now = activations(rng)
    x = device.put(now)
    w.matmul(x)
    first, second = device.stream(), device.stream()
    with pytest.raises(DeviceError, match=r"(?i)unjoined"), device.capture(first):
        second.wait(first)
        w.matmul(x, stream=second)
    assert all(close(w.matmul(x, stream=stream), now, exact) for stream in (first, second))


@emulator
def test_a_failed_capture_that_the_driver_does_not_end(environment, rng, monkeypatch):
    """As HIP, which leaves the streams under capture."""
    device, _ = emulated()
    w, exact = weights(device, rng)
    now = activations(rng)
    x = device.put(now)
    w.matmul(x)
    context = device._backend.context
    code = 904  # hipErrorStreamCaptureUnjoined

    def end_capture(stream):
        raise context.driver.error(code, "hipStreamEndCapture")

    first, second = device.stream(), device.stream()
    with monkeypatch.context() as patch:
        patch.setattr(context, "end_capture", end_capture)
        with pytest.raises(DeviceError, match="Unjoined"), device.capture(first):
            second.wait(first)
            w.matmul(x, stream=second)
    assert not context.is_capturing(first.raw)
    assert device._backend.stream(first.handle) is first
    assert all(close(w.matmul(x, stream=stream), now, exact) for stream in (first, second))
    with device.capture(first) as graph:
        y = w.matmul(x, stream=first)
    graph.launch(first)
    assert close(y, now, exact)


@emulator
def test_one_device_waits_while_another_is_captured(environment, rng, monkeypatch):
    """hipDeviceSynchronize would invalidate the capture."""
    device, other = emulated()[0], emulated()[0]
    x = device.put(activations(rng))
    y = device.alloc(x.shape, "f32")
    with device.capture() as graph:
        y.copy_from(x)
        monkeypatch.setattr(other._backend.context, "synchronize", lambda: pytest.fail("hipDeviceSynchronize in a capture"))
        other.synchronize()
        monkeypatch.undo()
    graph.launch()
    other.synchronize()
    assert np.array_equal(y.numpy(), x.numpy())


def test_other_threads_go_on_while_one_captures(device, rng):
    w, exact = weights(device, rng)
    now = activations(rng)
    x, y = device.put(now), device.alloc((2, N), "f32")
    w.matmul(x, out=y)
    right = []

    def work():
        for _ in range(3):
            theirs = activations(rng)
            right.append(close(w.matmul(theirs), theirs, exact))

    with device.capture() as graph:
        w.matmul(x, out=y)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    graph.launch()
    assert right == [True] * 3
    assert close(y, now, exact)


def test_two_threads_capture_at_once(device, rng):
    """Each its own graph; what one thread waits for does not break the other's capture."""
    w, exact = weights(device, rng)
    x = device.put(activations(rng))
    w.matmul(x)
    together, made = threading.Barrier(2), {}

    def work(n):
        y = device.alloc((2, N), "f32")
        with device.capture() as graph:
            together.wait()
            w.matmul(x, out=y)
            together.wait()
        device.synchronize()
        made[n] = graph, y

    with device.capture() as outer:
        w.matmul(x)
        thread = threading.Thread(target=device.synchronize)
        thread.start()
        thread.join()
    outer.launch()
    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    now = activations(rng)
    x.copy_from(now)
    for graph, y in made.values():
        graph.launch()
        assert close(y, now, exact)


@emulator
def test_captures_that_fail_leave_nothing_behind(environment, rng):
    device, gpu = emulated()
    w, exact = weights(device, rng)
    x = device.put(now := activations(rng))
    y, before = w.matmul(x), None
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), device.capture():
            w.matmul(x, out=y)
            1 / 0  # noqa: B018
        gc.collect()
        device.synchronize()
        before = before or gpu.handles
    assert gpu.handles == before
    assert close(w.matmul(x), now, exact)


@emulator
@pytest.mark.parametrize("name", ["begin_capture", "end_capture"])
@pytest.mark.parametrize("late", [False, True])
def test_an_interrupt_leaves_no_stream_captured(environment, rng, monkeypatch, name, late):
    """Before the driver begins or ends the capture, or after."""
    device, _ = emulated()
    w, exact = weights(device, rng)
    x, stream = device.put(now := activations(rng)), device.stream()
    w.matmul(x)
    context = device._backend.context
    does, times = getattr(context, name), iter([True])

    def interrupted(handle):
        first = next(times, False)
        if first and not late:
            raise KeyboardInterrupt
        given = does(handle)
        if first:
            raise KeyboardInterrupt
        return given

    monkeypatch.setattr(context, name, interrupted)
    with pytest.raises(KeyboardInterrupt), device.capture(stream):
        w.matmul(x)
    assert close(w.matmul(x), now, exact)
    assert close(w.matmul(x, stream=stream), now, exact)
    device.synchronize()
    with device.capture(stream) as graph:
        y = w.matmul(x)
    graph.launch()
    assert close(y, now, exact)


def test_two_captures_are_not_merged(device, rng):
    x, first, second = device.put(activations(rng)), device.stream(), device.stream()
    together, graphs = threading.Barrier(2), []

    def work():
        with device.capture(second) as graph:
            together.wait()
            together.wait()
            x.fill_zero()
        graphs.append(graph)

    thread = threading.Thread(target=work)
    with device.capture(first) as graph:
        thread.start()
        together.wait()
        for one, other in ((first, second), (second, first)):
            with pytest.raises(DeviceError, match="captured in another graph"):
                one.wait(other)
        together.wait()
        thread.join()
        duplicate = x.copy()
    for each in (*graphs, graph):
        each.launch()
    assert not duplicate.numpy().any()


def test_streams_that_others_give_work_to_join_no_capture(device, rng):
    x, stream = device.put(now := activations(rng)), device.stream()
    own, theirs = device.stream_of(None), device._backend.context.create_stream()
    with device.capture(stream) as graph:
        for given, said in ((own, "every thread's"), (device.stream_of(theirs), "somebody else's")):
            with pytest.raises(DeviceError, match=rf"{said}, and cannot be captured: only streams of Device\.stream\(\) can"):
                given.wait(stream)
        duplicate = x.copy()
    graph.launch()
    assert np.array_equal(duplicate.numpy(), now)
    device._backend.context.destroy_stream(theirs)


@emulator
def test_what_a_stream_had_to_do_before_it_joined_is_done(environment, rng):
    now = activations(rng)
    for seed in range(1, 6):
        device, _ = emulated(seed=seed)
        w, exact = weights(device, rng)
        x, first, second = device.put(now), device.stream(), device.stream()
        w.matmul(x)
        with device.capture(first):
            y = w.matmul(x, stream=second)
            second.wait(first)
            with ThreadPoolExecutor(1) as thread:
                assert close(thread.submit(y.numpy).result(), now, exact)
            first.wait(second)


@emulator
def test_replays_of_two_threads_follow_one_another(environment, rng, monkeypatch):
    """Each makes one more of the bytes what the first is."""
    device, _ = emulated()
    row, moved = device.put(np.eye(1, 64, dtype=np.uint8)[0]), device.zeros(63, "u8")
    with device.capture() as graph:
        moved.copy_from(row[:63])
        row[1:].copy_from(moved)
    context = device._backend.context
    launch = context.launch_graph

    def slowly(*arguments):
        time.sleep(0.002)
        launch(*arguments)

    monkeypatch.setattr(context, "launch_graph", slowly)

    def work(_):
        stream = device.stream()
        for _ in range(3):
            graph.launch(stream)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(work, range(2)))
    assert row.numpy().sum() == 7


def test_threads_capture_and_drop_streams(device, rng):
    """While one waits for all streams, none of them is captured or destroyed."""
    w, exact = weights(device, rng)
    x = device.put(now := activations(rng, 1))
    w.matmul(x)

    def work(seed):
        random = np.random.default_rng(seed)
        for _ in range(8):
            stream = device.stream()
            with device.capture(stream if random.random() < 0.5 else None) as graph:
                y = w.matmul(x)
            graph.launch(stream)
            if random.random() < 0.5:
                device.synchronize()
        return close(y, now, exact)

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(4)))


def test_a_graph_keeps_what_it_uses_and_no_more(device, rng):
    w, _ = weights(device, rng)
    x, y = device.put(activations(rng)), device.alloc((2, N), "f32")
    w.matmul(x, out=y)
    with device.capture() as graph:
        w.matmul(x, out=y)
    memories = [weakref.ref(memory) for memory in (w._packed.memory, x.memory, y.memory)]
    graph.launch()
    del w, x, y
    gc.collect()
    assert all(memory() is not None for memory in memories)
    graph.launch()
    del graph
    gc.collect()
    assert all(memory() is None for memory in memories)
    device.synchronize()
    assert device.zeros(4, "f32").numpy().sum() == 0


def test_graphs_of_many_calls(device, rng):
    w, exact = weights(device, rng, n=K)
    now = activations(rng, 1)
    x = device.put(now)
    ys = [device.alloc((1, K), "f32") for _ in range(12)]
    w.matmul(x)
    with device.capture() as graph:
        for y in ys:
            w.matmul(x, out=y)
    graph.launch()
    graph.launch()
    assert all(close(y, now, exact) for y in ys)
