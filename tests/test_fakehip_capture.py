"""The fake HIP runtime's stream capture: what becomes of a graph, and what is refused meanwhile, with which code."""

import ctypes
import threading

import pytest
from test_fakehip import DEVICE_TO_DEVICE, DEVICE_TO_HOST, ELF, HOST_TO_DEVICE, INVALID_VALUE, SUCCESS, Api, p, size
from test_fakehip_streams import SEEDS, Calculator, expected, value, zeros

ILLEGAL_STATE, UNSUPPORTED, INVALIDATED, MERGE, UNMATCHED = 401, 900, 901, 902, 903
UNJOINED, ISOLATION, CAPTURED_EVENT, WRONG_THREAD = 904, 905, 907, 908
GLOBAL, THREAD_LOCAL, RELAXED = 0, 1, 2


@pytest.fixture(params=[0, 1], ids=["at-once", "deferred"])
def api(environment, request):
    api = Api(Calculator)
    api.attached.defer(request.param)
    yield api
    api.attached.defer(0)
    api.close()


@pytest.fixture
def stream(api):
    return api.stream()


def begin(api, stream, mode=THREAD_LOCAL):
    assert api.hipStreamBeginCapture(stream, mode) == SUCCESS


def end(api, stream):
    """Instantiated."""
    graph = p()
    assert api.hipStreamEndCapture(stream, ctypes.byref(graph)) == SUCCESS
    run = p(api.new("hipGraphInstantiate", graph, None, None, size(0)))
    assert api.hipGraphDestroy(graph) == SUCCESS
    return run


def state(api, stream):
    status = ctypes.c_int(-1)
    assert api.hipStreamIsCapturing(stream, ctypes.byref(status)) == SUCCESS
    return status.value


def refused(api, stream, code=INVALIDATED):
    """How an invalid capture ends."""
    graph = p(1)
    assert state(api, stream) == 2
    assert api.hipMemsetAsync(None, 0, size(0), stream) == INVALIDATED
    assert api.hipStreamEndCapture(stream, ctypes.byref(graph)) == code
    assert graph.value is None
    assert state(api, stream) == 0


# ---- What is captured


def test_capture_and_replay(api, stream):
    kernel, x, y = api.kernel(), zeros(api), zeros(api)
    source, out = api.new("hipHostMalloc", size(8), 0), api.new("hipHostMalloc", size(8), 0)
    handles = api.attached.handles
    assert state(api, stream) == 0
    begin(api, stream)
    assert state(api, stream) == 1
    assert api.hipMemcpyAsync(p(x), p(source), size(8), HOST_TO_DEVICE, stream) == SUCCESS
    for number in (1, 2):
        assert api.launch(kernel, stream, x, number) == SUCCESS
    assert api.hipMemsetAsync(p(y), 0xFF, size(8), stream) == SUCCESS
    assert api.hipMemcpyDtoDAsync(p(y), p(x), size(4), stream) == SUCCESS
    assert api.hipMemcpyAsync(p(out), p(y), size(8), DEVICE_TO_HOST, stream) == SUCCESS
    graph = end(api, stream)
    assert state(api, stream) == 0
    assert api.hipStreamSynchronize(stream) == SUCCESS
    assert api.gpu.launched == []
    for start in (5, 70, 800):
        ctypes.c_int64.from_address(source).value = start
        assert api.hipGraphLaunch(graph, stream) == SUCCESS
        assert api.hipStreamSynchronize(stream) == SUCCESS
        assert value(x) == 9 * start + 3 + 2
        assert ctypes.string_at(out, 8) == value(x).to_bytes(4, "little") + b"\xff" * 4
    assert api.gpu.launched == [1, 2] * 3
    assert api.hipGraphExecDestroy(graph) == SUCCESS
    assert api.attached.handles == handles


def test_capture_info(api, stream):
    ids = []
    for _ in range(2):
        begin(api, stream)
        status, number = ctypes.c_int(), ctypes.c_ulonglong()
        assert api.hipStreamGetCaptureInfo(stream, ctypes.byref(status), ctypes.byref(number)) == SUCCESS
        assert status.value == 1
        ids.append(number.value)
        end(api, stream)
    assert len({*ids}) == 2
    assert state(api, None) == 0


