"""What kernels there are, how they are laid over targets, and which one a problem takes."""

import math
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiers import DISTINCT

from iq.errors import FormatError, KernelKeyError, ShapeError
from iq.formats import FORMATS
from iq.kernels import OPS, Axis, Dispatch, KernelSpec, Problem, choose, kernels, plan
from iq.kernels import ops as definitions
from iq.kernels.kernel import Kernel, all_sizes
from iq.kernels.schedule import VecSchedule
from iq.kernels.schedules import MOST_EXPERTS, MOST_VEC_COLUMNS, VEC_COLUMNS, picks_to_group, vec_columns
from iq.targets import TARGETS

targets = pytest.mark.parametrize("target", DISTINCT, ids=lambda t: t.id)
QUANTIZED = [f for f in FORMATS.values() if f.kind == "weights"]
SPLIT = [t for t in DISTINCT if any(k.schedule for k in kernels(t))]


def test_keys_and_specs_are_inverse():
    keys = [spec.key for spec in kernels()]
    assert len(set(keys)) == len(keys)
    for key in keys:
        assert KernelSpec.parse(key).key == key


NO_KEYS = """mul_mat_vec mul_mat_vec.q4_k mul_mat_vec.q4_k.9
    mul_mat_vec.q4_k.x mul_mat_vec.q4_k.01 mul_mat_vec.f32.1 no.q4_k.1 mul_mat.q4_k.f16
    mul_mat_vec.q4_k.1.split_k3 mul_mat_vec.q4_k.1.split_k2.more dequantize.q8_1.f32 mul_mat_vec.q4_k.1."""


@pytest.mark.parametrize("key", ["", *NO_KEYS.split()])
def test_other_keys_are_refused(key):
    with pytest.raises(KernelKeyError):
        KernelSpec.parse(key)


@targets
def test_every_kernel_has_dispatches_of_its_own_name(target):
    for fmt in FORMATS:
        named: dict[str, Dispatch] = {}
        for spec in kernels(target):
            if spec.format == fmt:
                for dispatch in plan(spec, target):
                    assert named.setdefault(dispatch.name, dispatch) == dispatch, "two schedules under one name"
                    assert dispatch.schedule.label in dispatch.name


@targets
def test_schedules_of_a_kernel_differ_in_label_and_key(target):
    every = [k for k in vars(definitions).values() if isinstance(k, Kernel)]
    assert {k.name for k in every} >= {"mul_mat_vec", "mul_mat_float", "scale_rows"}
    for kernel in every:
        for fmt in QUANTIZED:
            schedules = [s for m in vec_columns(target) for s in kernel.schedules(target, fmt, m)]
            for a, b in combinations(set(schedules), 2):
                assert a.label != b.label
            for m in vec_columns(target):
                keys = [s.key for s in kernel.schedules(target, fmt, m)]
                assert len(set(keys)) == len(keys)
                assert not keys or keys[0] == "", "the first is the default"


