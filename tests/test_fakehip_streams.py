"""The fake HIP runtime's queues: in which orders what is enqueued runs, and what becomes of it when something goes wrong."""

import ctypes
import threading

import pytest
from test_fakehip import (
    DEFAULT,
    DEVICE_TO_HOST,
    HOST_TO_DEVICE,
    INVALID_HANDLE,
    INVALID_VALUE,
    LAUNCH_FAILURE,
    NOT_SUPPORTED,
    SUCCESS,
    Api,
    KernelNode,
    Recorder,
    p,
    size,
)

from iq.emulator.device import EmulatedGpu
from iq.emulator.faults import LaunchError

NOT_READY, ILLEGAL_ADDRESS = 600, 700

SEEDS = range(1, 21)


class Calculator(Recorder):
    """Its kernel makes x at an address 3 * x + number, so that every order of launches gives another x."""

    def launch(self, function, grid, workgroup, kernarg):
        self._raise()
        address, number = int.from_bytes(kernarg[:8], "little"), int.from_bytes(kernarg[16:20], "little")
        self.launched.append(number)
        if not any(start <= address and address + 8 <= end for start, end in self.memory.regions().tolist()):
            raise self.memory.fault(address, 8, "kernel")
        x = ctypes.c_int64.from_address(address)
        x.value = 3 * x.value + number


@pytest.fixture
def api(environment):
    api = Api(Calculator)
    api.attached.defer(1)
    yield api
    api.attached.defer(0)
    api.close()


def zeros(api, count=1):
    address = api.malloc(8 * count)
    assert api.hipMemset(p(address), 0, size(8 * count)) == SUCCESS
    return address


def value(address):
    return ctypes.c_int64.from_address(address).value


def expected(*numbers):
    x = 0
    for number in numbers:
        x = 3 * x + number
    return x


# ---- Orders


def test_nothing_runs_before_somebody_waits(api):
    kernel, stream, x = api.kernel(), api.stream(), zeros(api)
    for number in range(1, 10):
        assert api.launch(kernel, stream, x, number) == SUCCESS
    assert api.gpu.launched == []
    assert api.hipStreamSynchronize(stream) == SUCCESS
    assert api.gpu.launched == [*range(1, 10)]
    assert value(x) == expected(*range(1, 10))


def test_at_once_unless_deferred(api):
    kernel, stream, x = api.kernel(), api.stream(), zeros(api)
    assert api.launch(kernel, stream, x, 1) == SUCCESS
    api.attached.defer(0)  # which runs what is left
    assert api.gpu.launched == [1]
    assert api.launch(kernel, stream, x, 2) == SUCCESS
    assert api.gpu.launched == [1, 2]


@pytest.mark.parametrize(("name", "arguments"), [("hipStreamCreate", ()), ("hipStreamCreateWithPriority", (1, -1))])
def test_other_ways_to_make_a_stream(api, name, arguments):
    kernel, stream, x = api.kernel(), p(api.new(name, *arguments)), zeros(api)
    assert api.launch(kernel, stream, x, 1) == SUCCESS
    assert api.hipStreamQuery(None) == SUCCESS  # the null stream is a queue of its own
    assert api.hipStreamSynchronize(stream) == SUCCESS
    assert value(x) == 1


def test_an_emulated_gpu_defers(environment):
    gpu = EmulatedGpu("emulated:gfx1100")
    gpu.defer()
    gpu.defer(0)
    assert gpu.handles == 0


@pytest.mark.parametrize(
    "wait", ["hipDeviceSynchronize", "hipCtxSynchronize", "hipFree", "hipHostFree", "hipModuleUnload", "hipMemcpy", "hipMemset"]
)
def test_what_waits(api, wait):
    kernel, stream, x, host = api.kernel(), api.stream(), zeros(api), api.new("hipHostMalloc", size(8), 0)
    other, module = (
        api.malloc(8),
        p(api.new("hipModuleLoadData", b"\x7fELF\x02\x01\x01" + bytes(33) + (64).to_bytes(8, "little") + bytes(16))),
    )
    null = wait in ("hipMemcpy", "hipMemset")  # these wait for the null stream
    assert api.launch(kernel, None if null else stream, x, 5) == SUCCESS
    arguments = {
        "hipFree": (p(other),),
        "hipHostFree": (p(host),),
        "hipModuleUnload": (module,),
        "hipMemcpy": (p(host), p(x), size(8), DEFAULT),
        "hipMemset": (p(other), 0, size(8)),
    }
    assert getattr(api, wait)(*arguments.get(wait, ())) == SUCCESS
    assert value(x) == 5
    if wait == "hipMemcpy":
        assert value(host) == 5


