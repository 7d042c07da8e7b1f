"""The fake HIP runtime as a C library: what it needs to be built, the rules of its memory, and each function as IREE calls it."""

import ctypes
import re
import threading
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from iree.runtime import _binding

from iq.bundle.codeobject import Argument
from iq.cache import Cache
from iq.emulator import hip, native
from iq.emulator.faults import LaunchError
from iq.emulator.kernargs import fill_hidden
from iq.emulator.memory import Kind, Memory, MemoryFault, OutOfMemory

SUCCESS, INVALID_VALUE, OUT_OF_MEMORY, DEINITIALIZED, INVALID_CONTEXT, NO_BINARY = 0, 1, 2, 4, 201, 209
INVALID_HANDLE, NOT_FOUND, LAUNCH_FAILURE, NOT_SUPPORTED = 400, 500, 719, 801
HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE, DEFAULT = 1, 2, 3, 4

p, u32, u64 = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64


@pytest.fixture
def memory(environment):
    return Memory(1 << 24)


# ---- Building it


def test_it_is_built_once(tmp_path):
    path = native.library_path(Cache(tmp_path))
    assert path.parent == tmp_path
    before = path.stat()
    assert native.library_path(Cache(tmp_path)) == path
    assert path.stat() == before
    assert list(tmp_path.iterdir()) == [path]


def test_without_a_c_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(native.NoCCompilerError, match=r"no cc on PATH.*package gcc"):
        native.library_path(Cache(tmp_path))


def test_a_c_compiler_that_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("CC", "false")
    with pytest.raises(native.NoCCompilerError, match="false cannot build"):
        native.library_path(Cache(tmp_path))
    assert not list(tmp_path.iterdir())


def test_every_symbol_that_iree_looks_up_is_there(environment):
    binary = Path(_binding.__file__).read_bytes()
    names = {n.decode() for n in re.findall(rb"\0(hip[A-Z]\w+)(?=\0)", binary) if not n.startswith((b"hipError", b"hipSuccess"))}
    library = native.load()
    assert len(names) == 75
    assert [n for n in sorted(names) if not hasattr(library, n)] == []


# ---- Memory


def test_regions_are_exact_sorted_and_live(memory):
    a, b, c = (memory.allocate(n) for n in (100, 5000, 1))
    memory.free(b)
    assert memory.regions().tolist() == sorted([[a, a + 100], [c, c + 1]])
    assert memory.regions().dtype == np.uint64
    assert memory.used == 101


def test_many_allocations(memory):
    addresses = [memory.allocate(8) for _ in range(1000)]
    for address in addresses[::2]:
        memory.free(address)
    assert memory.regions()[:, 0].tolist() == sorted(addresses[1::2])


def test_fresh_memory_is_poisoned(memory):
    data = ctypes.string_at(memory.allocate(10000), 10000)
    assert data == b"\xff" * 10000
    assert all(np.isnan(np.frombuffer(data[:16], t)).all() for t in ("f2", "f4", "f8"))


def test_addresses_are_never_used_twice(memory):
    seen = set()
    for _ in range(100):
        address = memory.allocate(4096)
        assert address not in seen
        seen.add(address)
        memory.free(address)
    assert memory.leaks() == []


def test_more_than_one_reservation(environment):
    memory = Memory(1 << 50)
    library, big = memory._library, 1 << 35
    addresses = [library.memory_allocate(memory.handle, u64(big), u64(Kind.HOST)) for _ in range(4)]  # not poisoned, so not touched
    assert 0 not in addresses
    ordered = sorted(addresses)
    assert all(b - a >= big for a, b in pairwise(ordered))
    assert memory.regions()[:, 0].tolist() == ordered
    ctypes.memset(ordered[-1] + big - 1, 7, 1)


def test_free_twice_or_elsewhere(memory):
    a, b = memory.allocate(64), memory.allocate(64)
    memory.free(a)
    with pytest.raises(MemoryFault, match=r"64 bytes at .* that has been freed"):
        memory.free(a)
    with pytest.raises(MemoryFault, match="3 bytes into the allocation of 64 bytes"):
        memory.free(b + 3)
    memory.free(b)


