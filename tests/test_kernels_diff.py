"""tools/kernels_diff.py: which dispatches are paired, what is called a change, and what exceeds the budget."""

from __future__ import annotations

import json
import re
from pathlib import Path

import kernels_diff
import pytest
from kernel_code import Dispatch, Executable, Figures, dispatches_of, waves_that_fit
from kernels_diff import Comparison, Pair, compare, normalised
from tiers import DISTINCT

from iq.compile.build import Module, mlir_of
from iq.compile.compiler import Compilations, Compiler
from iq.inspect import Objdump
from iq.kernels import KernelSpec, kernels, plan
from iq.targets import TARGETS

OBJDUMP = Objdump.find()
TARGETS_READ = ("gfx1100", "sm_80", "x86-64-v3")


class Given(Executable):
    """An executable whose kernels all have the given figures."""

    def __init__(self, figures: Figures) -> None:
        super().__init__(None)
        self._figures = figures

    def figures(self, name: str) -> Figures:
        return self._figures


def pair(before: Figures, after: Figures, processor: str = "gfx1100") -> Pair:
    old, new = (Dispatch("k", processor, repr(figures).encode(), Given(figures)) for figures in (before, after))
    return Pair("gfx1100/q4_0", old, new)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("mul_mat_vec_3", "mul_mat_vec 3"),
        ("mul_mat_vec_m3_n4_w4_t32", "mul_mat_vec 3"),
        ("mul_mat_vec_m3_n1_w2_t32_k2", "mul_mat_vec 3"),
        ("dequantize_f16", "dequantize f16"),
        ("dequantize_bf16_b8_t256", "dequantize bf16"),
        ("mul_mat_float_n128_m64_k32_w2x2", "mul_mat_float"),
        ("scale_rows_t256", "scale_rows"),
        ("quantize_q8_1_soa_b32_l8", "quantize_q8_1_soa"),
        ("quantize_q8_1_tiles_m4_t64_b32_l8", "quantize_q8_1_tiles 4"),
        ("mul_mat_vec_tiles_m4_n16_w4_t64_r4_s", "mul_mat_vec_tiles 4"),
    ],
)
def test_names(name: str, key: str) -> None:
    assert normalised(name) == key


@pytest.mark.parametrize("target", DISTINCT, ids=lambda t: t.id)
def test_names_tell_kernels_apart(target) -> None:
    """The normalised name says neither more nor less than kernel, columns and element type."""
    dispatches = {d.name: d for spec in kernels(target) if spec.format == "q4_0" for d in plan(spec, target)}
    meant: dict[str, set[tuple[object, ...]]] = {}
    for name, dispatch in dispatches.items():
        columns = getattr(dispatch.schedule, "tile_m", 0) if dispatch.kernel.name.endswith(("vec", "tiles")) else 0
        meant.setdefault(normalised(name), set()).add((dispatch.kernel.name, columns, dispatch.dtype))
    assert all(len(what) == 1 for what in meant.values())
    assert len(meant) == len(set().union(*meant.values()))


@pytest.mark.parametrize(
    ("processor", "registers", "waves"),
    [
        ("gfx90a", 64, 8), ("gfx90a", 65, 7), ("gfx942", 128, 4), ("gfx942", 512, 1), ("gfx906", 24, 10), ("gfx906", 25, 9),
        ("gfx1010", 48, 20), ("gfx1030", 64, 16), ("gfx1030", 65, 12), ("gfx1100", 96, 16), ("gfx1100", 97, 12), ("gfx1102", 65, 12),
        ("gfx1201", 256, 5), ("sm_90", 32, 64), ("sm_90", 255, 8), ("sm_89", 40, 48),
    ],
)  # fmt: skip
def test_waves_that_fit(processor: str, registers: int, waves: int) -> None:
    assert waves_that_fit(processor, registers) == waves
    assert waves_that_fit("x86_64", registers) is None


@pytest.mark.parametrize(
    ("before", "after", "excess"),
    [
        ({"spills": 0}, {"spills": 1}, "spills 1"),
        ({"scratch": 8, "vgprs": 9}, {"scratch": 8, "vgprs": 8}, "scratch 8"),
        ({"valu": 100}, {"valu": 106}, "vector instructions 100 -> 106 (+6%)"),
        ({"valu": 100}, {"valu": 105}, ""),
        ({"code bytes": 100}, {"code bytes": 106}, "code bytes 100 -> 106 (+6%)"),
        ({"vgprs": 96}, {"vgprs": 97}, "vgprs 96 -> 97, waves that fit 16 -> 12"),
        ({"vgprs": 90}, {"vgprs": 96}, ""),
    ],
)
def test_budget(before: Figures, after: Figures, excess: str) -> None:
    assert pair(before, after).excesses == [excess] * bool(excess)


