"""The driver layer against the project's HIP runtime for emulated devices, and against little libraries that pretend to be HIP or CUDA."""

import ctypes
import os
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from iq.emulator import hip
from iq.emulator.device import EmulatedGpu
from iq.emulator.memory import Memory
from iq.errors import DeviceError
from iq.runtime.driver import CUDA, HIP, Api, DriverError, hip_library, load
from iq.runtime.driver.api import CAPTURE_ERRORS, SUCCESS, Fixed
from iq.runtime.launching import CAPTURING, Step, pack, run
from iq.targets import DeviceId


class Planted(Exception):
    """An error that a test provokes."""


class Gpu:
    """In the place of the emulator: it has one kernel, of two pointers and a constant, keeps what is launched, and calls `on_launch`."""

    def __init__(self):
        self.memory = Memory()
        self.launched = []
        self.failures = []
        self.on_launch = lambda: None
        self.attached = hip.Attached(self, hip.Properties("Emulated gfx1100", "gfx1100", 65536, 32), self.memory)
        self.index, self.library = self.attached.index, self.attached.library

    def load(self, elf):
        return 1

    def function(self, module, name):
        if name != "kernel":
            raise Planted(name)
        return hip.Function(6, 0, 24, ((0, 8), (8, 8), (16, 4)))

    def launch(self, function, grid, workgroup, kernarg):
        self.launched.append((function, grid, workgroup, struct.unpack_from("<QQI", kernarg)))
        self.on_launch()

    def failed(self, error):
        self.failures.append(error)


# What the HIP runtime takes for a code object: an ELF header, of which it reads where the section headers end.
IMAGE = (b"\177ELF\2\1".ljust(40, b"\0") + (64).to_bytes(8, "little")).ljust(64, b"\0")


@pytest.fixture
def gpu(environment):
    return Gpu()


@pytest.fixture
def driver(gpu):
    return load(HIP, gpu.library)


@pytest.fixture
def context(gpu, driver):
    context = driver.open(gpu.index)
    yield context
    context.close()


@pytest.fixture
def stream(context):
    stream = context.create_stream()
    yield stream
    context.destroy_stream(stream)


class Host:
    """Memory of the host."""

    def __init__(self, content):
        self._buffer = ctypes.create_string_buffer(bytes(content), len(content))
        self.address = ctypes.addressof(self._buffer)

    @property
    def content(self):
        return self._buffer.raw


def read(context, address, nbytes, stream=0):
    host = Host(bytes(nbytes))
    context.copy_out(host.address, address, nbytes, stream)
    context.synchronize_stream(stream)
    return host.content


# ---- Devices


@pytest.mark.parametrize("name", ["gfx1100", "gfx942:sramecc+:xnack-", "gfx90a:sramecc+:xnack+"])
def test_what_a_device_says_it_is(environment, name):
    gpu = EmulatedGpu(f"emulated:{name}")
    driver = load(HIP, gpu.runtime.library)
    assert driver.device_count() > gpu.runtime.index
    assert driver.device_name(gpu.runtime.index) == f"Emulated {gpu.id.processor}"
    context = driver.open(gpu.runtime.index)
    assert (context.arch, context.name, context.index) == (name, f"Emulated {gpu.id.processor}", gpu.runtime.index)
    assert DeviceId.parse(context.arch) == gpu.id
    assert str(context) == f"hip:{gpu.runtime.index} (Emulated {gpu.id.processor})"
    context.close()


def test_a_device_that_is_not_there(driver):
    count = driver.device_count()
    for call in (driver.open, driver.device_name):
        with pytest.raises(
            DriverError, match=rf"there is no hip:{count}: hipErrorInvalidDevice \(101\): invalid device ordinal"
        ) as refused:
            call(count)
        assert (refused.value.code, refused.value.name) == (101, "hipErrorInvalidDevice")


def test_a_closed_device(gpu, driver):
    context = driver.open(gpu.index)
    context.close()
    context.close()
    with pytest.raises(DeviceError, match="has been closed"):
        context.allocate(1)


def test_a_device_is_opened_more_than_once(gpu, driver, context):
    other = driver.open(gpu.index)
    address = other.allocate(16)
    other.close()
    context.fill(address, 7, 16, 0)
    assert read(context, address, 16) == b"\7" * 16


# ---- Memory


def test_memory(context, stream):
    data = bytes(range(256)) * 16
    a, b = context.allocate(len(data)), context.allocate(len(data))
    host = Host(data)
    context.copy_in(a, host.address, len(data), stream)
    context.fill(b, 0x5A, len(data), stream)
    context.copy_on(b + 100, a + 200, 300, stream)
    assert read(context, b, len(data), stream) == b"\x5a" * 100 + data[200:500] + b"\x5a" * (len(data) - 400)
    context.synchronize()
    context.free(a)
    context.free(b)