def test_capacity(memory):
    kept = memory.allocate(1 << 23)
    with pytest.raises(OutOfMemory, match="8388608 of 16777216 are in use"):
        memory.allocate((1 << 23) + 1)
    memory.free(kept)
    memory.allocate(1 << 24)


def test_what_is_at_an_address(memory):
    assert memory.describe(1) == "nothing is allocated"
    a, b = memory.allocate(100), memory.allocate(100)
    assert memory.describe(a + 103).startswith("3 bytes past the end of the allocation of 100 bytes")
    assert memory.describe(a - 1).startswith("1 bytes before")
    assert memory.describe(b + 99).startswith("99 bytes into")
    assert memory.describe(8).startswith("near no allocation")
    fault = memory.fault(a + 98, 4, "global_load_b32")
    assert re.fullmatch(rf"global_load_b32: 4 bytes at {a + 98:#x} are not in a live allocation: 98 bytes into .*", str(fault))


def test_memory_from_many_threads(environment):
    memory = Memory(1 << 28)

    def work():
        for _ in range(200):
            address = memory.allocate(4096)
            ctypes.memset(address, 1, 4096)
            memory.free(address)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert memory.allocations() == []


# ---- The HIP API


@dataclass
class Recorder:
    """A GPU that notes what it is asked for, and raises `error` if it is set."""

    memory: Memory
    error: BaseException | None = None
    loaded: list = field(default_factory=list)
    launched: list = field(default_factory=list)
    failures: list = field(default_factory=list)

    def load(self, elf):
        self.loaded.append(elf)
        self._raise()
        return len(self.loaded)

    def function(self, module, name):
        if name != "kernel":
            raise LaunchError(f"no {name}")
        return hip.Function(id=7, lds=512, kernarg=32, arguments=((0, 8), (16, 4)))

    def launch(self, function, grid, workgroup, kernarg):
        self.launched.append((function, grid, workgroup, kernarg))
        self._raise()

    def failed(self, error):
        self.failures.append(error)

    def _raise(self):
        if self.error:
            raise self.error


class Api:
    """The library's functions, current on a device of its own. Every call returns the status and what was written to `out`."""

    def __init__(self, gpu=Recorder):
        self.gpu = gpu(Memory(1 << 24))
        self.attached = hip.Attached(self.gpu, hip.Properties("Emulated gfx1100", "gfx1100", lds=65536, wave=32), self.gpu.memory)
        self.library = native.load()
        self.library.hipGetErrorName.restype = self.library.hipGetErrorString.restype = ctypes.c_char_p
        self.context = self.new("hipDevicePrimaryCtxRetain", self.attached.index)
        self.library.hipCtxPushCurrent(p(self.context))

    def close(self):
        self.library.hipCtxPopCurrent(None)
        self.library.hipDevicePrimaryCtxRelease(self.attached.index)

    def __getattr__(self, name):
        return getattr(self.library, name)

    def new(self, name, *arguments):
        """The handle or address that a function creates."""
        out = p()
        assert getattr(self.library, name)(ctypes.byref(out), *arguments) == SUCCESS
        return out.value

    def malloc(self, size):
        return self.new("hipMalloc", ctypes.c_size_t(size))

    def stream(self):
        return p(self.new("hipStreamCreateWithFlags", 1))

    def event(self):
        return p(self.new("hipEventCreateWithFlags", 2))

    def launch(self, kernel, stream, pointer, number):
        """Its status: of a launch whose arguments are gone when it returns."""
        pointers, _values = self.arguments(pointer, number)
        return self.hipModuleLaunchKernel(kernel, 1, 1, 1, 64, 1, 1, 0, stream, pointers, None)

    def kernel(self, image=None):
        module = self.new("hipModuleLoadData", image if image is not None else ELF)
        return p(self.new("hipModuleGetFunction", p(module), b"kernel"))

    def arguments(self, pointer, number):
        values = (ctypes.c_uint64(pointer), ctypes.c_uint32(number))
        return (p * 2)(*(ctypes.addressof(v) for v in values)), values


# An ELF header, no sections: 64 bytes.
ELF = b"\x7fELF\x02\x01\x01" + bytes(33) + (64).to_bytes(8, "little") + bytes(16)


