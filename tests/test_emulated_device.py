"""Emulated devices, driven by iq's own launches and through IREE's hip driver: buffers, launches, errors, several at once.

A stand-in executes here, which knows one kernel; what the emulator of instructions computes is tested elsewhere.
"""

import ctypes
import gc
import struct
import time

import numpy as np
import pytest
from conftest import OnDemandFor
from iree.runtime.flags import parse_flags

import iq
from iq import runtime
from iq.emulator.device import EmulatedGpu, WrongProcessor
from iq.emulator.faults import EmulationError
from iq.emulator.memory import Memory, MemoryFault
from iq.emulator.statistics import Statistics
from iq.errors import DeviceError, NoArtifactError
from iq.kernels import KernelSpec, plan
from iq.targets import TARGETS


class Planted(EmulationError):
    """An error that a test provokes."""


# What dequantize.q4_0.f32 launches on every ROCm target.
[DEQUANTIZE] = [dispatch.name for dispatch in plan(KernelSpec.parse("dequantize.q4_0.f32"), TARGETS["gfx1100"])]


class StandIn:
    """Executes dequantize to f32 of q4_0, in numpy, with every access checked; `error` makes it raise that instead."""

    def __init__(self):
        self.error = None
        self.calls = []

    def __call__(self, code, kernel, grid, workgroup, kernarg, memory, options):
        self.calls.append((code.code.processor, kernel, grid, workgroup, kernarg))
        if self.error:
            raise self.error
        assert kernel == DEQUANTIZE
        source, target, blocks = struct.unpack_from("<QQI", kernarg)
        held = memory.regions()
        for address, size in ((source, 18 * blocks), (target, 128 * blocks)):
            if not ((held[:, 0] <= address) & (address + size <= held[:, 1])).any():
                raise memory.fault(address, size, "stand-in")
        values = iq.dequantize(np.frombuffer(ctypes.string_at(source, 18 * blocks), np.uint8).reshape(1, -1), "q4_0")
        ctypes.memmove(target, values.tobytes(), 128 * blocks)
        return STATISTICS


STATISTICS = object.__new__(Statistics)  # handed through unseen


@pytest.fixture
def stand_in():
    return StandIn()


@pytest.fixture(params=["launch", "iree"])
def open_device(environment, stand_in, request):
    """Opens an emulated device of a processor, with the kernels of that target; the device and its GPU. Once for each way to run."""

    def open_device(processor="gfx1100", kernels_of=None):
        gpu = EmulatedGpu(f"emulated:{processor}", launch=stand_in)
        provider = OnDemandFor(TARGETS[kernels_of or processor])
        return runtime.Device(gpu.runtime, provider=provider, runtime=request.param), gpu

    return open_device


def weight(device, n=5, k=64):
    packed = iq.quantize(np.random.default_rng(0).standard_normal((n, k), dtype=np.float32), "q4_0")
    return iq.QTensor.from_bytes(packed, "q4_0", shape=(n, k), device=device), iq.dequantize(packed, "q4_0")


def eventually(condition):
    """Whether it holds soon: IREE frees on a thread of its own."""
    gc.collect()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return False


# ---- Opening


@pytest.mark.parametrize(
    ("spec", "id"),
    [
        ("emulated:gfx1100", "gfx1100"),
        ("emulated:gfx90a", "gfx90a:sramecc+:xnack-"),
        ("emulated:gfx942:xnack+", "gfx942:sramecc+:xnack+"),
    ],
)
def test_what_a_device_says_it_is(environment, spec, id):
    device = iq.Device(spec)
    assert (device.name, str(device.id), device.is_cpu) == (spec, id, False)
    assert device.emulated.name == spec
    assert device.target is TARGETS[device.id.processor]


@pytest.mark.parametrize("spec", ["emulated:gfx1250", "emulated:gfx803", "emulated:sm_90", "emulated", "emulated:"])
def test_a_processor_that_cannot_be_emulated(spec):
    with pytest.raises(DeviceError, match=r"no such GPU can be emulated; these can: .*gfx90a.*gfx1201"):
        iq.Device(spec)