def test_other_streams_go_on(api, stream):
    kernel, other, x = api.kernel(), api.stream(), zeros(api)
    begin(api, stream, RELAXED)
    assert api.launch(kernel, stream, x, 1) == SUCCESS
    assert api.launch(kernel, other, x, 2) == SUCCESS
    assert api.hipStreamSynchronize(other) == SUCCESS
    assert api.gpu.launched == [2]
    end(api, stream)


def forked(api, stream, join=True):
    kernel, other, fork, done, x = api.kernel(), api.stream(), api.event(), api.event(), zeros(api)
    begin(api, stream)
    for number in (1, 2):
        assert api.launch(kernel, stream, x, number) == SUCCESS
    assert api.hipEventRecord(fork, stream) == SUCCESS
    assert api.hipStreamWaitEvent(other, fork, 0) == SUCCESS
    assert state(api, other) == 1
    for number in (3, 4):
        assert api.launch(kernel, other, x, number) == SUCCESS
    for number in (5, 6):
        assert api.launch(kernel, stream, x, number) == SUCCESS
    assert api.hipEventRecord(done, other) == SUCCESS
    if join:
        assert api.hipStreamWaitEvent(stream, done, 0) == SUCCESS
    assert api.launch(kernel, stream, x, 7) == SUCCESS
    return other, done


def test_fork_and_join(api, stream, request):
    deferred = "deferred" in request.node.name
    other, _done = forked(api, stream)
    graph = end(api, stream)
    assert state(api, other) == 0
    orders = set()
    for seed in SEEDS if deferred else (0,):
        api.attached.defer(seed)
        api.gpu.launched.clear()
        assert api.hipGraphLaunch(graph, stream) == SUCCESS
        assert api.hipStreamSynchronize(stream) == SUCCESS
        order = tuple(api.gpu.launched)
        assert order[:2] == (1, 2)
        assert order[-1] == 7
        assert order.index(3) < order.index(4)
        assert order.index(5) < order.index(6)
        orders.add(order)
    assert len(orders) > 3 or not deferred


def test_a_fork_that_is_not_joined(api, stream):
    other, _done = forked(api, stream, join=False)
    handles = api.attached.handles
    assert api.hipStreamEndCapture(stream, ctypes.byref(p())) == UNJOINED
    assert (state(api, stream), state(api, other)) == (0, 0)
    assert api.attached.handles == handles - 1
    assert api.hipDeviceSynchronize() == SUCCESS
    assert api.gpu.launched == []


def test_a_graph_in_a_graph(api, stream):
    kernel, x = api.kernel(), zeros(api)
    begin(api, stream)
    for number in (1, 2):
        assert api.launch(kernel, stream, x, number) == SUCCESS
    inner = end(api, stream)
    begin(api, stream)
    assert api.launch(kernel, stream, x, 3) == SUCCESS
    assert api.hipGraphLaunch(inner, stream) == SUCCESS
    assert api.launch(kernel, stream, x, 4) == SUCCESS
    outer = end(api, stream)
    assert api.hipGraphExecDestroy(inner) == SUCCESS
    assert api.gpu.launched == []
    assert api.hipGraphLaunch(outer, stream) == SUCCESS
    assert api.hipStreamSynchronize(stream) == SUCCESS
    assert value(x) == expected(3, 1, 2, 4)


def test_the_nodes_of_a_graph(api, stream):
    kernel, x, graph, count = api.kernel(), zeros(api), p(), ctypes.c_size_t()
    begin(api, stream)
    for number in (1, 2):
        assert api.launch(kernel, stream, x, number) == SUCCESS
    assert api.hipStreamEndCapture(stream, ctypes.byref(graph)) == SUCCESS
    assert api.hipGraphGetNodes(graph, None, ctypes.byref(count)) == SUCCESS
    assert count.value == 2
    nodes = (p * 3)(1, 1, 1)
    count.value = 3
    assert api.hipGraphGetNodes(graph, nodes, ctypes.byref(count)) == SUCCESS
    assert (count.value, nodes[2]) == (2, None)
    assert api.new("hipGraphAddEmptyNode", graph, nodes, size(2))
    run = p(api.new("hipGraphInstantiateWithFlags", graph, ctypes.c_ulonglong(0)))
    assert api.hipGraphAddEmptyNode(ctypes.byref(p()), run, None, size(0)) == INVALID_VALUE  # as it is now
    assert api.hipGraphUpload(run, stream) == SUCCESS
    assert api.hipGraphLaunch(run, stream) == SUCCESS
    assert api.hipStreamSynchronize(stream) == SUCCESS
    assert value(x) == expected(1, 2)