@pytest.fixture
def api(environment):
    api = Api()
    yield api
    api.close()


def size(n):
    return ctypes.c_size_t(n)


def test_properties(api):
    out = ctypes.create_string_buffer(4096)
    assert api.hipGetDeviceProperties(out, api.attached.index) == SUCCESS
    assert out.value == b"Emulated gfx1100"
    assert out.raw[396:].startswith(b"gfx1100\0")
    assert api.hipGetDevicePropertiesR0600(out, api.attached.index) == SUCCESS
    assert out.value == b"Emulated gfx1100"
    assert out.raw[1160:].startswith(b"gfx1100\0")
    value = ctypes.c_int()
    for attribute, expected in ((26, 1024), (74, 65536), (87, 32)):
        assert api.hipDeviceGetAttribute(ctypes.byref(value), attribute, api.attached.index) == SUCCESS
        assert value.value == expected
    assert api.hipDeviceGetAttribute(ctypes.byref(value), 5, api.attached.index) == INVALID_VALUE  # not a guess
    assert api.hipGetErrorName(NO_BINARY) == b"hipErrorNoBinaryForGpu"
    assert api.hipGetErrorName(12345) == b"hipErrorUnknown"


def test_what_a_runtime_asks_of_a_device(api):
    number, large, left = ctypes.c_int(), ctypes.c_size_t(), ctypes.c_size_t()
    for attribute, expected in ((23, 11), (61, 0), (63, 1)):  # compute capability 11.0, multiprocessors
        assert api.hipDeviceGetAttribute(ctypes.byref(number), attribute, api.attached.index) == SUCCESS
        assert number.value == expected
    assert api.hipGetDevice(ctypes.byref(number)) == SUCCESS
    assert number.value == api.attached.index
    assert api.hipDeviceTotalMem(ctypes.byref(large), api.attached.index) == SUCCESS
    assert large.value == 1 << 24
    api.malloc(1000)
    assert api.hipMemGetInfo(ctypes.byref(left), ctypes.byref(large)) == SUCCESS
    assert (left.value, large.value) == ((1 << 24) - 1000, 1 << 24)
    for name in ("hipDriverGetVersion", "hipRuntimeGetVersion"):
        assert getattr(api, name)(ctypes.byref(number)) == SUCCESS
        assert number.value // 10_000_000 == 6


@pytest.mark.parametrize(
    ("code", "name", "text"),
    [
        (NO_BINARY, b"hipErrorNoBinaryForGpu", b"no kernel image is available for execution on the device"),
        (600, b"hipErrorNotReady", b"device not ready"),
        (900, b"hipErrorStreamCaptureUnsupported", b"operation not permitted when stream is capturing"),
        (904, b"hipErrorStreamCaptureUnjoined", b"capturing stream has unjoined work"),
        (908, b"hipErrorStreamCaptureWrongThread", b"attempt to terminate a thread-local capture sequence from another thread"),
    ],
)
def test_errors_have_names(api, code, name, text):
    assert (api.hipGetErrorName(code), api.hipGetErrorString(code)) == (name, text)
    out = ctypes.c_char_p()
    assert api.hipDrvGetErrorName(code, ctypes.byref(out)) == SUCCESS
    assert out.value == name
    assert api.hipDrvGetErrorString(code, ctypes.byref(out)) == SUCCESS
    assert out.value == text
    assert api.hipDrvGetErrorName(12345, ctypes.byref(out)) == INVALID_VALUE
    assert out.value is None


class Attributes(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("device", ctypes.c_int),
        ("on_device", p),
        ("on_host", p),
        ("managed", ctypes.c_int),
        ("flags", u32),
    )


