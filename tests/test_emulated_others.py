"""Our kernels on GPUs that the emulator has and iq has no target for: compiled as for a near relative, executed by their own rules.

They differ in where work item ids lie, in flat addresses, in wait and dot instructions, in what their matrix units are called.
"""

from dataclasses import replace
from pathlib import Path

import pytest
from tiers import GENERATIONS, REPRESENTATIVES, something_of_everything

from iq import bundle, kernels, runtime
from iq.cache import Cache
from iq.compile.build import Module, compile_module
from iq.compile.compiler import Compilations, Compiler
from iq.emulator.device import PROCESSORS, EmulatedGpu
from iq.emulator.machine import Options
from iq.inspect import Objdump, waits
from iq.kernels import KernelSpec
from iq.targets import TARGETS
from iq.verify.devices import APPROXIMATIONS, EMULATED, Opened
from iq.verify.run import Runner

# Processors of their own kind: the target that each is most like, without what it lacks. gfx90a is a target itself.
GFX90A, GFX942, GFX1030, GFX1100, GFX1201 = (TARGETS[id] for id in ("gfx90a", "gfx942", "gfx1030", "gfx1100", "gfx1201"))
OTHERS = {
    "gfx900": replace(GFX90A, dot="none", matrix=None),
    "gfx906": replace(GFX90A, matrix=None),
    "gfx908": GFX90A,
    "gfx90a": GFX90A,
    "gfx950": GFX942,
    "gfx1010": replace(GFX1030, dot="none", matrix=None),
    "gfx1012": GFX1030,
    "gfx1036": GFX1030,
    "gfx1103": GFX1100,
    "gfx1151": GFX1100,
    "gfx1200": GFX1201,
}
TARGET_OF = {name: replace(like, id=name, like=like.id if name != like.id else like.like) for name, like in OTHERS.items()}
# One of each kind, for what is not about a processor.
SOME = ("dequantize.q6_k.f16", "dequantize_mul_mat_vec.q8_0.2", "mul_mat_vec.q4_k.2", "mul_mat.q8_0.q8_1", "mul_mat.q4_0.float")


class OneKernel:
    """Provides a module with one kernel, in which no wait is missing."""

    def __init__(self, target, spec):
        self._target, self._spec = target, spec

    def target(self, device_id, cpu_flags):
        return self._target

    def module(self, target, format):
        with Compilations(Compiler.find()) as compilations:
            vmfb = compile_module(Module(target, format, (self._spec,)), compilations, Cache()).read_bytes()
        objdump = Objdump.find()
        assert isinstance(objdump, Objdump) and waits.check_vmfb(vmfb, objdump) == []
        return bundle.Module.of(format, vmfb, (self._spec,), target)


def failures(target, spec, options):
    def open_gpu(target, path):
        gpu = EmulatedGpu(f"emulated:{target.id}", options)
        return Opened(runtime.Device(gpu.runtime, provider=OneKernel(target, spec)), EMULATED, APPROXIMATIONS, gpu.launches)

    report = Runner(target, Path(), open_gpu).kernel(spec)
    assert report.instructions > 0
    return {case.name: case.failure or case.checks for case in report.cases if not case.passed}


@pytest.mark.parametrize(
    ("processor", "key"), [(name, spec.key) for name, target in TARGET_OF.items() for spec in something_of_everything(target)]
)
def test_kernel(environment, processor, key):
    assert not failures(TARGET_OF[processor], KernelSpec.parse(key), Options())


@pytest.mark.parametrize("key", SOME)
def test_firmware_that_does_not_preload_arguments(environment, key):
    """Kernels for gfx942 start with code for it."""
    assert not failures(GFX942, KernelSpec.parse(key), Options(preload=False))


def test_each_kind_of_processor_is_here_or_a_target():
    """Those left out differ from one that is here in their number only."""
    tried = {name[:-1] for name in (*OTHERS, *GENERATIONS)}
    assert {name[:-1] for name in PROCESSORS} <= tried
    assert {target.id for target in TARGETS.values() if target.family == "rocm"} <= {*OTHERS, *GENERATIONS}


def test_something_of_everything():
    """Each decode shape, each kernel function and each target is among what runs on other processors than those that run all."""
    for target in TARGET_OF.values():
        chosen, everything = something_of_everything(target), kernels.kernels(target)
        assert {spec.format for spec in chosen} == {spec.format for spec in everything if spec.format in REPRESENTATIVES}
        functions, wanted = ({d.kernel.name for spec in specs for d in kernels.plan(spec, target)} for specs in (chosen, everything))
        assert functions == wanted, target.id
        assert len(chosen) < len(everything) / 5
