"""What could end the interpreter: failures that are collected late, forks, exits during calls. Each runs in a process of its own."""

import gc
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from crash import Planted, X, emulated, weight

from iq.errors import DeviceError
from iq.kernels import KernelSpec

HERE = Path(__file__).parent

# Generous: what is to show is that a process ends at all.
SECONDS = 120


def python(*arguments):
    """What a process printed, and its exit status; a crash is a negative one."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=SECONDS, cwd=HERE, check=False)
    return done.stdout, done.stderr, done.returncode


def eventually(condition):
    """Whether it holds soon: IREE frees on a thread of its own."""
    gc.collect()
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_failures_in_every_kind_of_call(environment):
    printed, errors, status = python("-X", "faulthandler", "crash.py", "66")
    assert (printed[:28], errors, status) == ("66 failures, 0 devices left,", "", 0)


# ---- Who keeps whom


def frames_of(error):
    while error is not None:
        traceback = error.__traceback__
        while traceback:
            yield traceback.tb_frame
            traceback = traceback.tb_next
        error = error.__cause__ or error.__context__


def made_by_iree(value):
    return type(value).__module__.startswith("iree.") and not isinstance(value, type) and type(value).__name__ != "HalElementType"


def test_an_error_keeps_nothing_that_iree_made(environment):
    device, _ = emulated(fails=0, how="iree")
    w = weight(device)
    x = device.put(np.ones((3, 64), np.float32))[1:].reshape((2, 64))[:1]  # a part of an allocation
    with pytest.raises(Planted) as caught:
        w.matmul(device.put(np.ones((8, 64), np.float32))[1:3].copy())
    with pytest.raises(DeviceError) as again:
        x.copy()
    assert all(not made_by_iree(local) for e in (caught, again) for frame in frames_of(e.value) for local in frame.f_locals.values())
    assert any(frame.f_code.co_name == "call" for frame in frames_of(caught.value))


def test_a_device_goes_after_the_last_of_its_buffers(environment):
    device, gpu = emulated(how="iree")
    buffer, other = device.put(X), device.put(X)
    hal = weakref.ref(device._backend.hal)
    handle = buffer.memory.handle
    del device, buffer, other
    assert eventually(lambda: len(gpu.memory.leaks()) == 1)
    assert hal() is handle.owner
    del handle
    assert eventually(lambda: hal() is None and not gpu.handles and not gpu.memory.allocations())


def test_a_gpu_goes_after_the_last_of_its_buffers(environment):
    device, gpu = emulated(how="launch")
    buffer, other, stream = device.put(X), device.put(X), device.stream()
    with device.capture() as graph:
        other.fill_zero()
    backend = weakref.ref(device._backend)
    del device, other
    gc.collect()
    assert backend() is not None and np.array_equal(buffer.numpy(), X)
    graph.launch(stream)
    stream.synchronize()
    del buffer, stream
    gc.collect()
    assert backend() is not None
    del graph
    assert eventually(lambda: backend() is None and not gpu.handles and not gpu.memory.allocations())


@pytest.mark.parametrize("how", ["launch", "iree"])
def test_a_cycle_that_holds_a_device_and_its_buffers(environment, how):
    device, gpu = emulated(how=how)
    buffer = device.put(X)
    cycle = [device, buffer, buffer.memory, buffer[1:], device._backend, device.stream()]
    cycle.append(cycle)
    del device, buffer, cycle
    assert eventually(lambda: not gpu.handles and not gpu.memory.allocations())


def test_a_device_that_has_taken_in_what_it_gave_out(environment):
    """The producer's end cannot be seen by Python's collector."""
    device, gpu = emulated(how="launch")
    buffer = device.put(X)
    shared, part = device.from_dlpack(buffer), device.from_dlpack(buffer[1:])
    shared.fill_zero(stream=device.stream())
    part.fill_zero(stream=device.stream())
    assert not buffer.numpy().any()
    del device, buffer, shared, part
    assert eventually(lambda: not gpu.handles and not gpu.memory.allocations())


def test_a_lost_gpu_gives_back_all(environment):
    device, gpu = emulated(fails=1, how="launch")
    w, stream = weight(device), device.stream()
    with device.capture() as graph:
        device.zeros(4, "f32")
    graph.launch(stream)
    with pytest.raises(Planted):
        w.matmul(X).numpy()
    assert not device.usable
    del device, w, stream, graph
    assert eventually(lambda: not gpu.handles and not gpu.memory.allocations())


@pytest.mark.parametrize("how", ["launch", "iree"])
def test_a_buffer_of_another_device(environment, how):
    (device, _), (other, _) = emulated(processor="gfx1100", how=how), emulated(processor="gfx1100", how=how)
    w, x = weight(device), other.put(X)
    kernel = device.library.kernel(KernelSpec.parse("mul_mat_vec.q4_0.2"))
    with pytest.raises(DeviceError, match="another device"):
        kernel((w._packed, x), {"m": 2, "n": 4, "blocks": 2}, (device.alloc((2, 4), "f32"),))
    assert w.matmul(X).shape == (2, 4)


def test_a_device_that_the_driver_has_lost(environment):
    """Real GPUs: what IREE's driver can no longer free stays, and says why it cannot be used."""
    code = """
import gc
from crash import Planted, X, emulated, weight
device, gpu = emulated(fails=0, how="iree")
device._backend.hal._outlives_failure = False
w = weight(device)
try:
    w.matmul(X)
except Planted:
    pass
try:
    device.zeros(4, "f32")
except Exception as error:
    print(type(error).__name__, str(error).partition(",")[0])
del device, w
gc.collect()
print(gpu.handles > 0, len(gpu.memory.leaks()) > 0)
"""
    assert python("-c", code) == ("DeviceError the device cannot be used: its driver has lost it\nTrue True\n", "", 0)