def test_what_an_address_is(api):
    mine = ctypes.create_string_buffer(64)
    device, host, managed = api.malloc(100), api.new("hipHostMalloc", size(8), 0), api.new("hipMallocManaged", size(8), 1)
    found, number, large = Attributes(), ctypes.c_int(), ctypes.c_size_t()
    for address, kind in ((device + 99, 2), (host, 1), (managed, 3), (ctypes.addressof(mine), 0)):
        assert api.hipPointerGetAttributes(ctypes.byref(found), p(address)) == SUCCESS
        assert found.type == kind
        status = api.hipPointerGetAttribute(ctypes.byref(number), 2, p(address))
        assert status == (SUCCESS if kind else INVALID_VALUE)
        if kind:
            assert (number.value, found.device, found.on_device) == (kind, api.attached.index, address)
    assert api.hipPointerGetAttribute(ctypes.byref(number), 9, p(device)) == SUCCESS
    assert number.value == api.attached.index
    assert api.hipPointerGetAttribute(ctypes.byref(large), 12, p(device + 50)) == SUCCESS
    assert large.value == 100
    assert api.hipFree(p(device)) == SUCCESS
    assert api.hipPointerGetAttribute(ctypes.byref(number), 2, p(device)) == INVALID_VALUE


def test_copies_that_wait(api):
    a, b, out = api.malloc(8), api.malloc(8), ctypes.create_string_buffer(8)
    stream = api.stream()
    assert api.hipMemcpyHtoD(p(a), b"abcdefgh", size(8)) == SUCCESS
    assert api.hipMemcpyDtoD(p(b), p(a), size(8)) == SUCCESS
    assert api.hipMemcpyDtoH(out, p(b), size(8)) == SUCCESS
    assert out.raw == b"abcdefgh"
    assert api.hipMemset(p(a), 0x61, size(8)) == SUCCESS
    assert api.hipMemcpyDtoDAsync(p(b), p(a), size(4), stream) == SUCCESS
    assert api.hipMemcpyDtoHAsync(out, p(b), size(8), stream) == SUCCESS
    assert out.raw == b"aaaaefgh"
    for name in ("hipDeviceSynchronize", "hipCtxSynchronize"):
        assert getattr(api, name)() == SUCCESS
    assert api.hipStreamQuery(stream) == SUCCESS


def test_pinned_memory_that_has_been_freed(api):
    a, host = api.malloc(8), api.new("hipHostMalloc", size(8), 0)
    assert api.hipHostFree(p(host)) == SUCCESS
    for to, source, kind in ((a, host, HOST_TO_DEVICE), (host, a, DEVICE_TO_HOST)):
        assert api.hipMemcpyAsync(p(to), p(source), size(8), kind, None) == INVALID_VALUE
        assert "has been freed" in str(api.gpu.memory.take_fault())


def test_memory_needs_a_context(api):
    status = []  # of a thread that has none
    thread = threading.Thread(target=lambda: status.extend([api.hipMalloc(ctypes.byref(p()), size(1)), api.hipCtxPopCurrent(None)]))
    thread.start()
    thread.join()
    assert status == [INVALID_CONTEXT, INVALID_CONTEXT]


def test_malloc_and_free(api):
    a = api.malloc(1000)
    host = api.new("hipHostMalloc", size(10), 0)
    assert {x.start: x.kind for x in api.gpu.memory.allocations()} == {a: Kind.DEVICE, host: Kind.HOST}
    assert api.hipFree(p(host)) == INVALID_VALUE  # that is hipHostFree's
    assert "hipFree of" in str(api.gpu.memory.take_fault())
    assert api.hipHostFree(p(host)) == SUCCESS
    assert api.hipFree(p(a)) == SUCCESS
    assert api.hipFree(p(a)) == INVALID_VALUE
    assert "that has been freed" in str(api.gpu.memory.take_fault())
    assert api.hipFree(None) == SUCCESS
    assert api.gpu.memory.take_fault() is None
    assert api.hipMalloc(ctypes.byref(p()), size(1 << 25)) == OUT_OF_MEMORY


def test_free_on_a_thread_without_context(api):
    a, status = api.malloc(16), []
    thread = threading.Thread(target=lambda: status.append(api.hipFree(p(a))))
    thread.start()
    thread.join()
    assert status == [SUCCESS]


def test_pools_and_async_allocation(api):
    pool, stream = api.new("hipMemPoolCreate", None), api.new("hipStreamCreateWithFlags", 1)
    a = api.new("hipMallocFromPoolAsync", size(64), p(pool), p(stream))
    b = api.new("hipMallocAsync", size(64), p(stream))
    assert len(api.gpu.memory.leaks()) == 2
    assert api.hipFreeAsync(p(a), p(stream)) == SUCCESS
    assert api.hipFree(p(b)) == SUCCESS
    assert api.hipMemPoolDestroy(p(pool)) == SUCCESS
    assert api.hipStreamDestroy(p(stream)) == SUCCESS
    assert api.attached.handles == 0