def two_streams(api, seed, events):
    """The order in which two streams' kernels ran, with the second waiting for the first's middle or not."""
    api.attached.defer(seed)
    api.gpu.launched.clear()
    kernel, a, b, event, x = api.kernel(), api.stream(), api.stream(), api.event(), zeros(api)
    for number in (1, 2, 3):
        assert api.launch(kernel, a, x, number) == SUCCESS
    if events:
        assert api.hipEventRecord(event, a) == SUCCESS
        assert api.hipStreamWaitEvent(b, event, 0) == SUCCESS
    for number in (11, 12):
        assert api.launch(kernel, b, x, number) == SUCCESS
    for number in (4, 5):
        assert api.launch(kernel, a, x, number) == SUCCESS
    assert api.hipDeviceSynchronize() == SUCCESS
    return list(api.gpu.launched)


def test_two_streams(api):
    orders = [two_streams(api, seed, events=False) for seed in SEEDS]
    for order in orders:
        assert [n for n in order if n < 10] == [1, 2, 3, 4, 5]
        assert [n for n in order if n > 10] == [11, 12]
    assert {order.index(11) < order.index(1) for order in orders} == {True, False}
    assert any(order[-1] > 10 for order in orders)  # one far behind, or far ahead, of the other
    assert any(order[:2] == [11, 12] for order in orders)
    assert len({tuple(order) for order in orders}) > 5
    assert two_streams(api, 7, events=False) == two_streams(api, 7, events=False)


def test_an_event_orders_two_streams(api):
    orders = [two_streams(api, seed, events=True) for seed in SEEDS]
    assert all(order.index(11) > order.index(3) for order in orders)
    assert {order.index(11) < order.index(4) for order in orders} == {True, False}  # only what was before the record is waited for


def test_a_wait_is_for_the_latest_record_of_its_time(api):
    kernel, a, b, event, x = api.kernel(), api.stream(), api.stream(), api.event(), zeros(api)
    late = False
    for seed in SEEDS:
        api.attached.defer(seed)
        api.gpu.launched.clear()
        assert api.hipStreamWaitEvent(b, api.event(), 0) == SUCCESS  # never recorded: nothing to wait for
        for number in (1, 2):
            assert api.launch(kernel, a, x, number) == SUCCESS
            assert api.hipEventRecord(event, a) == SUCCESS
            if number == 1:
                assert api.hipStreamWaitEvent(b, event, 0) == SUCCESS
        assert api.launch(kernel, b, x, 3) == SUCCESS
        assert api.hipStreamSynchronize(b) == SUCCESS
        order = list(api.gpu.launched)
        assert order.index(1) < order.index(3)
        late |= 2 not in order
        assert api.hipEventSynchronize(event) == SUCCESS
        assert 2 in api.gpu.launched
    assert late


def test_an_event_of_another_device(api):
    other = Api(Calculator)
    other.attached.defer(1)
    stream, event, x, here = other.stream(), other.event(), zeros(other), api.new("hipStreamCreate")
    assert other.launch(other.kernel(), stream, x, 1) == SUCCESS
    assert other.hipEventRecord(event, stream) == SUCCESS
    api.library.hipCtxSetCurrent(p(api.context))
    ours = api.stream()
    assert api.hipEventRecord(event, ours) == INVALID_HANDLE
    assert api.hipStreamWaitEvent(p(here), event, 0) == SUCCESS
    assert api.hipStreamWaitEvent(ours, event, 0) == SUCCESS
    assert value(x) == 1  # waited for at once
    other.close()