def test_nothing_is_copied_nowhere(context, stream):
    context.copy_in(0, 0, 0, stream)
    context.copy_out(0, 0, 0, stream)
    context.copy_on(0, 0, 0, stream)
    context.fill(0, 1, 0, stream)


def test_memory_of_the_host(context, stream):
    pinned, device = context.allocate_host(64), context.allocate(64)
    ctypes.memset(pinned, 9, 64)
    context.copy_in(device, pinned, 64, stream)
    assert read(context, device, 64, stream) == b"\t" * 64
    context.free(device)
    context.free_host(pinned)
    with pytest.raises(DriverError, match=r"hipHostFree on hip:\d+ \(Emulated gfx1100\): hipErrorInvalidValue \(1\): invalid argument"):
        context.free_host(pinned)


def test_more_memory_than_there_is(gpu, context):
    free, total = context.memory_info()
    assert 0 < free <= total == gpu.memory.capacity
    with pytest.raises(
        DriverError, match=rf"hipMalloc of {total + 1} bytes on hip:\d+ \(Emulated gfx1100\): hipErrorOutOfMemory \(2\): out of memory"
    ):
        context.allocate(total + 1)
    address = context.allocate(1 << 20)
    assert context.memory_info() == (free - (1 << 20), total)
    context.free(address)
    assert context.memory_info() == (free, total)


def test_copies_beyond_the_end(context, stream):
    address = context.allocate(100)
    host = Host(bytes(200))
    for call in (
        lambda: context.copy_in(address, host.address, 101, stream),
        lambda: context.copy_out(host.address, address + 1, 100, stream),
        lambda: context.copy_on(address, address + 50, 51, stream),
        lambda: context.fill(address, 0, 101, stream),
    ):
        with pytest.raises(DriverError, match=r"hipErrorInvalidValue \(1\)"):
            call()
    context.free(address)


# ---- Streams and events


def test_streams_and_events(gpu, context, stream):
    before, other, event = gpu.attached.handles, context.create_stream(), context.create_event()
    assert other != stream
    assert gpu.attached.handles == before + 2
    assert context.query_event(event)
    context.record_event(event, stream)
    context.wait_event(other, event)
    context.synchronize_event(event)
    assert context.query_event(event)
    context.synchronize_stream(other)
    context.destroy_event(event)
    context.destroy_stream(other)
    assert gpu.attached.handles == before
    with pytest.raises(DriverError, match=r"hipStreamDestroy on .*hipErrorInvalidHandle \(400\)"):
        context.destroy_stream(Host(bytes(256)).address)


# ---- Modules and launches


@pytest.fixture
def kernel(context):
    module = context.load_module(IMAGE)
    yield context.function(module, "kernel")
    context.unload_module(module)


def raise_(error):
    raise error


def test_a_plan_for_a_context(gpu, context, stream, kernel):
    step = Step(kernel, (3, 2, 1), (32, 1, 1), 0, ((0, 16), (1, 0)), (77,))
    plan = pack(context.entry_points, [step, step], 2)
    a, b = context.allocate(64), context.allocate(64)
    assert run(plan, stream, 0, a, b) == SUCCESS
    assert run(plan, stream, 1, a, b) == SUCCESS
    context.synchronize_stream(stream)
    assert gpu.launched == [(6, (3, 2, 1), (32, 1, 1), (a + 16, b, 77))] * 4


def test_a_kernel_that_fails(gpu, driver, context, stream, kernel):
    gpu.on_launch = lambda: raise_(Planted("by the test"))
    plan = pack(context.entry_points, [Step(kernel, (1, 1, 1), (1, 1, 1), 0, ((0, 0), (0, 0)), (1,))], 1)
    status = run(plan, stream, 0, 0)
    with pytest.raises(DriverError, match=r"mul_mat: hipErrorLaunchFailure \(719\): .*unusable") as failed:
        driver.check(status, "mul_mat")
        context.synchronize_stream(stream)
    assert driver.is_sticky(failed.value.code)
    assert not driver.is_sticky(2)
    assert isinstance(gpu.failures[0], Planted)
    with pytest.raises(DriverError, match="hipErrorLaunchFailure"):
        context.allocate(1)


def test_code_that_is_not_for_the_device(context):
    with pytest.raises(DriverError, match=r"hipModuleLoadData on .*hipErrorNoBinaryForGpu \(209\)"):
        context.load_module(b"not an ELF image" + bytes(64))