@pytest.mark.parametrize(("offset", "length"), [(0, 101), (1, 100), (100, 1), (-1, 1), (0, 1 << 60)])
def test_copies_are_checked(api, offset, length):
    a, b, host = api.malloc(100), api.malloc(100), ctypes.addressof(ctypes.create_string_buffer(200))
    for to, source, kind in (
        (b + offset, a, DEVICE_TO_DEVICE),
        (b, a + offset, DEVICE_TO_DEVICE),
        (b + offset, host, HOST_TO_DEVICE),
        (host, a + offset, DEVICE_TO_HOST),
        (b + abs(offset), a, DEFAULT),
    ):
        status = SUCCESS if (kind, offset) == (DEFAULT, -1) else INVALID_VALUE
        assert api.hipMemcpyAsync(p(to), p(source), size(length), kind, None) == status
        fault = api.gpu.memory.take_fault()
        assert fault is None or str(fault).startswith(f"hipMemcpyAsync: {length} bytes")


def test_copies_copy(api):
    a, b = api.malloc(8), api.malloc(8)
    assert api.hipMemcpyHtoDAsync(p(a), b"abcdefgh", size(8), None) == SUCCESS
    assert api.hipMemcpyAsync(p(b), p(a + 4), size(4), DEVICE_TO_DEVICE, None) == SUCCESS
    assert ctypes.string_at(b, 4) == b"efgh"
    assert api.hipFree(p(b)) == SUCCESS
    assert api.hipMemcpyAsync(p(a), p(b), size(4), DEVICE_TO_DEVICE, None) == INVALID_VALUE  # use after free
    assert "has been freed" in str(api.gpu.memory.take_fault())


def test_memset(api):
    a = api.malloc(8)
    for name, value, width, count in (("D8", 0x12, 1, 8), ("D16", 0x1234, 2, 4), ("D32", 0x12345678, 4, 2)):
        function = getattr(api.library, f"hipMemset{name}Async")
        assert function(p(a), value, size(count), None) == SUCCESS
        assert ctypes.string_at(a, 8) == value.to_bytes(width, "little") * count
        assert function(p(a), value, size(count + 1), None) == INVALID_VALUE
        assert function(p(a), value, size(1 << 63), None) == INVALID_VALUE
    assert api.gpu.memory.take_fault() is not None


def test_registered_host_memory(api):
    mine = ctypes.create_string_buffer(b"x" * 64, 64)
    address = ctypes.addressof(mine)
    assert api.hipHostRegister(p(address), size(64), 0) == SUCCESS
    assert api.hipHostRegister(p(address + 63), size(64), 0) == INVALID_VALUE
    assert api.new("hipHostGetDevicePointer", p(address), 0) == address
    a = api.malloc(64)
    assert api.hipMemcpyAsync(p(a), p(address), size(64), DEVICE_TO_DEVICE, None) == SUCCESS
    assert api.gpu.memory.leaks() == [(a, 64, Kind.DEVICE)]
    assert api.hipHostUnregister(p(address)) == SUCCESS
    assert api.hipMemcpyAsync(p(a), p(address), size(64), DEVICE_TO_DEVICE, None) == INVALID_VALUE
    assert mine.raw == b"x" * 64  # neither poisoned nor unmapped


def test_streams_and_events(api):
    stream, a, b = api.new("hipStreamCreateWithFlags", 1), api.new("hipEventCreate"), api.new("hipEventCreateWithFlags", 2)
    called = []
    callback = ctypes.CFUNCTYPE(None, p)(called.append)
    for status in (
        api.hipEventRecord(p(a), p(stream)),
        api.hipLaunchHostFunc(p(stream), callback, p(42)),
        api.hipEventRecord(p(b), p(stream)),
        api.hipStreamWaitEvent(p(stream), p(b), 0),
        api.hipEventQuery(p(b)),
        api.hipEventSynchronize(p(b)),
        api.hipStreamSynchronize(p(stream)),
    ):
        assert status == SUCCESS
    assert called == [42]
    milliseconds = ctypes.c_float(-1)
    assert api.hipEventElapsedTime(ctypes.byref(milliseconds), p(a), p(b)) == SUCCESS
    assert 0 <= milliseconds.value < 1e4
    assert api.hipStreamSynchronize(p(a)) == INVALID_HANDLE  # an event is no stream
    assert api.hipStreamDestroy(p(b)) == INVALID_HANDLE
    assert api.attached.handles == 3
    for status in (api.hipEventDestroy(p(a)), api.hipEventDestroy(p(b)), api.hipStreamDestroy(p(stream))):
        assert status == SUCCESS
    assert api.attached.handles == 0


