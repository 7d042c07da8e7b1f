"""Plants failures in every kind of call and lets the garbage collector find what they leave: `python tests/crash.py 1000 [seed]`.

Each error is kept for a while, in a cycle with its device and with the locals of its traceback, as a debugger or a test runner keeps it.
It then goes in an order that the collector chooses. The exit status is 0 when every call failed as it should, the interpreter lives,
and all that was opened has been given back. tests/test_crash.py runs a few rounds, `make crash-test` a thousand.
"""

import gc
import os
import random
import sys
import tempfile
import threading
import time
import weakref
from dataclasses import replace
from functools import cache

import numpy as np
from compiled import module_of

import iq
from iq import runtime
from iq.emulator.device import EmulatedGpu, WrongProcessor
from iq.emulator.faults import DisassemblerError, EmulationError
from iq.errors import BytecodeError, DeviceError, IqError, NoKernelError, RowIndexError, ShapeError
from iq.kernels import KernelSpec
from iq.runtime.host import cpu_flags
from iq.targets import TARGETS, DeviceId

PROCESSORS = ("gfx1100", "gfx90a", "gfx1201")


class Planted(EmulationError):
    """An error that a test provokes."""


class Launcher:
    """Executes nothing; the launch number `fails` raises."""

    def __init__(self, fails=None):
        self.fails, self.count, self.pause = fails, 0, 0.0

    def __call__(self, code, kernel, grid, workgroup, kernarg, memory, options):
        self.count += 1
        time.sleep(self.pause)
        if self.count - 1 == self.fails:
            raise Planted(f"launch {self.fails}")
        return


@cache
def compiled(target, format):
    """A module. Made once: to make it anew, its templates would be rendered."""
    return module_of(target, format)


class From:
    """Kernels for a target, whose modules `form` makes of a function that gives them."""

    def __init__(self, target, form):
        self._target, self._form = target, form

    def target(self, device_id, flags):
        return self._target

    def module(self, target, spec):
        return self._form(lambda: compiled(target, spec.format))


GPUS = weakref.WeakSet()
OPEN = []  # of them those that iq drives itself: what it leaves behind shows though nothing else keeps them


def holds(gpu):
    return gpu.handles or gpu.memory.allocations()


def emulated(fails=None, processor=None, form=lambda module: module(), kernels_of=None, how=None):
    """An emulated device and its GPU, on which the launch number `fails` fails. how: "launch" or "iree", by default one at random."""
    processor = processor or random.choice(PROCESSORS)
    gpu = EmulatedGpu(f"emulated:{processor}", launch=Launcher(fails))
    GPUS.add(gpu)
    provider = From(TARGETS[kernels_of or processor], form)
    device = runtime.Device(gpu.runtime, provider=provider, runtime=how or random.choice(("launch", "iree")))
    if device.runtime == "launch":
        OPEN[:] = [*filter(holds, OPEN), gpu]
    return device, gpu


def cpu(form=lambda module: module()):
    from iq.compile.ondemand import CompileOnDemand

    target = CompileOnDemand().target(DeviceId("cpu"), cpu_flags())
    return runtime.Device("cpu", provider=From(target, form), threads=random.choice((1, 2)))