def test_queries_make_progress(api):
    kernel, stream, event, x = api.kernel(), api.stream(), api.event(), zeros(api)
    assert api.hipEventQuery(event) == SUCCESS  # not recorded
    for number in range(20):
        assert api.launch(kernel, stream, x, number) == SUCCESS
    assert api.hipEventRecord(event, stream) == SUCCESS
    seen = [api.hipEventQuery(event) for _ in range(200)]
    assert seen == sorted(seen, reverse=True)
    assert {*seen} == {NOT_READY, SUCCESS}
    assert api.launch(kernel, stream, x, 1) == SUCCESS
    seen = [api.hipStreamQuery(stream) for _ in range(50)]
    assert seen[-1] == SUCCESS
    milliseconds = ctypes.c_float()
    assert api.hipEventElapsedTime(ctypes.byref(milliseconds), event, api.event()) == INVALID_HANDLE  # never recorded
    assert api.hipEventRecord(event, stream) == SUCCESS
    assert api.hipEventElapsedTime(ctypes.byref(milliseconds), event, event) == NOT_READY


def test_a_long_queue_makes_its_caller_wait(api):
    kernel, stream, x = api.kernel(), api.stream(), zeros(api)
    for number in range(1100):
        assert api.launch(kernel, stream, x, number % 3) == SUCCESS
    assert len(api.gpu.launched) == 1100 - 1024
    assert api.hipStreamSynchronize(stream) == SUCCESS
    assert len(api.gpu.launched) == 1100


def test_host_functions_run_in_order(api):
    kernel, stream, x = api.kernel(), api.stream(), zeros(api)
    seen, inside = [], []

    def called(_):
        seen.append(value(x))
        inside.append(api.hipStreamSynchronize(stream))  # would wait for itself
        inside.append(api.launch(kernel, stream, x, 3))

    callback = ctypes.CFUNCTYPE(None, p)(called)
    assert api.launch(kernel, stream, x, 1) == SUCCESS
    assert api.hipLaunchHostFunc(stream, callback, None) == SUCCESS
    assert api.launch(kernel, stream, x, 2) == SUCCESS
    assert seen == []
    assert api.hipStreamSynchronize(stream) == SUCCESS
    assert seen == [1]
    assert inside == [NOT_SUPPORTED, SUCCESS]
    assert api.hipStreamSynchronize(stream) == SUCCESS
    assert value(x) == expected(1, 2, 3)


# ---- Copies


def test_pageable_memory_is_read_at_the_call_and_pinned_memory_later(api):
    stream, x = api.stream(), zeros(api, 3)
    pageable, pinned = ctypes.create_string_buffer(b"a" * 8, 8), api.new("hipHostMalloc", size(8), 0)
    registered = ctypes.create_string_buffer(b"a" * 8, 8)
    assert api.hipHostRegister(registered, size(8), 0) == SUCCESS
    ctypes.memset(pinned, ord("a"), 8)
    sources = [ctypes.addressof(pageable), pinned, ctypes.addressof(registered)]
    for n, source in enumerate(sources):
        assert api.hipMemcpyAsync(p(x + 8 * n), p(source), size(8), HOST_TO_DEVICE if n != 1 else DEFAULT, stream) == SUCCESS
    for source in sources:  # too early, of which only pageable memory allows it
        ctypes.memset(source, ord("b"), 8)
    assert ctypes.string_at(x, 24) == bytes(24)
    assert api.hipStreamSynchronize(stream) == SUCCESS
    assert ctypes.string_at(x, 24) == b"a" * 8 + b"b" * 16
    assert api.hipHostUnregister(registered) == SUCCESS


def test_results_arrive_when_the_copy_runs(api):
    stream, x, out = api.stream(), zeros(api), api.new("hipHostMalloc", size(8), 0)
    ctypes.memset(out, 7, 8)
    assert api.hipMemsetD32Async(p(x), 0x01010101, size(2), stream) == SUCCESS
    assert api.hipMemcpyAsync(p(out), p(x), size(8), DEVICE_TO_HOST, stream) == SUCCESS
    assert ctypes.string_at(out, 8) == b"\7" * 8
    assert api.hipStreamSynchronize(stream) == SUCCESS
    assert ctypes.string_at(out, 8) == b"\1" * 8


