"""What the compiler makes of ROCm kernels, of those that tests/tiers.py lists: nothing spills, and the instructions are those meant."""

from collections.abc import Mapping

import pytest
from compiled import vmfb_of
from tiers import GENERATIONS, MODULES, OTHERS, ROCM

from iq.cache import Cache
from iq.compile.build import Module, compile_module
from iq.compile.compiler import Compilations, Compiler
from iq.formats import FORMATS, Format
from iq.inspect import Dispatch, inspect
from iq.inspect.disassembly import Objdump
from iq.kernels import Dispatch as Declared
from iq.kernels import KernelSpec, kernels, plan
from iq.kernels.quantize_schedules import QuantizeSchedule
from iq.kernels.schedule import ElementSchedule, MatrixSchedule, Q8Schedule, VecSchedule
from iq.targets import TARGETS, Target


def compiled(target: Target, fmt: type[Format]) -> list[tuple[Declared, Dispatch]]:
    """The dispatches of a format's module, as declared and as compiled."""
    [report] = inspect(vmfb_of(target, fmt.name))
    assert target.family == "cuda" or report.processor == target.id
    declared = {d.name: d for spec in kernels(target) if spec.format == fmt.name for d in plan(spec, target)}
    assert set(declared) == {d.name for d in report.dispatches}
    return [(declared[d.name], d) for d in report.dispatches]


@pytest.fixture(scope="module", params=MODULES, ids=lambda p: f"{p[0].id}-{p[1].name}")
def module(environment, request):
    """A target, a format and the dispatches of its module."""
    target, fmt = request.param
    return target, fmt, compiled(target, fmt)


def mix(dispatch: Dispatch) -> Mapping[str, int]:
    assert dispatch.mix is not None, Objdump.find()
    return dispatch.mix


def scheduled(dispatches, schedule) -> list[Dispatch]:
    return [found for declared, found in dispatches if isinstance(declared.schedule, schedule)]


def of_unit(dispatches, unit) -> list[Dispatch]:
    return [found for declared, found in dispatches if declared.kernel.unit == unit]


def test_no_spills_and_no_scratch(module):
    target, _, dispatches = module
    for _, d in dispatches:
        assert (d.facts["vgpr_spills"], d.facts["sgpr_spills"], d.facts["scratch"]) == (0, 0, 0), d.name
        assert d.facts["wave"] == target.wave
        assert d.facts["lds"] <= target.lds // 2, f"{d.name}: less than two workgroups fit a compute unit"
        assert not {"scratch", "unknown"} & set(mix(d)), d.name


def test_weights_are_read_in_128_bit_loads(module):
    _, fmt, dispatches = module
    for d in scheduled(dispatches, VecSchedule):
        loads = {name: n for name, n in mix(d).items() if name.startswith("global load")}
        bits = {int(name.split()[-1]): n for name, n in loads.items()}
        # Tables of grids are looked up a word or two at a time.
        wide = sum(width * n for width, n in bits.items() if width >= 64) >= 0.8 * sum(width * n for width, n in bits.items())
        assert wide or fmt.tables(), d.name
        assert bits.get(128, 0) >= 2, d.name


def test_results_are_written_in_128_bit_stores(module):
    _, _, dispatches = module
    for d in scheduled(dispatches, ElementSchedule):
        assert {name for name in mix(d) if name.startswith("global store")} == {"global store 128"}, d.name


def test_quantized_matvec_and_mul_mat_use_dot4(module):
    target, fmt, dispatches = module
    integer = of_unit(dispatches, "dot")
    assert bool(integer) == (fmt.kind == "weights")
    for d in integer:
        assert mix(d).get("dot", 0) >= 8 or target.dot == "none", d.name
        assert "dot" not in mix(d) or target.dot != "none", d.name


def test_float_mul_mat_uses_the_matrix_unit(module):
    target, fmt, dispatches = module
    tiles = [(declared.schedule, d) for declared, d in dispatches if declared.kernel.unit == "matrix"]
    assert bool(tiles) == (fmt.kind == "weights")
    for s, d in tiles:
        # A wave multiplies each of its 16x16 results at least twice for the 32 k of a step.
        assert isinstance(s, MatrixSchedule)
        assert mix(d)[target.matrix.instructions] >= 2 * (s.tile_n // s.waves_n // 16) * (s.tile_m // s.waves_m // 16), d.name
        assert mix(d)["barrier"] >= 2


@pytest.mark.parametrize("id", [id for id in ROCM if id not in (*GENERATIONS, *OTHERS)])
def test_processors_that_differ_in_their_number(environment, id):
    """One kernel, which nothing keeps from being compiled for each."""
    spec = KernelSpec.parse("mul_mat_vec.q4_k.1")
    with Compilations(Compiler.find()) as compilations:
        [report] = inspect(compile_module(Module(TARGETS[id], spec.format, (spec,)), compilations, Cache()))
    assert report.processor == id
    for d in report.dispatches:
        assert (d.facts["vgpr_spills"], d.facts["sgpr_spills"], d.facts["scratch"]) == (0, 0, 0), d.name
    assert sum(mix(d).get("dot", 0) for d in report.dispatches) >= 8


@pytest.mark.parametrize("fmt", [FORMATS["q4_0"], FORMATS["iq2_s"]], ids=lambda f: f.name)
def test_cuda_kernels_have_their_own_shared_memory(environment, fmt):
    """IREE gives all kernels of an executable the sum of what they use; it costs matvecs a tenth to a third of their speed."""
    dispatches = compiled(TARGETS["sm_90"], fmt)
    for declared, found in dispatches:
        one_wave_a_row = isinstance(declared.schedule, VecSchedule) and declared.schedule.split_k == 1
        alone = one_wave_a_row or isinstance(declared.schedule, (ElementSchedule, Q8Schedule, QuantizeSchedule))
        assert bool(found.facts["lds"]) != alone, found.name
    assert len({found.facts["lds"] for _, found in dispatches}) >= 4