@pytest.mark.parametrize("settings", ["xnack", "sramecc+:tea+", "xnack+:xnack-", ""])
def test_settings_that_a_gpu_does_not_have(settings):
    with pytest.raises(DeviceError, match=r"a gfx942 has the settings sramecc\+, sramecc-, xnack\+, xnack-, each once"):
        iq.Device(f"emulated:gfx942:{settings}")


def test_without_what_the_emulator_imports(monkeypatch):
    monkeypatch.setattr("iq.extras.find_spec", lambda name: None if name == "elftools" else object())
    with pytest.raises(DeviceError, match=r"elftools cannot be imported \(pip install 'iq-kernels\[emulate\]'\)"):
        iq.Device("emulated:gfx1036")  # which no other test has opened and named


def test_threads_are_not_for_it():
    with pytest.raises(DeviceError, match="threads=2 is for the device cpu"):
        iq.Device("emulated:gfx1100", threads=2)


def test_without_kernels_for_it(environment):
    with pytest.raises(NoArtifactError, match="does not compile for gfx900"):
        _ = iq.Device("emulated:gfx900").target


# ---- Buffers


def test_buffers(open_device):
    device, _ = open_device()
    array = np.arange(1000, dtype=np.float32)
    buffer = device.put(array)
    assert np.array_equal(buffer.numpy(), array)
    assert np.array_equal(buffer[10:20].numpy(), array[10:20])
    assert np.array_equal(buffer[990:].copy().numpy(), array[990:])
    buffer[:10].fill_zero()
    buffer[10:20].copy_from(buffer[500:510])
    assert np.array_equal(buffer.numpy(), np.concatenate([np.zeros(10), array[500:510], array[20:]]))
    assert not device.zeros((5, 7), "int32").numpy().any()
    assert np.isnan(device.alloc(10, "float32").numpy()).all()  # poisoned


def test_every_byte_is_given_back(open_device):
    device, gpu = open_device()
    w, _ = weight(device)
    w.dequantize()
    assert gpu.memory.leaks()
    del w
    device.synchronize()
    assert eventually(lambda: not gpu.memory.leaks())
    assert gpu.memory.allocations()  # for staging
    del device
    assert eventually(lambda: not gpu.memory.allocations() and not gpu.handles)
    assert gpu.take_failure() is None


def test_more_memory_than_there_is(open_device):
    device, gpu = open_device()
    with pytest.raises(DeviceError, match="out of memory"):
        device.alloc(gpu.memory.capacity, "u8")
    assert device.zeros(4, "u8").numpy().sum() == 0  # still usable


def test_use_after_free(open_device):
    device, gpu = open_device()
    buffer = device.put(np.arange(100, dtype=np.int32))
    [allocation] = gpu.memory.leaks()
    gpu.memory.free(allocation.start)
    with pytest.raises(MemoryFault, match=r"hipMemcpyAsync: 400 bytes .* that has been freed"):
        buffer.numpy()


def test_double_free(open_device):
    device, gpu = open_device()
    buffer = device.put(np.arange(100, dtype=np.int32))
    device.synchronize()
    gpu.memory.free(gpu.memory.leaks()[0].start)
    del buffer
    with pytest.raises(MemoryFault, match=r"hipFree(Async)? of"):
        device.zeros(1, "u8").numpy()


# ---- Kernels


def test_a_kernel_runs(open_device, stand_in):
    device, gpu = open_device()
    w, values = weight(device)
    assert np.array_equal(w.dequantize().numpy(), values)
    [(processor, kernel, grid, workgroup, _)] = stand_in.calls
    assert (processor, kernel, grid[1:], workgroup[1:]) == ("gfx1100", DEQUANTIZE, (1, 1), (1, 1))
    [launch] = gpu.launches
    assert (launch.kernel, launch.grid, launch.workgroup, launch.statistics) == (kernel, grid, workgroup, STATISTICS)