def test_addresses_are_checked_at_the_call(api):
    stream, x = api.stream(), zeros(api)
    assert api.hipMemsetAsync(p(x), 0, size(9), stream) == INVALID_VALUE
    assert "hipMemsetAsync" in str(api.gpu.memory.take_fault())
    assert api.hipMemcpyAsync(p(x), bytes(16), size(1 << 60), HOST_TO_DEVICE, stream) == INVALID_VALUE
    assert api.gpu.memory.take_fault() is not None
    assert api.hipStreamSynchronize(stream) == SUCCESS


# ---- Memory that is freed in the order of a stream


def test_a_free_waits_for_its_turn(api):
    kernel, stream = api.kernel(), api.stream()
    x = api.new("hipMallocAsync", size(8), stream)
    assert api.hipMemsetAsync(p(x), 0, size(8), stream) == SUCCESS
    assert api.launch(kernel, stream, x, 1) == SUCCESS
    assert api.hipFreeAsync(p(x), stream) == SUCCESS
    assert api.gpu.memory.leaks() == [(x, 8, 1)]
    assert api.hipStreamSynchronize(stream) == SUCCESS
    assert api.gpu.memory.leaks() == []
    assert api.gpu.memory.take_fault() is None


@pytest.mark.parametrize(("use", "code"), [("kernel", LAUNCH_FAILURE), ("copy", ILLEGAL_ADDRESS), ("memset", ILLEGAL_ADDRESS)])
def test_a_use_after_a_free(api, use, code):
    kernel, stream, y = api.kernel(), api.stream(), zeros(api)
    x = api.new("hipMallocAsync", size(8), stream)
    assert api.hipFreeAsync(p(x), stream) == SUCCESS
    status = {
        "kernel": lambda: api.launch(kernel, stream, x, 1),
        "copy": lambda: api.hipMemcpyDtoDAsync(p(y), p(x), size(8), stream),
        "memset": lambda: api.hipMemsetAsync(p(x), 0, size(8), stream),
    }[use]()
    assert status == SUCCESS
    assert api.hipStreamSynchronize(stream) == code
    assert "has been freed" in str(api.gpu.failures[0] if use == "kernel" else api.gpu.memory.take_fault())


def test_a_free_on_another_stream_is_a_race(api):
    kernel, a, b, event = api.kernel(), api.stream(), api.stream(), api.event()
    status = []
    for seed in SEEDS:
        other = Api(Calculator)
        other.attached.defer(seed)
        kernel, a, b = other.kernel(), other.stream(), other.stream()
        x = other.new("hipMallocAsync", size(8), a)
        assert other.launch(kernel, a, x, 1) == SUCCESS
        assert other.hipFreeAsync(p(x), b) == SUCCESS
        status.append(other.hipDeviceSynchronize())
        other.close()
    assert {*status} == {SUCCESS, LAUNCH_FAILURE}
    assert api.hipEventRecord(event, None) == SUCCESS  # this device goes on


# ---- Failures


def test_a_kernel_that_fails_in_a_queue(api):
    kernel, stream, event, x, y = api.kernel(), api.stream(), api.event(), zeros(api), api.new("hipMallocAsync", size(8), None)
    host = api.new("hipHostMalloc", size(8), 0)
    assert api.launch(kernel, stream, x, 1) == SUCCESS
    assert api.hipStreamSynchronize(stream) == SUCCESS
    api.gpu.error = LaunchError("no")
    for number in (2, 3):
        assert api.launch(kernel, stream, x, number) == SUCCESS
    assert api.hipFreeAsync(p(y), stream) == SUCCESS
    assert api.hipEventRecord(event, stream) == SUCCESS
    assert api.hipStreamSynchronize(stream) == LAUNCH_FAILURE
    assert api.gpu.failures == [api.gpu.error]
    api.gpu.error = None
    assert value(x) == 1  # the rest did not run
    for status in (
        api.hipStreamSynchronize(stream),
        api.hipDeviceSynchronize(),
        api.hipEventSynchronize(event),
        api.hipEventQuery(event),
        api.hipStreamQuery(stream),
        api.launch(kernel, stream, x, 4),
        api.hipMalloc(ctypes.byref(p()), size(8)),
        api.hipFree(p(x)),
        api.hipHostFree(p(host)),
    ):
        assert status == LAUNCH_FAILURE
    assert api.gpu.memory.allocations() == []  # yet what can be freed is
    for status in (api.hipStreamDestroy(stream), api.hipEventDestroy(event)):
        assert status == SUCCESS