# ---- Modules and launches


def test_a_launch(api):
    kernel = api.kernel(ELF + b"what follows is not part of it")
    assert api.gpu.loaded == [ELF]
    value = ctypes.c_int()
    assert api.hipFuncGetAttribute(ctypes.byref(value), 1, kernel) == SUCCESS
    assert value.value == 512
    pointers, _values = api.arguments(0x1122334455667788, 99)
    assert api.hipModuleLaunchKernel(kernel, 3, 4, 5, 64, 2, 1, 0, None, pointers, None) == SUCCESS
    kernarg = (0x1122334455667788).to_bytes(8, "little") + bytes(8) + (99).to_bytes(4, "little") + bytes(12)
    assert api.gpu.launched == [(7, (3, 4, 5), (64, 2, 1), kernarg)]


def test_what_is_not_a_code_object(api):
    assert api.hipModuleLoadData(ctypes.byref(p()), b"__CLANG_OFFLOAD_BUNDLE__" + bytes(64)) == NO_BINARY
    assert api.gpu.loaded == []
    assert api.attached.handles == 0


def test_a_code_object_that_is_refused(api):
    api.gpu.error = ValueError("not mine")
    assert api.hipModuleLoadDataEx(ctypes.byref(p()), ELF, 0, None, None) == NO_BINARY
    assert api.gpu.failures == [api.gpu.error]
    assert api.attached.handles == 0


def test_a_kernel_that_is_not_there(api):
    module = api.new("hipModuleLoadData", ELF)
    assert api.hipModuleGetFunction(ctypes.byref(p()), p(module), b"other") == NOT_FOUND
    assert str(api.gpu.failures[0]) == "no other"
    assert api.hipModuleUnload(p(module)) == SUCCESS
    assert api.attached.handles == 0


def test_a_failed_launch_ends_the_device(api):
    kernel, stream, a = api.kernel(), api.new("hipStreamCreateWithFlags", 1), api.malloc(16)
    before, b = api.new("hipEventCreate"), api.new("hipMallocAsync", size(16), p(stream))
    assert api.hipEventRecord(p(before), p(stream)) == SUCCESS
    pointers, _values = api.arguments(1, 2)
    api.gpu.error = KeyboardInterrupt()  # whatever it is
    launch = (kernel, 1, 1, 1, 1, 1, 1, 0, None, pointers, None)
    assert api.hipModuleLaunchKernel(*launch) == LAUNCH_FAILURE
    assert api.gpu.failures == [api.gpu.error]
    api.gpu.error = None
    assert api.hipModuleLaunchKernel(*launch) == LAUNCH_FAILURE
    assert len(api.gpu.launched) == 1
    assert api.hipStreamSynchronize(p(stream)) == LAUNCH_FAILURE
    assert api.hipMemset(p(a), 0, size(16)) == LAUNCH_FAILURE
    assert api.hipEventRecord(p(before), p(stream)) == LAUNCH_FAILURE
    # What is left can be cleaned up, and waited for: IREE's driver does not survive errors of these.
    for status in (api.hipFree(p(a)), api.hipFreeAsync(p(b), p(stream)), api.hipEventQuery(p(before)), api.hipEventSynchronize(p(before))):
        assert status == SUCCESS
    assert api.hipEventDestroy(p(before)) == SUCCESS
    other = Api()
    assert other.malloc(16)  # and other devices go on
    other.close()