def test_a_kernel_that_is_not_there(context):
    module = context.load_module(IMAGE)
    with pytest.raises(DriverError, match=r"looking up the kernel other: hipErrorNotFound \(500\)"):
        context.function(module, "other")
    context.unload_module(module)


# ---- Graphs


def test_graphs(gpu, context, stream, kernel):
    plan = pack(context.entry_points, [Step(kernel, (1, 1, 1), (1, 1, 1), 0, ((0, 0), (0, 8)), (5,))], 1)
    assert not context.is_capturing(stream)
    context.begin_capture(stream)
    assert context.is_capturing(stream)
    assert run(plan, stream, 1, 16) == CAPTURING
    assert run(plan, stream, 0, 16) == SUCCESS
    with context.relaxed():
        context.free(context.allocate(16))
    graph = context.end_capture(stream)
    assert not context.is_capturing(stream)
    assert gpu.launched == []
    made = context.instantiate(graph)
    context.destroy_graph(graph)
    for _ in range(3):
        context.launch_graph(made, stream)
    context.synchronize_stream(stream)
    assert gpu.launched == [(6, (1, 1, 1), (1, 1, 1), (16, 24, 5))] * 3
    context.destroy_exec(made)


def test_a_capture_that_nobody_began(driver, context, stream):
    with pytest.raises(DriverError, match="hipStreamEndCapture on") as refused:
        context.end_capture(stream)
    assert refused.value.code in CAPTURE_ERRORS | {401}
    assert not driver.is_sticky(refused.value.code)


# ---- The current device, threads


def test_the_current_device_stays(gpu, driver, context):
    other_gpu = Gpu()
    other = driver.open(other_gpu.index)
    driver.make_current(other.index)
    a, b = context.allocate(64), other.allocate(64)
    assert driver.current() == other.index
    with pytest.raises(DriverError):
        context.allocate(1 << 60)
    assert driver.current() == other.index
    assert a in gpu.memory.regions()[:, 0]
    assert b in other_gpu.memory.regions()[:, 0]
    driver.make_current(context.index)
    other.close()


def test_threads_that_never_called(context):
    def work(n):
        stream, address = context.create_stream(), context.allocate(256)
        for i in range(20):
            context.fill(address, n + i, 256, stream)
            assert read(context, address, 256, stream) == bytes([n + i]) * 256
        context.free(address)
        context.destroy_stream(stream)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))


# ---- Libraries that pretend


PRETENDER = """
#include <string.h>
int %(init)s(unsigned flags) { (void)flags; return %(status)d; }
"""


@pytest.fixture
def pretend(tmp_path):
    """Compiles a library; its path."""

    def compile(source, name="libpretend.so"):
        (tmp_path / "pretend.c").write_text(source)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([os.environ.get("CC", "cc"), "-shared", "-fPIC", "-o", path, tmp_path / "pretend.c"], check=True)
        return path

    return compile


FAKE_CUDA = r"""
#include <stdio.h>
#include <string.h>
#include <stddef.h>
static __thread void *current;
static int primary;
int cuInit(unsigned flags) { return flags; }
int cuGetErrorName(int code, const char **out) { *out = code == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : 0; return code == 2 ? 0 : 1; }
int cuGetErrorString(int code, const char **out) { *out = code == 2 ? "out of memory" : 0; return code == 2 ? 0 : 1; }
int cuDeviceGetCount(int *out) { *out = 2; return 0; }
int cuDeviceGet(int *out, int ordinal) { *out = ordinal + 40; return ordinal < 2 ? 0 : 101; }
int cuDeviceGetName(char *out, int size, int device) { snprintf(out, size, "Pretended %d", device); return 0; }
int cuDeviceGetAttribute(int *out, int attribute, int device) {
  *out = attribute == 75 ? 12 : attribute == 76 ? device - 40 : -1;
  return 0;
}
int cuDevicePrimaryCtxRetain(void **out, int device) { *out = (char *)0x7f0000000000 + device; ++primary; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { return --primary < 0 ? 1 : 0; }
int cuCtxGetCurrent(void **out) { *out = current; return 0; }
int cuCtxSetCurrent(void *to) { current = to; return 0; }
int cuMemAlloc_v2(void **out, size_t size) { *out = (char *)current + 0x1000; return size > 1000 ? 2 : 0; }
int cuMemsetD8Async(char *p, unsigned char v, size_t n, char *s) {
  return p == (char *)(1ul << 47) && v == 200 && n == 3ul << 33 && s == (char *)2 ? 0 : 1;
}
int cuMemcpyHtoDAsync_v2(char *to, char *from, size_t n, char *s) {
  return to == (char *)(1ul << 47) && from == (char *)5 && n == 6 && s == (char *)7 ? 0 : 1;
}
int cuGraphInstantiateWithFlags(void **out, void *graph, unsigned long long flags) { *out = (char *)graph + 1; return (int)flags; }
int cuEventQuery(void *e) { return e ? 600 : 0; }
int cuEventCreate(void **out, unsigned flags) { *out = (void *)(1ul << 63 | flags); return 0; }
int cuModuleLoadData(void **out, const char *image) { *out = (void *)strlen(image); return 0; }
int cuFuncSetAttribute(void *f, int attribute, int value) { return f == (void *)9 && attribute == 8 && value == 50000 ? 0 : 1; }
int cuLaunchKernel(void) { return 0; }
int cuStreamIsCapturing(void *s, int *out) { *out = s != 0; return 0; }
"""