# ---- What is destroyed while it is queued


def test_destroying_what_is_queued(api):
    kernel, a, b, event, x = api.kernel(), api.stream(), api.stream(), api.event(), zeros(api)
    graph = p(api.new("hipGraphCreate", 0))
    pointers, _values = api.arguments(x, 9)
    node = KernelNode((64, 1, 1), None, kernel, (1, 1, 1), ctypes.addressof(pointers), 0)
    api.new("hipGraphAddKernelNode", graph, None, size(0), ctypes.byref(node))
    api.new("hipGraphAddEventRecordNode", graph, None, size(0), event)
    run = p(api.new("hipGraphInstantiate", graph, None, None, size(0)))
    handles = api.attached.handles
    assert api.launch(kernel, a, x, 1) == SUCCESS
    assert api.hipGraphLaunch(run, a) == SUCCESS
    assert api.hipStreamWaitEvent(b, event, 0) == SUCCESS
    assert api.launch(kernel, b, x + 8 - 8, 2) == SUCCESS
    for status in (
        api.hipGraphExecDestroy(run),
        api.hipGraphDestroy(graph),
        api.hipEventDestroy(event),
        api.hipStreamDestroy(a),
        api.hipStreamDestroy(b),
    ):
        assert status == SUCCESS
    assert api.attached.handles == handles - 5
    assert api.gpu.launched == []
    assert api.hipDeviceSynchronize() == SUCCESS
    assert sorted(api.gpu.launched) == [1, 2, 9]
    assert api.gpu.launched[0] == 1


def test_a_graph_whose_module_is_gone(api):
    stream, x = api.stream(), zeros(api)
    module = p(api.new("hipModuleLoadData", b"\x7fELF\x02\x01\x01" + bytes(33) + (64).to_bytes(8, "little") + bytes(16)))
    kernel = p(api.new("hipModuleGetFunction", module, b"kernel"))
    graph = p(api.new("hipGraphCreate", 0))
    pointers, _values = api.arguments(x, 9)
    node = KernelNode((64, 1, 1), None, kernel, (1, 1, 1), ctypes.addressof(pointers), 0)
    api.new("hipGraphAddKernelNode", graph, None, size(0), ctypes.byref(node))
    run = p(api.new("hipGraphInstantiate", graph, None, None, size(0)))
    assert api.hipGraphLaunch(graph, stream) == INVALID_HANDLE  # not an instance
    assert api.hipGraphLaunch(run, stream) == SUCCESS
    assert api.hipModuleUnload(module) == SUCCESS
    assert api.gpu.launched == [9]
    assert api.hipGraphLaunch(run, stream) == INVALID_HANDLE


def test_a_graph_runs_in_any_order_of_its_dependencies(api):
    kernel, stream, x = api.kernel(), api.stream(), zeros(api)
    graph, nodes = p(api.new("hipGraphCreate", 0)), {}
    for number, after in {1: (), 2: (1,), 3: (1,), 4: (3,), 5: (2, 4)}.items():
        pointers, _values = api.arguments(x, number)
        node = KernelNode((64, 1, 1), None, kernel, (1, 1, 1), ctypes.addressof(pointers), 0)
        before = (p * len(after))(*(nodes[n] for n in after))
        nodes[number] = api.new("hipGraphAddKernelNode", graph, before, size(len(after)), ctypes.byref(node))
    run, orders = p(api.new("hipGraphInstantiate", graph, None, None, size(0))), set()
    for seed in SEEDS:
        api.attached.defer(seed)
        api.gpu.launched.clear()
        assert api.hipGraphLaunch(run, stream) == SUCCESS
        assert api.hipStreamSynchronize(stream) == SUCCESS
        orders.add(tuple(api.gpu.launched))
    assert orders == {(1, 2, 3, 4, 5), (1, 3, 2, 4, 5), (1, 3, 4, 2, 5)}