@targets
def test_threads_and_tiles_fit(target):
    for spec in kernels(target):
        for dispatch in plan(spec, target):
            threads = dispatch.schedule.threads(target.wave)
            assert 1 <= threads <= 1024
            assert target.family == "cpu" or threads % target.wave == 0
            assert 1 <= len(dispatch.kernel.grid) <= 3
            if isinstance(s := dispatch.schedule, VecSchedule):
                assert s.waves % s.split_k == 0
                # A workgroup whose waves share rows makes one row for each group of waves: all of them meet at the barrier once.
                assert s.split_k == 1 or s.tile_n == s.waves // s.split_k
                assert s.tile_n % (s.waves // s.split_k * s.rows) == 0
                assert not s.spread or s.rows * s.tile_m in (16, 32)


@pytest.mark.parametrize(
    ("target", "fmt", "rows"),
    [
        ("sm_90", "q4_k", {1: 1, 2: 2, 3: 4, 4: 4, 5: 4, 6: 4, 7: 4, 8: 4}),
        ("sm_90", "q8_0", {1: 1, 2: 1, 3: 4, 4: 4, 5: 4, 6: 4, 7: 4, 8: 4}),
        ("gfx1100", "q4_k", {1: 1, 2: 2, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 8: 4}),
        ("gfx1100", "q6_k", {1: 1, 2: 2, 3: 2, 4: 2, 5: 2, 6: 2, 7: 2, 8: 2}),
        ("gfx942", "q5_k", {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 8: 4}),
        ("x86-64-v3", "q4_k", dict.fromkeys(range(1, 9), 1)),
    ],
)
def test_rows_that_a_wave_takes(target, fmt, rows):
    """By M, on both sides of each M at which they change; and the choice says so."""
    for m, expected in rows.items():
        choice = choose("mul_mat", FORMATS[fmt], TARGETS[target], Problem(m, 4096, 4096))
        multiply = plan(choice.spec, TARGETS[target])[-1]
        assert multiply.schedule.rows == expected
        assert (f"a wave takes {expected} rows of the weight" in choice.why) == (expected > 1)
    assert choose("mul_mat", FORMATS[fmt], TARGETS[target], Problem(9, 4096, 4096)).spec.op == "mul_mat"


def test_a_grid_may_have_three_dimensions():
    kernel = replace(definitions.MUL_MAT_VEC, grid=(Axis("n", "tile_n"), Axis("m", "tile_m"), Axis("experts")))
    dispatch = Dispatch(kernel, VecSchedule(waves=4, tile_n=4, tile_m=2), "")
    assert dispatch.workgroups({"n": 9, "m": 3, "experts": 5}) == (3, 2, 5)


@targets
def test_a_target_is_scheduled_like_its_relative(target):
    relative = replace(target, id=f"{target.id}x", like=target.id)
    assert relative.lineage == (relative.id, *target.lineage)
    for kernel in (definitions.MUL_MAT_VEC, definitions.MUL_MAT_FLOAT, definitions.MUL_MAT_Q8_1, definitions.DEQUANTIZE):
        for fmt in QUANTIZED:
            assert kernel.schedules(relative, fmt, 1) == kernel.schedules(target, fmt, 1)


def test_bytes_of_tensors():
    fmt, spec = FORMATS["q4_k"], KernelSpec.parse("mul_mat_vec.q4_k.2")
    sizes = {"m": 2, "n": 3, "blocks": 5}
    w, x, y = (*spec.definition.inputs, *spec.definition.outputs)
    assert [spec.nbytes(t, sizes) for t in (w, x, y)] == [3 * 5 * 144, 2 * 5 * 256 * 4, 2 * 3 * 4]
    assert all_sizes(fmt, sizes) == {**sizes, "k": 1280, "row_bytes": 720, "q8_blocks": 40}
    rows = KernelSpec.parse("get_rows.q4_k.bf16")
    assert rows.nbytes(rows.definition.outputs[0], {"rows": 7, "blocks": 1}) == 7 * 256 * 2
    q8 = KernelSpec.parse("quantize_q8_1.q8_1.f32")
    assert q8.nbytes(q8.definition.outputs[0], {"m": 2, "k": 33, "q8_blocks": 2}) == 2 * 2 * 36


# ---- Choosing


@targets
@settings(deadline=None)  # the first call finds out what kernels all targets have
@given(st.data())
def test_a_choice_exists_and_is_meant_for_the_problem(target, data):
    fmt = data.draw(st.sampled_from([f for f in FORMATS.values() if f.kind != "activations"]))
    problem = Problem(
        data.draw(st.integers(1, 600)), data.draw(st.integers(1, 200_000)), fmt.kernel_block_weights() * data.draw(st.integers(1, 64))
    )
    via = data.draw(st.sampled_from([None, "float", *(["q8_1"] if fmt.kind == "weights" else [])]))
    choice = choose("mul_mat", fmt, target, problem, via)
    assert choice.spec.exists(target)
    assert choice.why
    assert choice.spec.key not in choice.others
    assert all(KernelSpec.parse(key).exists(target) for key in choice.others)
    if choice.spec.columns:
        assert choice.spec.columns == min(c for c in vec_columns(target) if c >= problem.m)
    else:
        assert problem.m > MOST_VEC_COLUMNS
    integer = plan(choice.spec, target)[-1].kernel.unit == "dot"
    assert via is None or integer == (via == "q8_1")
    # Every workgroup has a result to make.
    sizes = all_sizes(fmt, {"m": problem.m, "n": problem.n, "blocks": problem.k // fmt.kernel_block_weights()})
    assert all(math.prod(d.workgroups(sizes)) >= 1 for d in plan(choice.spec, target))


@targets
@pytest.mark.parametrize("fmt", ["q4_k", "f16"])
def test_picks_are_grouped_when_experts_have_several(target, fmt):
    """A matvec a pick up to so many picks for each expert, on average; more are grouped; and each knows of the other."""
    most = 8 * picks_to_group(target)
    few = choose("mul_mat_id", FORMATS[fmt], target, Problem(most, 512, 256, experts=8))
    many = choose("mul_mat_id", FORMATS[fmt], target, Problem(most + 1, 512, 256, experts=8))
    assert (few.spec.op, many.spec.op) == ("mul_mat_vec_id", "mul_mat_id")
    assert "a matvec a pick" in few.why
    assert "grouped by expert" in many.why
    assert few.spec.via == ("q8_1" if fmt == "q4_k" else "float")
    for choice, other in ((few, "mul_mat_id"), (many, "mul_mat_vec_id")):
        assert choice.spec.exists(target)
        assert choice.spec.key not in choice.others
        assert f"{other}.{fmt}.float" in choice.others
        assert all(KernelSpec.parse(key).exists(target) for key in choice.others)
        asked = choose("mul_mat_id", FORMATS[fmt], target, Problem(most, 512, 256, experts=8), via="float")
        assert asked.spec.via == "float"
    # Beyond what is counted in LDS, picks are never grouped.
    beyond = choose("mul_mat_id", FORMATS[fmt], target, Problem(1 << 20, 512, 256, experts=MOST_EXPERTS + 1))
    assert beyond.spec.op == "mul_mat_vec_id"
    with pytest.raises(ShapeError, match="no experts"):
        choose("mul_mat_id", FORMATS[fmt], target, Problem(1, 512, 256))


@targets
def test_tiles_of_picks_are_as_wide_as_what_multiplies_them(target):
    for spec in kernels(target):
        if spec.op == "mul_mat_id":
            [group], [multiply] = (
                [d for d in plan(spec, target) if d.kernel.name.startswith(name)] for name in ("group_picks", "grouped_")
            )
            assert group.schedule.pick_tile == multiply.schedule.tile_m
            sizes = all_sizes(FORMATS[spec.format], {"picks": 1000, "experts": 7}, dict(group.constants))
            assert sizes["pick_tiles"] == -(-1000 // multiply.schedule.tile_m) + 7
            assert group.workgroups({"experts": MOST_EXPERTS}) == (1,)


def test_split_k_is_taken_for_small_weights():
    assert SPLIT
    for target in SPLIT:
        small = choose("mul_mat", FORMATS["q4_k"], target, Problem(1, 1024, 4096))
        large = choose("mul_mat", FORMATS["q4_k"], target, Problem(1, 131072, 8192))
        assert small.spec.schedule.startswith("split_k")
        assert small.spec.schedule in small.why
        assert large.spec.schedule == ""
        # Each knows of the other.
        assert replace(small.spec, schedule="").key in small.others
        assert small.spec.key in large.others


def test_a_schedule_of_another_target_is_refused():
    spec = KernelSpec.parse("mul_mat_vec.q4_k.1.split_k2")
    without = next(t for t in TARGETS.values() if not spec.exists(t))
    with pytest.raises(KernelKeyError, match=f"{without.id} has no kernel mul_mat_vec.q4_k.1.split_k2"):
        plan(spec, without)


def test_what_cannot_be_chosen():
    q4, f16, target = FORMATS["q4_0"], FORMATS["f16"], TARGETS["gfx1100"]
    for bad in (Problem(0, 1, 32), Problem(1, 0, 32), Problem(1, 1, 0)):
        with pytest.raises(ShapeError, match="all must be positive"):
            choose("mul_mat", q4, target, bad)
    with pytest.raises(FormatError, match="via='q4'"):
        choose("mul_mat", q4, target, Problem(1, 1, 32), via="q4")
    with pytest.raises(FormatError, match="not quantized"):
        choose("mul_mat", f16, target, Problem(1, 1, 32), via="q8_1")
    with pytest.raises(KernelKeyError, match="leaves no choice"):
        choose("dequantize", q4, target, Problem(1, 1, 32))
    assert "mul_mat" in OPS


def test_columns_of_every_family_go_up_to_the_most():
    for columns in VEC_COLUMNS.values():
        assert list(columns) == sorted(set(columns))
        assert (columns[0], columns[-1]) == (1, MOST_VEC_COLUMNS)