def test_cuda(pretend):
    driver = load(CUDA, pretend(FAKE_CUDA))
    assert driver.device_count() == 2
    context = driver.open(1)
    assert (context.name, context.arch, str(context)) == ("Pretended 41", "sm_121", "cuda:1 (Pretended 41)")
    assert driver.current() == 0  # none, as before
    assert context.allocate(1000) == 0x7F0000000000 + 41 + 0x1000  # in its own context
    assert driver.current() == 0
    driver.make_current(0x1234)
    with pytest.raises(
        DriverError, match=r"cuMemAlloc_v2 of 1001 bytes on cuda:1 \(Pretended 41\): CUDA_ERROR_OUT_OF_MEMORY \(2\): out of memory"
    ):
        context.allocate(1001)
    context.fill(1 << 47, 200, 3 << 33, 2)
    context.copy_in(1 << 47, 5, 6, 7)
    with pytest.raises(DriverError, match=r"cuMemsetD8Async on .*: unknown error \(1\): no description"):
        context.fill(1 << 46, 200, 3 << 33, 2)
    assert context.instantiate(1 << 62) == (1 << 62) + 1
    assert context.create_event() == 1 << 63 | 2
    assert (context.query_event(0), context.query_event(1)) == (True, False)
    assert context.load_module(b".version 8.0") == 12
    context.allow_shared(9, 50000)
    assert context.is_capturing(1)
    assert not context.is_capturing(0)
    assert driver.current() == 0x1234
    entry = context.entry_points
    assert entry.current == 0x7F0000000000 + 41
    assert len({entry.launch, entry.get_current, entry.set_current, entry.is_capturing}) == 4
    with pytest.raises(DeviceError, match=r"libpretend\.so has no function cuStreamSynchronize; it is too old"):
        context.synchronize_stream(0)
    context.close()
    with pytest.raises(DriverError, match=r"there is no cuda:2: unknown error \(101\)"):
        driver.open(2)


def test_a_failure_does_not_show_in_hips_last_error(pretend):
    source = r"""
    static int last;
    int hipInit(unsigned flags) { return last = 100; }
    int hipGetLastError(void) { int was = last; last = 0; return was; }
    const char *hipGetErrorName(int code) { return "hipErrorNoDevice"; }
    const char *hipGetErrorString(int code) { return "no ROCm-capable device is detected"; }
    """
    path = pretend(source)
    with pytest.raises(DriverError, match=rf"hipInit of {path}: hipErrorNoDevice \(100\): no ROCm-capable device is detected"):
        load(HIP, path)
    assert ctypes.CDLL(str(path)).hipGetLastError() == 0


OLD_PROPERTIES = r"""
#include <string.h>
int hipGetDeviceProperties(char *out, int device) { memset(out, 1, 792); strcpy(out + 396, "gfx906:sramecc+:xnack-"); return 0; }
"""
NEW_PROPERTIES = r"""
int hipGetDevicePropertiesR0600(char *out, int device) { memset(out, 2, 1472); strcpy(out + 1160, "gfx1201"); return 0; }
"""


@pytest.mark.parametrize(
    ("properties", "arch"),
    [
        (OLD_PROPERTIES, "gfx906:sramecc+:xnack-"),
        (OLD_PROPERTIES + NEW_PROPERTIES, "gfx1201"),
        ("#include <string.h>\n" + NEW_PROPERTIES, "gfx1201"),
    ],
    ids=["HIP 5", "HIP 6 and 7", "without the old one"],
)
def test_the_arch_in_each_layout_of_the_properties(properties, arch, pretend):
    driver = load(HIP, pretend(PRETENDER % {"init": "hipInit", "status": 0} + properties))
    assert HIP.arch(driver.do, 0) == arch