# ---- Forks


FORKS = """
import gc, multiprocessing, os, sys, threading
import numpy as np
import iq
from crash import emulated, weight

X = np.ones((2, 64), np.float32)
spec = sys.argv[1]
device = iq.Device("cpu", threads=int(spec)) if spec.isdecimal() else emulated(how=spec)[0]
w = weight(device)
y = w.matmul(X)
default = iq.QTensor.quantize(X, "q4_0")

def child():
    refused = 0
    calls = [lambda: w.matmul(X), w.dequantize, lambda: device.zeros(4, "f32").numpy(), lambda: device.library.kernel(None)]
    for call in calls:
        try:
            call()
        except iq.errors.DeviceError as error:
            refused += "forked" in str(error)
    assert refused == len(calls), refused
    if spec.isdecimal():
        assert not y.numpy().any()  # the host's own memory
    own = iq.QTensor.quantize(X, "q4_0")
    assert own.device is not default.device and np.allclose(own.matmul(X).numpy(), 64, rtol=1e-2)
    gc.collect()
"""


@pytest.mark.parametrize("device", ["1", "2", "launch", "iree"])
@pytest.mark.parametrize(
    "how",
    [
        """
pid = os.fork()
if not pid:
    child()
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
""",
        """
process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join()
assert process.exitcode == 0
""",
        """
pid = os.fork()
if not pid:
    del device, w, y, default  # all that the parent opened
    gc.collect()
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
""",
    ],
    ids=["fork", "multiprocessing", "garbage"],
)
def test_forks(environment, device, how):
    """The child can use what it opens, not what its parent opened; and it ends. The parent goes on."""
    assert python("-c", f"{FORKS}{how}w.matmul(X)\nprint('parent')", device) == ("parent\n", "", 0)


def test_a_fork_while_another_thread_calls(environment):
    code = f"""{FORKS}
stop = threading.Event()
def work():
    while not stop.is_set():
        w.matmul(X)
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads: thread.start()
for _ in range(5):
    pid = os.fork()
    if not pid:
        child()
        os._exit(0) if _ % 2 else sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0
stop.set()
"""
    assert python("-c", code, "2") == ("", "", 0)


def test_a_fork_while_another_thread_holds_every_lock(environment):
    """The child is refused before it comes to one, also where it was forked within a capture."""
    code = """
import os, threading
import iq
from crash import X, emulated, weight

device = emulated(how="launch")[0]
w, x, stream = weight(device), device.put(X), device.stream()
w.matmul(x)
gpu = device._backend
locks = [gpu.pool.lock, gpu.capturing, gpu.ordering, gpu.staging._lock, gpu.own._lock, device.library._loading]
held, forked = threading.Event(), threading.Event()

def hold():
    for lock in locks: lock.acquire()
    held.set()
    forked.wait()
    for lock in locks: lock.release()

def child():
    refused = 0
    calls = [
        lambda: x.copy_from(X), lambda: x.copy_from(x), x.fill_zero, x.numpy, lambda: w.matmul(x), device.synchronize, stream.synchronize,
        lambda: stream.wait(device.stream_of(None)), graph.launch, lambda: device.from_dlpack(x), lambda: x.__dlpack__(stream=None),
    ]
    for call in calls:
        try:
            call()
        except iq.errors.DeviceError as error:
            refused += "forked" in str(error)
    os._exit(refused != len(calls))

with device.capture() as graph:
    duplicate = x.copy()
thread = threading.Thread(target=hold)
try:
    with device.capture():
        thread.start()
        held.wait()
        pid = os.fork()
        if pid: forked.set(), thread.join()
except iq.errors.DeviceError as error:
    assert not pid and "forked" in str(error)
    child()
assert os.waitpid(pid, 0)[1] == 0
graph.launch()
print((duplicate.numpy() == X).all())
"""
    assert python("-c", code) == ("True\n", "", 0)


# ---- Exits


@pytest.mark.parametrize(
    "device", ["iq.Device('cpu')", "iq.Device('cpu', threads=1)", "emulated(how='launch')[0]", "emulated(how='iree')[0]"]
)
@pytest.mark.parametrize("call", ["w.matmul(X).numpy()", "device.zeros(1000, 'f32').numpy()", "emulated()", "iq.Device('cpu', threads=2)"])
def test_an_exit_while_daemon_threads_call(environment, device, call):
    code = f"""
import threading, time
import iq
from crash import X, emulated, weight
device = {device}
w = weight(device, 512)
w.matmul(X)
def work():
    while True:
        {call}
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.1)
print("exit")
"""
    assert python("-c", code) == ("exit\n", "", 0)


def test_an_exit_hook_that_comes_after_iqs(environment):
    code = """
import atexit
def late():
    for call in (lambda: w.matmul(X), lambda: iq.Device("cpu")):
        try:
            call()
        except iq.errors.DeviceError as error:
            print("the interpreter is exiting" in str(error))
    print(y.numpy().shape)
atexit.register(late)
import iq
from crash import X, weight
w = weight(iq.Device("cpu"))
y = w.matmul(X)
atexit.register(lambda: print(w.matmul(X).shape))
"""
    assert python("-c", code) == ("(2, 4)\nTrue\nTrue\n(2, 4)\n", "", 0)


def test_an_exit_with_an_error_that_keeps_all(environment):
    code = """
import sys
from crash import X, emulated, weight
def fail():
    device, gpu = emulated(fails=0)
    w = weight(device)
    w.matmul(X).numpy()
try:
    fail()
except Exception as error:
    sys.kept = error, sys.exc_info()
print("exit")
"""
    assert python("-c", code) == ("exit\n", "", 0)