@pytest.fixture
def graphs():
    """Command buffers of IREE's hip driver become HIP graphs."""
    parse_flags("--hip_use_streams=false")
    yield
    parse_flags("--hip_use_streams=true")


@pytest.mark.parametrize("open_device", ["iree"], indirect=True)
def test_command_buffers_as_graphs(graphs, open_device, stand_in):
    device, _ = open_device()
    w, values = weight(device)
    assert np.array_equal(w.dequantize().numpy(), values)
    assert np.array_equal(device.put(values)[1:3].copy().numpy(), values[1:3])
    buffer, mapped = device._backend.hal._staging(32)
    patterns = {0: b"\x01", 8: b"\x12\x34", 16: b"\x12\x34\x56\x78"}
    device._backend.hal._execute(lambda commands: [commands.fill(buffer, patterns[at], at, 8, end=at == 16) for at in patterns])
    want = b"\x01" * 8 + b"\x12\x34" * 4 + b"\x12\x34\x56\x78" * 2
    assert mapped.tobytes() == want + bytes(8)
    stand_in.error = Planted("in a graph")
    with pytest.raises(Planted, match="in a graph"):
        w.dequantize()


def test_several_at_once(open_device, stand_in):
    devices = [open_device(processor) for processor in ("gfx1100", "gfx90a", "gfx1201", "gfx1100")]
    for device, _ in devices:
        w, values = weight(device)
        assert np.array_equal(w.dequantize().numpy(), values)
    assert [call[0] for call in stand_in.calls] == ["gfx1100", "gfx90a", "gfx1201", "gfx1100"]
    assert [len(gpu.launches) for _, gpu in devices] == [1] * 4
    starts = np.array([a.start for _, gpu in devices for a in gpu.memory.allocations()])
    assert len(set(starts.tolist())) == len(starts)


def test_a_code_object_for_another_processor(open_device):
    device, gpu = open_device("gfx1201", kernels_of="gfx1100")
    w, _ = weight(device)
    with pytest.raises(WrongProcessor, match="the code object is for gfx1100, this device is an emulated gfx1201") as caught:
        w.dequantize().numpy()
    assert "hipErrorNoBinaryForGpu" in str(caught.value.__cause__)  # as on a real host
    assert gpu.launches == []


def test_an_error_keeps_its_type_and_ends_the_device(open_device, stand_in):
    (device, gpu), (other, _) = open_device(), open_device()
    w, values = weight(device)
    stand_in.error = Planted("planted")
    with pytest.raises(Planted, match="planted"):
        w.dequantize().numpy()
    stand_in.error = None
    with pytest.raises(DeviceError, match="unusable: open it again"):
        w.dequantize().numpy()
    assert gpu.launches == []
    for next_device in (other, open_device()[0]):
        assert np.array_equal(weight(next_device)[0].dequantize().numpy(), values)


def test_an_access_out_of_bounds(open_device, stand_in):
    device, gpu = open_device()
    w, _ = weight(device)
    stand_in.error = gpu.memory.fault(0x10, 4, "global_load_b32")
    with pytest.raises(MemoryFault, match="global_load_b32: 4 bytes at 0x10 are not in a live allocation"):
        w.dequantize().numpy()


def test_memory_of_one_device_is_not_anothers(environment):
    a, b = Memory(1 << 20), Memory(1 << 20)
    address = a.allocate(64)
    with pytest.raises(MemoryFault):
        b.free(address)


# ---- With the emulator of instructions


@pytest.mark.parametrize("processor", ["gfx90a", "gfx1100", "gfx1201"])
def test_emulated(environment, processor):
    device = iq.Device(f"emulated:{processor}")
    before = len(device.emulated.launches)
    w, values = weight(device, n=37, k=64)
    assert np.array_equal(w.dequantize().numpy(), values)
    assert [launch.kernel for launch in device.emulated.launches[before:]] == [DEQUANTIZE]