def test_a_context_that_is_released_drops_what_is_queued(environment):
    api = Api(Calculator)
    api.attached.defer(1)
    kernel, stream, x = api.kernel(), api.stream(), zeros(api)
    assert api.launch(kernel, stream, x, 1) == SUCCESS
    api.close()
    api.context = api.new("hipDevicePrimaryCtxRetain", api.attached.index)
    api.library.hipCtxPushCurrent(p(api.context))
    assert api.hipDeviceSynchronize() == SUCCESS
    assert api.gpu.launched == []
    assert api.launch(kernel, stream, x, 2) == SUCCESS
    api.close()
    del api.attached  # the last of its owners
    assert api.gpu.launched == []


def test_a_free_by_the_thread_that_executes(api):
    """As a finalizer of Python's, which may run in the middle of a kernel."""
    kernel, stream, x, y = api.kernel(), api.stream(), zeros(api), zeros(api)
    status = []
    callback = ctypes.CFUNCTYPE(None, p)(lambda _: status.append(api.hipFree(p(y))))
    assert api.hipLaunchHostFunc(stream, callback, None) == SUCCESS
    assert api.launch(kernel, stream, y, 1) == SUCCESS
    assert api.hipStreamSynchronize(stream) == SUCCESS
    assert status == [SUCCESS]
    assert api.gpu.launched == [1]  # y was there still
    assert [a.start for a in api.gpu.memory.leaks()] == [x]


# ---- Threads


def test_threads_with_streams_of_their_own(api):
    kernel, threads, rounds, failed = api.kernel(), 4, 30, []
    xs = [zeros(api) for _ in range(threads)]

    def work(n):
        try:
            assert api.hipCtxSetCurrent(p(api.context)) == SUCCESS
            stream, event, numbers = api.stream(), api.event(), []
            for turn in range(rounds):
                for number in range(5):
                    numbers.append((turn + number) % 2)
                    assert api.launch(kernel, stream, xs[n], numbers[-1]) == SUCCESS
                if turn % 3 == 0:
                    assert api.hipStreamSynchronize(stream) == SUCCESS
                elif turn % 3 == 1:
                    assert api.hipEventRecord(event, stream) == SUCCESS
                    assert api.hipEventSynchronize(event) == SUCCESS
                else:
                    assert api.hipFree(p(api.malloc(8))) == SUCCESS
                assert value(xs[n]) == ctypes.c_int64(expected(*numbers)).value
            assert api.hipStreamDestroy(stream) == SUCCESS
            assert api.hipEventDestroy(event) == SUCCESS
        except BaseException as error:
            failed.append(error)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failed == []
    assert len(api.gpu.launched) == threads * rounds * 5


def test_enqueueing_while_another_thread_executes(api):
    stream, other, x = api.stream(), api.stream(), zeros(api)
    entered, go_on = threading.Event(), threading.Event()

    def called(_):
        entered.set()
        assert go_on.wait(60)

    callback = ctypes.CFUNCTYPE(None, p)(called)
    assert api.hipLaunchHostFunc(stream, callback, None) == SUCCESS
    worker = threading.Thread(target=lambda: api.hipStreamSynchronize(stream))
    worker.start()
    assert entered.wait(60)
    assert api.hipMemsetAsync(p(x), 1, size(8), other) == SUCCESS
    assert api.hipStreamQuery(other) == NOT_READY
    go_on.set()
    assert api.hipStreamSynchronize(other) == SUCCESS
    worker.join()
    assert ctypes.string_at(x, 8) == b"\1" * 8
