"""How kernels are launched, as manifests record it: the same as declared, found out where it is inconsistent, refused where it is old."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiers import DISTINCT

from iq.bundle import Compiler, Executable, Kernel, Launches, Manifest, launches_of
from iq.bundle.executable import Export
from iq.bundle.launches import Axis, Derived, Dispatch, Tensor
from iq.bundle.manifest import SCHEMA, File
from iq.errors import BytecodeError, KernelKeyError, ManifestError
from iq.formats import FORMATS
from iq.kernels import KernelSpec, kernels, plan
from iq.kernels.kernel import all_sizes
from iq.targets import TARGETS, Target

SIZES = ("m", "n", "k", "rows", "blocks", "q8_blocks", "share", "picks", "experts", "width")


@pytest.fixture(scope="module", params=DISTINCT, ids=lambda t: t.id)
def recorded(request: pytest.FixtureRequest) -> tuple[Target, dict[KernelSpec, Launches]]:
    target = request.param
    return target, {spec: launches_of(spec, target, None) for spec in kernels(target)}


# ---- The same as declared


def test_arguments_are_those_of_the_op(recorded: tuple[Target, dict[KernelSpec, Launches]]) -> None:
    target, launches = recorded
    assert len(launches) > 100
    for spec, found in launches.items():
        op = spec.definition
        assert found.sizes == op.sizes
        for tensors, declared in ((found.inputs, op.inputs), (found.outputs, op.outputs)):
            assert [(t.name, t.dtype, t.dims) for t in tensors] == [(t.name, t.dtype or spec.dtype, t.dims) for t in declared]
        assert list(found.problems()) == [], (target.id, spec.key)


def test_dispatches_are_those_of_the_plan(recorded: tuple[Target, dict[KernelSpec, Launches]]) -> None:
    target, launches = recorded
    for spec, found in launches.items():
        dispatches = plan(spec, target)
        assert [d.function for d in found.dispatches] == [d.name for d in dispatches]
        for dispatch, declared in zip(found.dispatches, dispatches, strict=True):
            kernel = declared.kernel
            assert [kernel.binding(name) for name in dispatch.buffers] == list(range(len(kernel.reads) + len(kernel.writes)))
            assert dispatch.sizes == kernel.sizes
            assert dispatch.block == (declared.schedule.threads(target.wave), 1, 1)
            assert dispatch.shared == 0


@settings(max_examples=20, deadline=None)
@given(sizes=st.fixed_dictionaries({name: st.integers(0, 1 << 20) for name in SIZES}))
def test_sizes_grids_and_bytes(recorded: tuple[Target, dict[KernelSpec, Launches]], sizes: Mapping[str, int]) -> None:
    target, launches = recorded
    for spec, found in launches.items():
        fmt = FORMATS[spec.format]
        given_sizes = {name: sizes[name] for name in spec.definition.sizes}
        dispatches = plan(spec, target)
        expected = all_sizes(fmt, given_sizes, {name: n for d in dispatches for name, n in d.constants})
        names = found.all_sizes(given_sizes)
        assert names.items() <= expected.items()
        op = spec.definition
        for tensor, declared in zip((*found.inputs, *found.outputs), (*op.inputs, *op.outputs), strict=True):
            assert tensor.nbytes(names) == spec.nbytes(declared, given_sizes)
        for dispatch, planned in zip(found.dispatches, dispatches, strict=True):
            assert tuple(-(-names[axis.size] // axis.tile) for axis in dispatch.grid) == planned.workgroups(expected)
        between = {t.name: t for d in dispatches for t in d.kernel.writes if t.name not in {o.name for o in op.outputs}}
        assert {t.name: t.nbytes(names) for t in found.scratch} == {n: t.nbytes(expected) for n, t in between.items()}


def test_nothing_is_recorded_that_is_not_used(recorded: tuple[Target, dict[KernelSpec, Launches]]) -> None:
    for found in recorded[1].values():
        tensors = (*found.inputs, *found.outputs, *found.scratch)
        used = {dim for t in tensors for dim in t.dims} | {n for d in found.dispatches for n in (*d.sizes, *(a.size for a in d.grid))}
        assert {d.name for d in found.derived} <= used
        assert {t.name for t in tensors} == {name for d in found.dispatches for name in d.buffers}


def test_kernels_that_a_target_does_not_have() -> None:
    with pytest.raises(KernelKeyError, match="gfx1100 has no kernel"):
        launches_of(KernelSpec("mul_mat_vec", "q4_0", columns=7), TARGETS["gfx1100"], None)


# ---- Inconsistencies

SOUND = Launches(
    inputs=(Tensor("x", "f32", ("m", "k")),),
    sizes=("m", "blocks"),
    outputs=(Tensor("y", "i8", ("m", 36)),),
    derived=(Derived("k", "blocks", 32),),
    scratch=(Tensor("t", "f16", ("k",)),),
    dispatches=(
        Dispatch("first", ("x", "t"), ("m", "k"), (Axis("k", 256),), (256, 1, 1), 0),
        Dispatch("second", ("t", "y"), ("m",), (Axis("m", 1), Axis("blocks", 8)), (64, 2, 1), 4096),
    ),
)

changed = msgspec.structs.replace


def dispatching(**changes: Any) -> Launches:
    return changed(SOUND, dispatches=(SOUND.dispatches[0], changed(SOUND.dispatches[1], **changes)))


def reading(**changes: Any) -> Launches:
    return changed(SOUND, inputs=(changed(SOUND.inputs[0], **changes),))


def deriving(**changes: Any) -> Launches:
    return changed(SOUND, derived=(changed(SOUND.derived[0], **changes),))


def test_nothing_is_wrong_with_a_sound_record() -> None:
    assert list(SOUND.problems()) == []


def test_a_size_on_top_of_another() -> None:
    launches = deriving(times=1, over=64, plus="m")
    assert list(launches.problems()) == []
    assert launches.all_sizes({"m": 5, "blocks": 129})["k"] == 3 + 5


@pytest.mark.parametrize(
    ("launches", "problem"),
    [
        (changed(SOUND, sizes=("m", "blocks", "m")), "has a size twice"),
        (changed(SOUND, sizes=("m", "blocks", "k")), "has a size twice"),
        (changed(SOUND, derived=SOUND.derived * 2), "has a size twice"),
        (changed(SOUND, inputs=SOUND.inputs * 2), "has a tensor twice"),
        (changed(SOUND, scratch=(*SOUND.scratch, Tensor("y", "f32", ()))), "has a tensor twice"),
        (changed(SOUND, dispatches=()), "launches nothing"),
        (deriving(of="n"), "derives k from 32 n"),
        (deriving(of="k"), "derives k from 32 k"),
        (deriving(times=0), "derives k from 0 blocks"),
        (deriving(times=-1), "derives k from -1 blocks"),
        (deriving(times=1 << 31), f"derives k from {1 << 31} blocks"),
        (deriving(over=0), "derives k from 32 blocks for every 0"),
        (deriving(over=1 << 31), f"derives k from 32 blocks for every {1 << 31}"),
        (deriving(plus="n"), "derives k from 32 blocks, and n"),
        (deriving(over=2, plus="k"), "derives k from 32 blocks for every 2, and k"),
        (reading(dtype="f64"), "has x of f64; expected f32, i32, f16, bf16, i8"),
        (reading(dtype=""), "has x of ; expected f32, i32, f16, bf16, i8"),
        (reading(dims=("m", "n")), "has x of dims ['m', 'n']; expected positive numbers, or sizes among blocks, k, m"),
        (reading(dims=(0,)), "has x of dims [0]; expected positive numbers, or sizes among blocks, k, m"),
        (reading(dims=(-4, "m")), "has x of dims [-4, 'm']; expected positive numbers, or sizes among blocks, k, m"),
        (reading(dims=(1 << 31,)), f"has x of dims [{1 << 31}]; expected positive numbers, or sizes among blocks, k, m"),
        (dispatching(buffers=("t", "z")), "launches second with z, which it does not have"),
        (dispatching(sizes=("n",)), "launches second with n, which it does not have"),
        (dispatching(grid=(Axis("rows", 1),)), "launches second with rows, which it does not have"),
        (dispatching(grid=()), "launches second on a grid of 0 dimensions; expected 1 to 3, with tiles from 1 on"),
        (dispatching(grid=(Axis("m", 1),) * 4), "launches second on a grid of 4 dimensions; expected 1 to 3, with tiles from 1 on"),
        (dispatching(grid=(Axis("m", 0),)), "launches second on a grid of 1 dimensions; expected 1 to 3, with tiles from 1 on"),
        (dispatching(grid=(Axis("m", -8),)), "launches second on a grid of 1 dimensions; expected 1 to 3, with tiles from 1 on"),
        (dispatching(grid=(Axis("m", 1 << 31),)), "launches second on a grid of 1 dimensions; expected 1 to 3, with tiles from 1 on"),
        (dispatching(block=(0, 1, 1)), "launches second with (0, 1, 1) threads and 4096 bytes of shared memory"),
        (dispatching(block=(-8, -8, 1)), "launches second with (-8, -8, 1) threads and 4096 bytes of shared memory"),
        (dispatching(block=(64, 4, 8)), "launches second with (64, 4, 8) threads and 4096 bytes of shared memory"),
        (dispatching(shared=-1), "launches second with (64, 2, 1) threads and -1 bytes of shared memory"),
        (dispatching(shared=1 << 21), f"launches second with (64, 2, 1) threads and {1 << 21} bytes of shared memory"),
    ],
)
def test_problems(launches: Launches, problem: str) -> None:
    assert list(launches.problems()) == [problem]
    manifest = manifest_of({"dequantize.q4_0.f32": launches})
    with pytest.raises(ManifestError) as refusal:
        Manifest.parse(manifest.encode(), Path("here"))
    assert str(refusal.value) == f"here: manifest.json says of dequantize.q4_0.f32 that it {problem}"


def test_large_records_take_no_longer_than_they_are() -> None:
    """20,000 of each, of which none is looked for among all others."""
    n = 20_000
    sizes, tensors = tuple(f"s{i}" for i in range(n)), tuple(Tensor(f"t{i}", "f32", (f"s{i}", f"d{i}")) for i in range(n))
    derived = tuple(Derived(f"d{i}", f"s{n - 1 - i}", 2) for i in range(n))
    dispatches = tuple(Dispatch("f", (f"t{i}",), (f"s{i}",), (Axis(f"d{i}", 1),), (1, 1, 1), 0) for i in range(n))
    start = time.process_time()
    assert list(Launches(tensors, sizes, (), derived, (), dispatches).problems()) == []
    assert time.process_time() - start < 5


# ---- Against the code

CODE = Executable("hip", (b"",), {d.function: Export(d.function, 0, d.block, d.shared, 2, len(d.sizes)) for d in SOUND.dispatches})


def exporting(**changes: Any) -> Executable:
    return replace(CODE, exports=CODE.exports | {"second": replace(CODE.exports["second"], **changes)})


def test_code_that_is_as_recorded() -> None:
    SOUND.check(CODE)
    SOUND.check(replace(CODE, exports=CODE.exports | {"third": CODE.exports["second"]}))


@pytest.mark.parametrize(
    "changes", [{"block": (64, 1, 1)}, {"block": (128, 1, 1)}, {"shared": 4095}, {"buffers": 3}, {"constants": 2}], ids=str
)
def test_code_that_is_launched_otherwise(changes: dict[str, Any]) -> None:
    with pytest.raises(BytecodeError, match=r"the code has Export\(name='second'.*recorded is Dispatch\(function='second'"):
        SOUND.check(exporting(**changes))


def test_code_without_the_kernel() -> None:
    with pytest.raises(BytecodeError, match="the code has no kernel first"):
        SOUND.check(replace(CODE, exports={"second": CODE.exports["second"]}))


# ---- In manifests


def manifest_of(launches: Mapping[str, Launches]) -> Manifest:
    files = (File("q4_0.vmfb", 1, "0" * 64),)
    held = tuple(Kernel(key, key, "q4_0.vmfb", found) for key, found in launches.items())
    return Manifest(SCHEMA, "gfx1100", "rocm-hsaco-fb", "17.0", Compiler("3.13.0", "0" * 40, ("--flag",)), "f" * 64, files, held)


def test_manifests_of_all_kernels_come_back_the_same(recorded: tuple[Target, dict[KernelSpec, Launches]]) -> None:
    manifest = manifest_of({spec.key: found for spec, found in recorded[1].items()})
    text = manifest.encode()
    read = Manifest.parse(text, Path("here"))
    assert read == manifest
    assert read.encode() == text
    assert json.loads(text) == json.loads(msgspec.json.encode(manifest))
    lines = text.splitlines()
    assert [line for line in lines if b'"key"' in line] == lines[-len(manifest.kernels) - 2 : -2]  # a line for each kernel


def test_manifest_without_kernels() -> None:
    manifest = manifest_of({})
    assert Manifest.parse(manifest.encode(), Path("here")) == manifest


# As the last version before schema 2 wrote it.
SCHEMA_1 = """\
{
 "schema": 1,
 "target": "gfx1100",
 "executable_format": "rocm-hsaco-fb",
 "bytecode": "17.0",
 "compiler": {
  "version": "3.13.0rc20260810",
  "revision": "2d2b1d7a05ee33bdb1f0d9fe9a9d5a0f14a5a0b9",
  "flags": [
   "--iree-opt-level=O2"
  ]
 },
 "templates": "c4d8e3a5a6f5d5a27d0b5bbf1c4f0c7d4a7e6c6b2d5a4f6f0a3d2b1c0e9f8d7c",
 "files": [
  {
   "name": "q8_1.vmfb",
   "size": 14030,
   "sha256": "5c1b8f0d7a5f8e6f1f0c7f4d1d3d0b9c8a7f6e5d4c3b2a1908f7e6d5c4b3a291"
  }
 ],
 "kernels": [
  {
   "key": "quantize_q8_1.q8_1.f32",
   "entry": "quantize_q8_1.q8_1.f32",
   "file": "q8_1.vmfb"
  }
 ]
}
"""
OLD = "here: manifest schema 1, made by an older version of iq, before manifests told how kernels are launched; this version reads 2. "


def test_manifest_of_an_older_version() -> None:
    with pytest.raises(ManifestError) as refusal:
        Manifest.parse(SCHEMA_1.encode(), Path("here"))
    assert str(refusal.value) == OLD + "Compile the bundle again"


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (1, r"manifest schema 1, made by an older version of iq, .*; this version reads 2\. Compile the bundle again"),
        (3, r"manifest schema 3, not known; this version reads 2\. Compile the bundle again"),
        (0, "manifest schema 0, not known; this version reads 2"),
        (-1, "manifest schema -1, not known"),
        (10**30, "manifest schema 1000000000000000000000000000000, not known"),
        ("2", r"manifest\.json cannot be read: Expected `int`, got `str` - at `\$\.schema`"),
        (2.5, r"manifest\.json cannot be read: Expected `int`, got `float` - at `\$\.schema`"),
        (None, r"manifest\.json cannot be read: Expected `int`, got `null` - at `\$\.schema`"),
        (True, r"manifest\.json cannot be read: Expected `int`, got `bool` - at `\$\.schema`"),
        ([2], r"manifest\.json cannot be read: Expected `int`, got `array` - at `\$\.schema`"),
    ],
)
def test_other_schemas(schema: Any, message: str) -> None:
    text = json.dumps(json.loads(manifest_of({}).encode()) | {"schema": schema})
    with pytest.raises(ManifestError, match=f"^here: {message}"):
        Manifest.parse(text.encode(), Path("here"))


def test_manifest_without_a_schema() -> None:
    with pytest.raises(ManifestError, match=r"here: manifest\.json cannot be read: Object missing required field `schema`"):
        Manifest.parse(b'{"target": "gfx1100"}', Path("here"))


@pytest.mark.parametrize(
    "change",
    [
        lambda launches: launches.pop("scratch"),
        lambda launches: launches.update(surprise=1),
        lambda launches: launches["dispatches"][0].pop("block"),
        lambda launches: launches["dispatches"][0].update(block=[256, 1]),
        lambda launches: launches["dispatches"][0].update(block=[256, 1, 1, 1]),
        lambda launches: launches["dispatches"][0].update(block=[256.5, 1, 1]),
        lambda launches: launches["dispatches"][0].update(shared="0"),
        lambda launches: launches["inputs"][0].update(dims=[None]),
        lambda launches: launches["inputs"][0].update(dims="m"),
    ],
)
def test_records_that_are_not_whole(change: Callable[[dict[str, Any]], object]) -> None:
    written = json.loads(manifest_of({"dequantize.q4_0.f32": SOUND}).encode())
    change(written["kernels"][0]["launches"])
    with pytest.raises(ManifestError, match=r"here: manifest\.json cannot be read: "):
        Manifest.parse(json.dumps(written).encode(), Path("here"))
