"""The command line: what it prints, where, and the exit status."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tiers import DISTINCT

from iq import kernels
from iq.bundle import Bundle
from iq.cli.commands import main
from iq.formats import FORMATS
from iq.gpu_names import PRODUCTS, products_of
from iq.targets import GROUPS, TARGETS, parse_targets


def run(*arguments: str | Path, status: int = 0) -> Result:
    """Run a command that must end with this exit status."""
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == status, (result.output, result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit)  # else Python would print a traceback
    return result


def facts(*arguments: str | Path, status: int = 0) -> Any:
    """What a command prints with --json."""
    return json.loads(run(*arguments, "--json", status=status).stdout)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory, environment: Path) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("cli") / "artifacts"
    return out, run("compile", "--target", "gfx1100,x86-64-v3", "--format", "q8_1", "--op", "quantize_q8_1", "--out", out, "--jobs", "1")


@pytest.fixture
def artifacts(compiled: tuple[Path, Result], tmp_path: Path) -> Path:
    return shutil.copytree(compiled[0], tmp_path / "artifacts")


def test_compile(compiled: tuple[Path, Result]) -> None:
    out, result = compiled
    assert sorted(p.name for p in out.iterdir()) == ["gfx1100", "x86-64-v3"]
    Bundle.open(out / "gfx1100").verify()
    assert result.stderr.splitlines() == ["0/2 gfx1100/q8_1", "1/2 x86-64-v3/q8_1", "2/2"]
    assert [line.split()[1:4] for line in result.stdout.splitlines()[1:]] == [["gfx1100", "1", "q8_1"], ["x86-64-v3", "1", "q8_1"]]


def test_compile_into_zips(tmp_path: Path) -> None:
    [manifest] = facts("compile", "--target", "x86-64-v3", "--format", "q8_1", "--op", "quantize_q8_1", "--out", tmp_path, "--zip")
    assert manifest["path"] == str(tmp_path / "x86-64-v3.zip")
    assert [k["key"] for k in manifest["kernels"]] == ["quantize_q8_1.q8_1.f32"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target", "gfx1"), "unknown target 'gfx1'\n`iq targets` lists them"),
        (("--target", "mi300"), "unknown target 'mi300'; is mi300a or mi300x meant?"),
        (("--target", "gfx942", "--format", "q9_9"), "q9_9"),
        (("--target", "gfx942", "--op", "mul"), "unknown op mul; known: dequantize"),
        (("--target", "gfx942", "--format", "q8_1", "--op", "mul_mat"), "have no kernels for the formats q8_1"),
        (("--target", "gfx942", "--jobs", "0"), "0 is not in the range"),
        ((), "Missing option '--target'"),
    ],
)
def test_misuse_of_compile(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    assert message in run("compile", *arguments, "--out", tmp_path, status=2).stderr
    assert list(tmp_path.iterdir()) == []


def test_without_the_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "iree.compiler.tools", None)
    assert "the compiler is not installed" in run("compile", "--target", "cpu", "--out", tmp_path, status=1).stderr


def test_ls_of_bundles(artifacts: Path) -> None:
    listed = facts("ls", artifacts)
    assert [(b["path"], b["target"]) for b in listed] == [(str(artifacts / t), t) for t in ("gfx1100", "x86-64-v3")]
    assert [line.split()[1] for line in run("ls", artifacts).stdout.splitlines()] == ["target", "gfx1100", "x86-64-v3"]
    assert run("ls", artifacts, "--kernels").stdout == "quantize_q8_1.q8_1.f32\n"
    assert facts("ls", artifacts / "gfx1100", "--kernels") == ["quantize_q8_1.q8_1.f32"]
    assert "no bundle there" in run("ls", artifacts / "nowhere", status=1).stderr


def test_ls_of_all_kernels() -> None:
    assert run("ls", "--kernels").stdout.splitlines() == [k.key for k in kernels.kernels()]
    keys = [f"{row['op']}.{row['format']}.{variant}" for row in facts("ls") for variant in row["variants"]]
    assert keys == [k.key for k in kernels.kernels() if not k.schedule]


def test_verify(artifacts: Path) -> None:
    assert [row["verdict"] for row in facts("verify", artifacts)] == ["ok", "ok"]
    (artifacts / "gfx1100" / "q8_1.vmfb").write_bytes(b"")
    rows = facts("verify", artifacts, status=1)
    assert [(row["target"], row["verdict"]) for row in rows] == [("", "AlteredFileError"), ("x86-64-v3", "ok")]
    table = run("verify", artifacts, status=1).stdout
    assert "AlteredFileError" in table
    assert "q8_1.vmfb has 0 bytes" in table
    assert run("verify", artifacts / "x86-64-v3").stdout.count("ok") == 1
    assert "no bundle there" in run("verify", artifacts / "nowhere", status=1).stderr


def test_inspect(artifacts: Path) -> None:
    [report] = facts("inspect", artifacts / "gfx1100")
    assert (report["processor"], report["functions"]) == ("gfx1100", ["quantize_q8_1.q8_1.f32"])
    assert report["dispatches"][0]["name"] == "quantize_q8_1_b32_l8"
    assert report["dispatches"][0]["facts"]["vgprs"] > 0
    shown = run("inspect", artifacts, "--kernel", "quantize*").stdout
    assert f"{artifacts}/gfx1100/q8_1.vmfb: gfx1100" in shown
    assert f"{artifacts}/x86-64-v3/q8_1.vmfb: x86_64" in shown
    assert "is called 'mul_mat'" in run("inspect", artifacts, "--kernel", "mul_mat", status=1).stderr


def test_render() -> None:
    text = run("render", "mul_mat_vec.q4_0.1", "--target", "gfx1100").stdout
    assert text.startswith("// mul_mat_vec.q4_0.1 for gfx1100\n")
    assert 'func.func @"mul_mat_vec.q4_0.1"' in text
    assert "names no kernel" in run("render", "mul_mat_vec.q4_0.9", "--target", "gfx1100", status=2).stderr
    assert "one target is wanted" in run("render", "mul_mat_vec.q4_0.1", "--target", "cpu", status=2).stderr


def test_products_stand_for_their_processors() -> None:
    assert parse_targets("mi300x,RX 7900 XTX,gfx942") == [TARGETS["gfx942"], TARGETS["gfx1100"]]
    assert parse_targets("strix-halo,780M") == [TARGETS["gfx1151"], TARGETS["gfx1103"]]
    assert set(PRODUCTS.values()) == {t.id for t in TARGETS.values() if t.family == "rocm"}
    assert not {*PRODUCTS} & {*TARGETS, *GROUPS}
    assert facts("targets")[0]["products"] == products_of("gfx906") == ["mi50", "mi60", "radeonvii", "radeonprovii"]
    assert run("render", "mul_mat_vec.q4_0.1", "--target", "MI300X").stdout.startswith("// mul_mat_vec.q4_0.1 for gfx942\n")


def test_targets() -> None:
    assert [(t["id"], t["family"], t["wave"]) for t in facts("targets")] == [(t.id, t.family, t.wave) for t in TARGETS.values()]
    assert [line.split()[0] for line in run("targets").stdout.splitlines()[1:]] == list(TARGETS)


def explain(format: str, target: str, m: int, n: int, k: int, *more: str) -> list[str]:
    sizes = ("--m", str(m), "--n", str(n), "--k", str(k))
    return ["explain", "--format", format, "--target", target, *sizes, *more]


def test_explain() -> None:
    shown = facts(*explain("q4_0", "gfx1030", 3, 4096, 512))
    assert (shown["key"], shown["target"]) == ("mul_mat_vec.q4_0.4", "gfx1030")
    assert "the next kernel is for 4" in shown["why"]
    assert "a wave takes 2 rows of the weight" in shown["why"]
    assert shown["others"] == ["dequantize_mul_mat_vec.q4_0.4"]
    quantize, multiply = shown["dispatches"]
    assert (quantize["name"], quantize["sizes"]) == ("quantize_q8_1_tiles_m4_t32_b32_l8", {"m": 3, "k": 512, "q8_blocks": 16})
    assert (multiply["name"], multiply["sizes"]) == ("mul_mat_vec_tiles_m4_n8_w4_t32_r2", {"m": 3, "n": 4096, "blocks": 16})
    assert multiply["workgroups"] == [-(-4096 // multiply["schedule"]["tile_n"]), 1]
    assert facts(*explain("q4_0", "gfx1100", 9, 4096, 512))["key"] == "mul_mat.q4_0.float"
    assert facts(*explain("q4_0", "gfx1030", 9, 4096, 512))["key"] == "mul_mat.q4_0.q8_1"
    assert facts(*explain("q4_0", "gfx1100", 1, 4096, 512, "--via", "float"))["key"] == "dequantize_mul_mat_vec.q4_0.1"
    assert run(*explain("q4_0", "gfx1030", 3, 4096, 512)).stdout.startswith("mul_mat_vec.q4_0.4 on gfx1030\nwhy: ")


def test_explain_shows_when_split_k_is_taken() -> None:
    small, large = (facts(*explain("q4_0", "gfx1100", 1, n, 4096)) for n in (1024, 200_000))
    assert (small["key"], large["key"]) == ("mul_mat_vec.q4_0.1.split_k2", "mul_mat_vec.q4_0.1")
    assert "split_k2: N = 1024 is at most 1024" in small["why"]
    assert "mul_mat_vec.q4_0.1" in small["others"]
    assert small["dispatches"][-1]["schedule"]["split_k"] == 2


@pytest.mark.parametrize("target", [t.id for t in DISTINCT])
@pytest.mark.parametrize("format", [f.name for f in FORMATS.values() if f.kind != "activations"])
def test_everything_can_be_explained(target: str, format: str) -> None:
    for m in (1, 8, 9):
        assert facts(*explain(format, target, m, 7, 512))["dispatches"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (explain("q9_9", "gfx942", 1, 1, 256), "q9_9"),
        (explain("q4_k", "gfx942", 1, 1, 32), "a multiple of 256 weights, not K = 32"),
        (explain("q4_k", "gfx942", 1, 0, 256), "M = 1, N = 0, K = 256: all must be positive"),
        (explain("q4_k", "gfx942", 0, 1, 256), "M = 0, N = 1, K = 256: all must be positive"),
        (explain("q4_k", "gfx942", 1, 1, 256, "--via", "magic"), "via='magic'"),
        (explain("f16", "gfx942", 1, 1, 256, "--via", "q8_1"), "not quantized"),
        (explain("q4_k", "gfx1", 1, 1, 256), "unknown target"),
    ],
)
def test_misuse_of_explain(arguments: list[str], message: str) -> None:
    assert message in run(*arguments, status=2).stderr