def test_host_functions_are_captured(api, stream):
    called = []
    callback = ctypes.CFUNCTYPE(None, p)(called.append)
    begin(api, stream)
    assert api.hipLaunchHostFunc(stream, callback, p(42)) == SUCCESS
    graph = end(api, stream)
    assert called == []
    assert api.hipGraphLaunch(graph, stream) == SUCCESS
    assert api.hipGraphLaunch(graph, stream) == SUCCESS
    assert api.hipStreamSynchronize(stream) == SUCCESS
    assert called == [42, 42]


# ---- What is refused


@pytest.mark.parametrize("mode", [GLOBAL, THREAD_LOCAL, RELAXED])
@pytest.mark.parametrize("call", ["hipStreamSynchronize", "hipStreamQuery", "hipDeviceSynchronize", "hipCtxSynchronize"])
def test_waiting_for_a_captured_stream(api, stream, call, mode):
    begin(api, stream, mode)
    assert getattr(api, call)(*([stream] if call.startswith("hipStream") else [])) == UNSUPPORTED
    refused(api, stream)


UNSAFE = {
    "hipMalloc": lambda api, x, host: api.hipMalloc(ctypes.byref(p()), size(8)),
    "hipHostMalloc": lambda api, x, host: api.hipHostMalloc(ctypes.byref(p()), size(8), 0),
    "hipFree": lambda api, x, host: api.hipFree(p(x)),
    "hipHostFree": lambda api, x, host: api.hipHostFree(p(host)),
    "hipModuleLoadData": lambda api, x, host: api.hipModuleLoadData(ctypes.byref(p()), ELF),
    "hipMemcpy": lambda api, x, host: api.hipMemcpy(p(x), p(host), size(8), HOST_TO_DEVICE),
    "hipMemcpyDtoH": lambda api, x, host: api.hipMemcpyDtoH(p(host), p(x), size(8)),
    "hipMemset": lambda api, x, host: api.hipMemset(p(x), 0, size(8)),
    "hipEventQuery": lambda api, x, host: api.hipEventQuery(api.event()),
    "hipEventSynchronize": lambda api, x, host: api.hipEventSynchronize(api.event()),
    "hipStreamSynchronize": lambda api, x, host: api.hipStreamSynchronize(api.stream()),
}


@pytest.mark.parametrize("call", UNSAFE)
@pytest.mark.parametrize("mode", [GLOBAL, THREAD_LOCAL, RELAXED])
def test_what_could_wait_for_a_captured_stream(api, stream, call, mode):
    x, host = zeros(api), api.new("hipHostMalloc", size(8), 0)
    begin(api, stream, mode)
    if mode == RELAXED:
        assert UNSAFE[call](api, x, host) == SUCCESS
        end(api, stream)
        return
    assert UNSAFE[call](api, x, host) == UNSUPPORTED
    assert len(api.gpu.memory.allocations()) == 2
    refused(api, stream)
    begin(api, stream, mode)
    before = ctypes.c_int(RELAXED)
    assert api.hipThreadExchangeStreamCaptureMode(ctypes.byref(before)) == SUCCESS
    assert before.value == GLOBAL
    assert UNSAFE[call](api, x, host) == SUCCESS
    assert api.hipThreadExchangeStreamCaptureMode(ctypes.byref(before)) == SUCCESS
    assert before.value == RELAXED
    assert state(api, stream) == 1
    end(api, stream)


@pytest.mark.parametrize(("mode", "code"), [(GLOBAL, UNSUPPORTED), (THREAD_LOCAL, SUCCESS), (RELAXED, SUCCESS)])
def test_another_thread(api, stream, mode, code):
    seen = []

    def work():
        api.hipCtxSetCurrent(p(api.context))
        seen.append(api.hipMalloc(ctypes.byref(p()), size(8)))
        seen.append(api.hipStreamEndCapture(stream, ctypes.byref(p())))

    begin(api, stream, mode)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [code, SUCCESS if mode == RELAXED else WRONG_THREAD]
    assert state(api, stream) == {GLOBAL: 2, THREAD_LOCAL: 1, RELAXED: 0}[mode]