def test_properties_of_an_unknown_layout(pretend):
    source = PRETENDER % {"init": "hipInit", "status": 0} + NEW_PROPERTIES.replace("1160", "1164")
    driver = load(HIP, pretend(source))
    with pytest.raises(DeviceError, match=r"hipGetDevicePropertiesR0600 gives b'.{16}gfx.* for the device's gcnArchName"):
        HIP.arch(driver.do, 0)


@pytest.mark.parametrize("api", [HIP, CUDA], ids=lambda api: api.name)
def test_a_library_of_something_else(api, pretend):
    with pytest.raises(DeviceError, match=rf"libpretend\.so has no function {api.functions['init'].symbol}"):
        load(api, pretend("int nothing;"))


def test_the_apis_have_the_same_functions():
    def given(api: Api, name):
        return [a for a in api.functions[name].arguments if not isinstance(a, Fixed)]

    common = set(HIP.functions) & set(CUDA.functions)
    assert set(HIP.functions) - common == {"properties", "old_properties", "last_error"}
    assert set(CUDA.functions) - common == {"attribute"}
    differ = {name for name in common if given(HIP, name) != given(CUDA, name)}
    assert differ == {"set_current", "error_name", "error_text"}
    assert not (HIP.sticky | CUDA.sticky) & CAPTURE_ERRORS


# ---- Finding the library


def test_one_driver_for_a_path(gpu, driver):
    assert load(HIP, str(gpu.library)) is driver
    assert driver.path == str(gpu.library)


def test_a_library_that_does_not_load(tmp_path):
    for path in (tmp_path / "none.so", tmp_path):
        with pytest.raises(DeviceError, match=rf"no driver for hip: {path} does not load"):
            load(HIP, path)


def loads(environment):
    """In a process of its own, what `load(HIP)` loads or says."""
    code = """
from iq.errors import DeviceError
from iq.runtime.driver import HIP, load
try:
    print(load(HIP).path)
except DeviceError as error:
    print(error)
"""
    env = {n: v for n, v in os.environ.items() if n not in (hip_library.VARIABLE, "ROCM_PATH", "HIP_PATH")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_where_hip_is_looked_for(pretend, tmp_path):
    source = PRETENDER % {"init": "hipInit", "status": 0}
    named, rocm = pretend(source, "named/other.so"), pretend(source, "rocm/lib/libamdhip64.so.6")
    folder = pretend(source, "folder/libamdhip64.so")
    assert loads({"ROCM_PATH": str(tmp_path / "rocm")}) == str(rocm)
    assert loads({"HIP_PATH": str(tmp_path / "rocm")}) == str(rocm)
    # The variable is IREE's, and has the last word: `file:` and a path, or a folder, the first that loads.
    assert loads({hip_library.VARIABLE: f"file:{named}", "ROCM_PATH": str(tmp_path / "rocm")}) == str(named)
    assert loads({hip_library.VARIABLE: f"{tmp_path};file:{tmp_path}/none.so;{folder.parent};file:{named}"}) == str(folder)
    said = loads({hip_library.VARIABLE: f"file:{tmp_path}/none.so;{tmp_path}"})
    for part in (
        "no driver for hip: no libamdhip64 that loads",
        f"IREE_HIP_DYLIB_PATH=file:{tmp_path}/none.so",
        f"{tmp_path}/libamdhip64.so",
    ):
        assert part in said


def test_hip_that_is_loaded_already_comes_first(pretend, tmp_path, monkeypatch):
    """As by PyTorch for ROCm."""
    from iq.runtime.driver.library import candidates

    theirs = pretend(PRETENDER % {"init": "hipInit", "status": 0}, "torch/lib/libamdhip64.so")
    rocm = pretend(PRETENDER % {"init": "hipInit", "status": 0}, "rocm/lib/libamdhip64.so")
    monkeypatch.setattr(hip_library, "loaded", lambda: iter([theirs]))
    assert candidates(HIP, {"ROCM_PATH": str(tmp_path / "rocm")})[:2] == [str(theirs), str(rocm)]


def test_no_cuda_driver(monkeypatch):
    from iq.runtime.driver import library

    monkeypatch.setattr(library.ctypes, "CDLL", lambda name: raise_(OSError(f"{name}: not on this machine")))
    library._load.cache_clear()
    with pytest.raises(DeviceError) as refused:
        load(CUDA)
    for part in ("no driver for cuda", "libcuda.so.1: not on this machine", "libcuda.so: not on this machine", "NVIDIA's driver"):
        assert part in str(refused.value)