def test_what_launches_do_not_have(api):
    kernel = api.kernel()
    pointers, _values = api.arguments(1, 2)
    assert api.hipModuleLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 64, None, pointers, None) == NOT_SUPPORTED  # dynamic LDS
    other = Api()
    stream = other.new("hipStreamCreateWithFlags", 1)
    assert api.hipModuleLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, p(stream), pointers, None) == INVALID_HANDLE  # of another device
    other.close()
    assert api.gpu.launched == []


def test_a_device_that_python_has_dropped(environment):
    api = Api()
    kernel, index = api.kernel(), api.attached.index
    pointers, _values = api.arguments(1, 2)
    del api.attached
    assert api.library.hipModuleLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, None, pointers, None) == DEINITIALIZED
    assert api.malloc(8)  # its memory is there as long as IREE has the context
    assert api.library.hipDevicePrimaryCtxRelease(index) == SUCCESS
    assert api.library.hipMalloc(ctypes.byref(p()), size(8)) == DEINITIALIZED
    api.gpu.memory.free(api.gpu.memory.allocate(8))  # which is Python's own from here on
    api.library.hipCtxPopCurrent(None)


class KernelNode(ctypes.Structure):
    _fields_ = (("block", u32 * 3), ("extra", p), ("function", p), ("grid", u32 * 3), ("arguments", p), ("dynamic_lds", u32))


def test_a_graph(api):
    stream, kernel, graph = api.new("hipStreamCreateWithFlags", 1), api.kernel(), p(api.new("hipGraphCreate", 0))
    first = p(api.new("hipGraphAddEmptyNode", graph, None, size(0)))
    pointers, values = api.arguments(5, 6)
    node = KernelNode((64, 1, 1), None, kernel, (2, 1, 1), ctypes.addressof(pointers), 0)
    second = api.new("hipGraphAddKernelNode", graph, ctypes.byref(first), size(1), ctypes.byref(node))
    values[1].value = 1000  # arguments are taken when the node is added
    assert api.hipGraphAddEmptyNode(ctypes.byref(p()), graph, ctypes.byref(p(second + 8)), size(1)) == INVALID_VALUE  # no node of it
    run = p(api.new("hipGraphInstantiate", graph, None, None, size(0)))
    assert api.hipGraphDestroy(graph) == SUCCESS
    assert api.gpu.launched == []
    for _ in range(2):
        assert api.hipGraphLaunch(run, p(stream)) == SUCCESS
    kernarg = (5).to_bytes(16, "little") + (6).to_bytes(16, "little")
    assert api.gpu.launched == [(7, (2, 1, 1), (64, 1, 1), kernarg)] * 2
    assert api.hipGraphExecDestroy(run) == SUCCESS


# ---- Hidden arguments


def test_hidden_arguments():
    names = {
        "by_value": 4, "hidden_block_count_x": 4, "hidden_block_count_z": 4, "hidden_group_size_y": 2, "hidden_remainder_x": 2,
        "hidden_grid_dims": 2, "hidden_global_offset_x": 8, "hidden_hostcall_buffer": 8,
    }  # fmt: skip
    offsets = [8 * n for n in range(len(names))]
    taken = tuple(Argument(name, at, size) for at, (name, size) in zip(offsets, names.items(), strict=True))
    filled = fill_hidden(b"\xaa" * 64, taken, (3, 4, 5), (64, 2, 1))
    values = [int.from_bytes(filled[a.offset : a.offset + a.size], "little") for a in taken]
    assert values == [0xAAAAAAAA, 3, 5, 2, 0, 3, 0, 0]
    assert filled[4:8] == b"\xaa" * 4


@pytest.mark.parametrize(("grid", "workgroup", "dims"), [((9, 1, 1), (64, 1, 1), 1), ((1, 1, 1), (1, 2, 1), 2), ((1, 1, 2), (1, 1, 1), 3)])
def test_grid_dims(grid, workgroup, dims):
    assert fill_hidden(bytes(2), (Argument("hidden_grid_dims", 0, 2),), grid, workgroup) == dims.to_bytes(2, "little")


def test_a_hidden_argument_that_is_not_known():
    with pytest.raises(LaunchError, match="hidden_crystal_ball"):
        fill_hidden(bytes(8), (Argument("hidden_crystal_ball", 0, 8),), (1, 1, 1), (1, 1, 1))