def test_new_kernels_do_not_spill() -> None:
    new = Dispatch("k", "gfx1100", b"", Given({"spills": 2, "scratch": 8, "valu": 10**6}))
    assert Comparison([], {}, {"a: k": new}).excesses == {"a: k": ["spills 2", "scratch 8"]}
    assert Comparison([], {"a: k": new}, {}).excesses == {}


def test_verdicts() -> None:
    small, large = {"code bytes": 8, "valu": 1}, {"code bytes": 9, "valu": 2}
    assert pair(small, small).verdict == "same"
    assert pair(small, large).verdict == "longer"
    assert pair(large, small).verdict == "shorter"
    assert pair(small, small | {"valu": 3}).verdict == "as long"
    assert pair(small, large | {"salu": 0}).changes == "code bytes 8 -> 9, valu 1 -> 2"


# ---- Compiled kernels


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two folders of vmfbs. In the second the kernel that quantizes has another name, and the format's decoder another constant."""
    before, after = tmp_path_factory.mktemp("before"), tmp_path_factory.mktemp("after")
    specs = tuple(map(KernelSpec.parse, ("mul_mat_vec.q4_0.1", "dequantize.q4_0.f32")))
    with Compilations(Compiler.find()) as compilations:
        for target in TARGETS_READ:
            mlir = mlir_of(Module(TARGETS[target], "q4_0", specs))
            old = plan(specs[0], TARGETS[target])[0].name
            other = mlir.replace(old, re.sub(r"_b\d+.*", "_b99", old))
            assert "dense<0xf0f0f0f>" in other
            other = other.replace("dense<0xf0f0f0f>", "dense<0x7070707>")
            for folder, text in ((before, mlir), (after, other)):
                (folder / target).mkdir()
                (folder / target / "q4_0.vmfb").write_bytes(compilations.compile(text, target))
    return before, after


needs_objdump = pytest.mark.skipif(isinstance(OBJDUMP, str), reason=str(OBJDUMP))

FACTS = {"vgprs", "agprs", "sgprs", "spills", "scratch", "lds", "code bytes", "instructions"}


@needs_objdump
@pytest.mark.parametrize("target", TARGETS_READ)
def test_compiled(trees: tuple[Path, Path], target: str) -> None:
    assert isinstance(OBJDUMP, Objdump)
    old, new = ((tree / target / "q4_0.vmfb").read_bytes() for tree in trees)
    result = compare({"q4_0": old}, {"q4_0": new}, {}, OBJDUMP)
    assert (result.removed, result.added) == ({}, {})
    verdicts = {p.after.name.partition("_")[0]: p.verdict for p in result.pairs}
    # On x86 the constants that it loads lie elsewhere.
    quantize = "as long" if target == "x86-64-v3" else "same"
    assert verdicts == {"quantize": quantize, "mul": "as long", "dequantize": "as long"}
    for pair in result.pairs:
        for figures in (pair.before.figures, pair.after.figures):
            assert figures["instructions"] == sum(n for name, n in figures.items() if name not in FACTS) > 0
            assert any("load" in name or name == "scalar" for name in figures)


@needs_objdump
def test_command(trees: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    before, after = trees
    paths = ["--before", str(before), "--after", str(after)]
    assert kernels_diff.main(paths) == 0
    shown = capsys.readouterr().out
    assert "gfx1100/q4_0\n  same: quantize_q8_1_tiles_m1_t32_b99\n" in shown
    assert shown.endswith("2 same, 0 shorter, 7 as long, 0 longer, 0 only before, 0 only after\n")
    assert kernels_diff.main([*paths, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [p["verdict"] for p in document["pairs"]].count("as long") == 7
    assert [p["figures"] is None for p in document["pairs"]] == [p["verdict"] == "same" for p in document["pairs"]]


@needs_objdump
def test_pairs_that_are_named(trees: tuple[Path, Path]) -> None:
    assert isinstance(OBJDUMP, Objdump)
    before = {"q4_0": (trees[0] / "gfx1100/q4_0.vmfb").read_bytes()}
    result = compare(
        before, before, {"scale": "none", "dequantize f32": "mul_mat_vec_tiles 1", "mul_mat_vec_tiles 1": "dequantize f32"}, OBJDUMP
    )
    names = {(p.before.name.partition("_")[0], p.after.name.partition("_")[0]) for p in result.pairs}
    assert names == {("quantize", "quantize"), ("dequantize", "mul"), ("mul", "dequantize")}
    assert compare(before, {}, {}, OBJDUMP).removed.keys() == {f"q4_0: {d.name}" for d in dispatches_of(before["q4_0"], OBJDUMP)}


@pytest.mark.parametrize("arguments", [[], ["HEAD", "--before", "x"], ["HEAD", "--pair", "a"], ["no-such-revision"]])
def test_misuse(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        kernels_diff.main(arguments)
    assert exit.value.code == 2