def weight(device, n=4, k=64):
    return iq.QTensor.from_bytes(np.zeros((n, k // 32 * 18), np.uint8), "q4_0", (n, k), device)


X = np.ones((2, 64), np.float32)


# ---- One failure each: the error's type, and a function that raises it


def cut_module(device_of):
    def cut(whole):
        return replace(whole(), vmfb=whole().vmfb[: random.choice((0, 100, 3000, -1000))])

    weight(device_of(form=cut)).matmul(X)


def cut_cpu_module():
    cut_module(cpu)


def cut_gpu_module():
    cut_module(lambda form: emulated(form=form)[0])


def lacking_kernel():
    device = cpu()
    module = compiled(device.target, "q4_0")
    other = cpu(lambda _: module)
    weight(other).matmul(X)
    other.library.kernel(KernelSpec.parse("mul_mat_vec.q8_0.1"))


def wrong_dtype():
    device = cpu()
    kernel = device.library.kernel(KernelSpec.parse("mul_mat_vec.q4_0.1"))
    kernel((device.zeros(18, "u8"), device.zeros(32, "f64")), {"m": 1, "n": 1, "blocks": 1}, (device.zeros(1, "f32"),))


def too_few_buffers():
    device = cpu()
    kernel = device.library.kernel(KernelSpec.parse("mul_mat_vec.q4_0.1"))
    kernel((device.zeros(18, "u8"),), {"m": 1, "n": 1, "blocks": 1}, (device.zeros(1, "f32"),))


def short_buffer():
    device = cpu()
    kernel = device.library.kernel(KernelSpec.parse("mul_mat_vec.q4_0.1"))
    kernel((device.zeros(18, "u8"), device.zeros(32, "f32")), {"m": 1, "n": 2, "blocks": 1}, (device.zeros(2, "f32"),))


def buffer_of_another_device():
    device, other = cpu(), emulated()[0]
    kernel = device.library.kernel(KernelSpec.parse("mul_mat_vec.q4_0.1"))
    kernel((other.zeros(18, "u8"), device.zeros(32, "f32")), {"m": 1, "n": 1, "blocks": 1}, (device.zeros(1, "f32"),))


def ids_outside():
    weight(cpu()).get_rows([0, 4])


def no_memory():
    cpu().alloc(1 << 46, "u8")


def no_gpu_memory():
    device, gpu = emulated()
    device.alloc(gpu.memory.capacity, "u8")


def fault_of_a_kernel():
    weight(emulated(0)[0]).dequantize().numpy()


def fault_before_temporaries_are_freed():
    weight(emulated(0)[0]).matmul(X).numpy()


def fault_of_the_second_kernel():
    weight(emulated(1)[0]).matmul(X).numpy()


def fault_after_success():
    device, _ = emulated(4)
    w = weight(device)
    for _ in range(3):
        w.matmul(X).numpy()


def faults_in_threads():
    device, gpu = emulated(6)
    gpu._launch.pause = 0.001
    w, errors = weight(device), []

    def work():
        try:
            for _ in range(6):
                w.matmul(X).numpy()
        except IqError as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    raise errors[0]


def failed(action):
    """`action`, on a device that a launch has ended."""

    def run():
        device, _ = emulated(0)
        w, first = weight(device), []  # which keeps the error of the launch as well
        buffer, other = device.zeros(64, "f32"), device.zeros(64, "f32")
        try:
            w.matmul(X).numpy()
        except Planted as error:
            first.append(error)
        action(device, w, buffer, other)

    run.__name__ = f"failed_{action.__name__}"
    return run


def matmul(device, w, buffer, other):
    w.matmul(X)


def read(device, w, buffer, other):
    buffer.numpy()


def write(device, w, buffer, other):
    buffer.copy_from(np.zeros(64, np.float32))


def copy(device, w, buffer, other):
    buffer.copy_from(other)


def fill(device, w, buffer, other):
    buffer.fill_zero()


def allocate(device, w, buffer, other):
    device.alloc(4, "f32")


def use_after_free():
    device, gpu = emulated()
    buffer = device.put(X)
    gpu.memory.free(gpu.memory.leaks()[0].start)
    buffer.numpy()


def another_processor():
    weight(emulated(processor="gfx1201", kernels_of="gfx1100")[0]).matmul(X).numpy()


def no_disassembler():
    before = {name: os.environ.get(name) for name in ("IQ_LLVM_OBJDUMP", "IQ_CACHE_DIR")}
    compiled(TARGETS["gfx1100"], "q4_0")
    device, _ = emulated(processor="gfx1100")
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(IQ_LLVM_OBJDUMP="/nonexistent", IQ_CACHE_DIR=folder)
        try:
            weight(device).matmul(X).numpy()
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


CASES = [
    (BytecodeError, cut_cpu_module),
    (BytecodeError, cut_gpu_module),
    (NoKernelError, lacking_kernel),
    (DeviceError, wrong_dtype),
    (DeviceError, too_few_buffers),
    (ShapeError, short_buffer),
    (DeviceError, buffer_of_another_device),
    (RowIndexError, ids_outside),
    (DeviceError, no_memory),
    (DeviceError, no_gpu_memory),
    (Planted, fault_of_a_kernel),
    (Planted, fault_before_temporaries_are_freed),
    (Planted, fault_of_the_second_kernel),
    (Planted, fault_after_success),
    (IqError, faults_in_threads),
    *((DeviceError, failed(action)) for action in (matmul, read, write, copy, fill, allocate)),
    (EmulationError, use_after_free),
    (WrongProcessor, another_processor),
    (DisassemblerError, no_disassembler),
]

kept = []


def plant(kind, case):
    try:
        case()
    except kind as error:
        cycle = [error]
        cycle.append(cycle)
        error.cycle = cycle
        kept.append(error)
    else:
        raise AssertionError(f"{case.__name__} did not fail")


def main(count, seed):
    random.seed(seed)
    started = time.monotonic()
    for n in range(count):
        plant(*CASES[n % len(CASES)])
        if random.random() < 0.3:
            random.shuffle(kept)
            del kept[random.randrange(len(kept)) :]
        if random.random() < 0.2:
            gc.collect()
    kept.clear()
    gc.collect()
    deadline = time.monotonic() + 10
    while (left := {gpu for gpu in (*GPUS, *OPEN) if holds(gpu)}) and time.monotonic() < deadline:
        time.sleep(0.01)  # IREE frees on threads of its own
    print(f"{count} failures, {len(left)} devices left, {time.monotonic() - started:.1f} s")
    return bool(left)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
