"""Our kernels on GPUs that the emulator has and iq has no target for: compiled as for a near relative, executed by their own rules.

They differ in where work item ids lie, in flat addresses, in wait and dot instructions, in what their matrix units are called.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from iq import runtime
from iq.cache import Cache
from iq.compile.build import Module, compile_module
from iq.compile.compiler import Compilations, Compiler
from iq.emulator.device import PROCESSORS, EmulatedGpu
from iq.emulator.machine import Options
from iq.kernels import KernelSpec
from iq.targets import TARGETS
from iq.verify.devices import APPROXIMATIONS, EMULATED, Opened
from iq.verify.run import Runner

# A target like it.
RELATIVES = {
    "gfx900": "gfx90a",
    "gfx906": "gfx90a",
    "gfx908": "gfx90a",
    "gfx950": "gfx942",
    "gfx1010": "gfx1030",
    "gfx1012": "gfx1030",
    "gfx1036": "gfx1030",
    "gfx1103": "gfx1100",
    "gfx1151": "gfx1100",
    "gfx1200": "gfx1201",
}
PLAIN = ("dequantize.q6_k.f16", "dequantize_mul_mat_vec.q8_0.4")
DOT4 = ("mul_mat_vec.q4_k.2", "mul_mat.q8_0.q8_1")
TILE = ("mul_mat.q4_0.float",)
# What these processors lack of what their relative has.
LACKING = {"gfx900": {"dot": "none", "matrix": None}, "gfx906": {"matrix": None}, "gfx1010": {"dot": "none", "matrix": None}}


class OneKernel:
    """Provides a module with one kernel."""

    def __init__(self, target, spec):
        self._target, self._spec = target, spec

    def target(self, device_id, cpu_flags):
        return self._target

    def module(self, target, format):
        with Compilations(Compiler.find()) as compilations:
            return compile_module(Module(target, format, (self._spec,)), compilations, Cache()).read_bytes()


def failures(processor, key, target, options):
    def open_gpu(target, bundle):
        gpu = EmulatedGpu(f"emulated:{processor}", options)
        device = runtime.Device(gpu.runtime, provider=OneKernel(target, spec))
        return Opened(device, EMULATED, APPROXIMATIONS, gpu.launches)

    spec = KernelSpec.parse(key)
    report = Runner(target, Path(), open_gpu).kernel(spec)
    assert report.instructions > 0
    return {case.name: case.failure or case.checks for case in report.cases if not case.passed}


@pytest.mark.parametrize(("processor", "key"), [(p, key) for p in RELATIVES for key in PLAIN + DOT4 + TILE])
def test_kernel(environment, processor, key):
    relative = TARGETS[RELATIVES[processor]]
    assert not failures(processor, key, replace(relative, id=processor, like=relative.id, **LACKING.get(processor, {})), Options())


@pytest.mark.parametrize("key", PLAIN + DOT4 + TILE)
def test_firmware_that_does_not_preload_arguments(environment, key):
    """Kernels for gfx942 start with code for it."""
    assert not failures("gfx942", key, TARGETS["gfx942"], Options(preload=False))


def test_each_kind_of_processor_is_here_or_a_target():
    """Those left out differ from one that is here in their number only."""
    tried = {name[:-1] for name in (*RELATIVES, *TARGETS)}
    assert {name[:-1] for name in PROCESSORS} <= tried