def test_what_cannot_be_captured(api, stream):
    x, memory = zeros(api), ctypes.create_string_buffer(8)
    for call in (
        lambda: api.hipMemcpyAsync(p(x), memory, size(8), HOST_TO_DEVICE, stream),  # pageable
        lambda: api.hipMemcpyAsync(memory, p(x), size(8), DEVICE_TO_HOST, stream),
        lambda: api.hipMallocAsync(ctypes.byref(p()), size(8), stream),
        lambda: api.hipFreeAsync(p(x), stream),
        lambda: api.hipMemPrefetchAsync(p(x), size(8), 0, stream),
    ):
        begin(api, stream)
        assert call() == UNSUPPORTED
        refused(api, stream)
    begin(api, stream)
    assert api.hipMemcpyAsync(p(x), p(x + 4), size(8), DEVICE_TO_DEVICE, stream) == INVALID_VALUE  # is wrong as ever, and harms nothing
    end(api, stream)


def test_begin_and_end(api, stream):
    graph = p()
    assert api.hipStreamBeginCapture(None, THREAD_LOCAL) == UNSUPPORTED
    assert api.hipStreamBeginCapture(stream, 3) == INVALID_VALUE
    assert api.hipStreamEndCapture(stream, ctypes.byref(graph)) == ILLEGAL_STATE
    begin(api, stream)
    assert api.hipStreamBeginCapture(stream, THREAD_LOCAL) == ILLEGAL_STATE
    end(api, stream)


def test_an_event_from_outside(api, stream):
    other, event = api.stream(), api.event()
    assert api.hipEventRecord(event, other) == SUCCESS
    begin(api, stream)
    assert api.hipStreamWaitEvent(stream, event, 0) == ISOLATION
    refused(api, stream)


def test_an_event_of_a_capture(api, stream):
    other, event = api.stream(), api.event()
    begin(api, stream, RELAXED)
    assert api.hipEventRecord(event, stream) == SUCCESS
    assert api.hipEventQuery(event) == CAPTURED_EVENT
    refused(api, stream)
    begin(api, stream)
    assert api.hipEventRecord(event, stream) == SUCCESS
    end(api, stream)
    assert api.hipEventSynchronize(event) == CAPTURED_EVENT
    assert api.hipStreamWaitEvent(other, event, 0) == CAPTURED_EVENT
    begin(api, stream)
    assert api.hipStreamWaitEvent(stream, event, 0) == ISOLATION  # of an earlier one
    refused(api, stream)
    assert api.hipEventRecord(event, stream) == SUCCESS
    assert api.hipEventSynchronize(event) == SUCCESS


def test_two_captures(api, stream):
    other, event = api.stream(), api.event()
    begin(api, stream)
    begin(api, other)
    assert api.hipEventRecord(event, stream) == SUCCESS
    assert api.hipStreamWaitEvent(other, event, 0) == MERGE
    refused(api, stream)
    refused(api, other)


def test_the_wrong_stream_ends(api, stream):
    other, _done = forked(api, stream)
    assert api.hipStreamEndCapture(other, ctypes.byref(p())) == UNMATCHED
    refused(api, stream)
    assert state(api, other) == 0


@pytest.mark.parametrize("which", ["origin", "other"])
def test_a_stream_that_is_destroyed(api, stream, which):
    other, done = forked(api, stream)
    handles = api.attached.handles
    if which == "origin":
        assert api.hipStreamDestroy(stream) == SUCCESS
        assert state(api, other) == 0
        assert api.attached.handles == handles - 2  # and its graph
    else:
        assert api.hipStreamDestroy(other) == SUCCESS
        assert api.hipEventDestroy(done) == SUCCESS
        end(api, stream)


def test_a_context_that_is_released(environment):
    api = Api(Calculator)
    stream = api.stream()
    forked(api, stream)
    handles = api.attached.handles
    api.close()
    assert api.attached.handles == handles - 1
