"""Something of everything on the processors that do not run all kernels, executed by their own rules.

They differ in where work item ids lie, in flat addresses, in wait and dot instructions, in what their matrix units are called.
"""

from dataclasses import replace
from pathlib import Path

import pytest
from tiers import GENERATIONS, OTHERS, ROCM, generation, something_of_everything

from iq import bundle, kernels, runtime
from iq.cache import Cache
from iq.compile.build import Module, compile_module
from iq.compile.compiler import Compilations, Compiler
from iq.emulator.device import PROCESSORS, EmulatedGpu
from iq.emulator.machine import Options
from iq.formats import FORMATS
from iq.inspect import Objdump, waits
from iq.kernels import KernelSpec
from iq.targets import TARGETS
from iq.verify.devices import APPROXIMATIONS, EMULATED, Opened
from iq.verify.run import Runner

# gfx900 is not a target: it is compiled as gfx906, without what it lacks.
GFX900 = replace(TARGETS["gfx906"], id="gfx900", dot="none", matrix=None)
TARGET_OF = {"gfx900": GFX900} | {name: TARGETS[name] for name in OTHERS}
# One of each kind, for what is not about a processor.
SOME = ("dequantize.q6_k.f16", "dequantize_mul_mat_vec.q8_0.2", "mul_mat_vec.q4_k.2", "mul_mat.q8_0.q8_1", "mul_mat.q4_0.float")


class OneKernel:
    """Provides a module with one kernel, in which no wait is missing."""

    def __init__(self, target, spec):
        self._target, self._spec = target, spec

    def target(self, device_id, cpu_flags):
        return self._target

    def module(self, target, spec):
        assert spec == self._spec
        with Compilations(Compiler.find()) as compilations:
            vmfb = compile_module(Module(target, spec.format, (spec,)), compilations, Cache()).read_bytes()
        objdump = Objdump.find()
        assert isinstance(objdump, Objdump) and waits.check_vmfb(vmfb, objdump) == []
        return bundle.Module.of(spec.key, vmfb, (spec,), target)


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
    assert not failures(TARGETS["gfx942"], KernelSpec.parse(key), Options(preload=False))


def test_each_kind_of_processor_is_among_those_that_run():
    """Those left out differ from one that runs in their number only."""
    tried = {name[:-1] for name in (*TARGET_OF, *GENERATIONS)}
    assert {name[:-1] for name in PROCESSORS} <= tried
    assert set(ROCM) <= set(PROCESSORS)
    assert {generation(id) for id in ROCM} == {generation(id) for id in GENERATIONS}


def test_something_of_everything():
    """Each unit is among what runs on each processor, and each kernel function on one of any three that follow."""
    functions = []
    for id in OTHERS:
        chosen, everything = something_of_everything(TARGETS[id]), kernels.kernels(TARGETS[id])
        plans = [kernels.plan(spec, TARGETS[id]) for spec in chosen]
        assert {"dot", "matrix", "vector"} <= {dispatches[-1].kernel.unit for dispatches in plans}, id
        assert any(FORMATS[spec.format].tables() for spec in chosen) and any(FORMATS[spec.format].codebook for spec in chosen)
        functions.append({d.kernel.name for dispatches in plans for d in dispatches})
        assert len(chosen) < len(everything) / 20
    every_function = {d.kernel.name for spec in kernels.kernels(TARGETS["gfx1100"]) for d in kernels.plan(spec, TARGETS["gfx1100"])}
    for n in range(len(OTHERS) - 2):
        assert set.union(*functions[n : n + 3]) >= every_function
