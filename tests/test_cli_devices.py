"""`iq devices`, `iq doctor` and `iq bench`: what they say of a machine, here one with emulated GPUs as its HIP devices."""

import json
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import pytest
from click.testing import CliRunner

import iq
from iq.bundle import MANIFEST
from iq.cli.commands import main
from iq.cli.devices import where_loaded
from iq.emulator.device import EmulatedGpu
from iq.runtime import launching
from iq.runtime.driver import hip_library, library
from iq.targets import TARGETS

pytestmark = pytest.mark.needs_extras

CPUS = [t for t in TARGETS.values() if t.isa and t.isa.name == platform.machine()]


def run(*arguments: str | Path, status: int = 0) -> str:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == status, (result.output, result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.output


def facts(*arguments: str | Path, status: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", status=status))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory, environment: None) -> Path:
    out = tmp_path_factory.mktemp("devices") / "artifacts"
    iq.compile.bundle("gfx1100,x86-64-v3", "q4_0", out=out)
    return out


@pytest.fixture
def no_gpus(environment: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No driver that loads, nothing of the real machine, and no device that another test has left open."""
    monkeypatch.setattr("iq.device._OPENED", WeakValueDictionary())
    monkeypatch.setattr("iq.device._NAMED", {})
    monkeypatch.setenv(hip_library.VARIABLE, f"file:{tmp_path}/libamdhip64.so")
    monkeypatch.setattr(library, "_CUDA_NAMES", ("libcuda-of-no-machine.so",))
    monkeypatch.setenv("ROCM_BOOTSTRAP_FORCE_GFX_ARCH", "gfx942")
    library._load.cache_clear()
    yield
    library._load.cache_clear()


@pytest.fixture
def gpu(no_gpus: None, monkeypatch: pytest.MonkeyPatch) -> EmulatedGpu:
    """An emulated GPU that the machine takes for one of its own."""
    gpu = EmulatedGpu("emulated:gfx1100")
    monkeypatch.setenv(hip_library.VARIABLE, f"file:{gpu.runtime.library}")
    return gpu


# ---- devices


def test_devices_without_drivers(no_gpus: None) -> None:
    found = facts("devices")
    [cpu] = found["devices"]
    assert (cpu["device"], cpu["id"], cpu["bundle"], cpu["problem"]) == ("cpu", "cpu", None, "")
    assert cpu["memory_total"] >= cpu["memory_free"] > 0
    assert set(cpu["requires"]) == {t.id for t in CPUS}
    assert cpu["requires"][cpu["target"]] == ""
    assert set(found["absent"]) == {"hip", "cuda"}
    assert "no libamdhip64 that loads" in found["absent"]["hip"]
    assert "libcuda-of-no-machine.so" in found["absent"]["cuda"]
    assert found["amd_gpus"] == ["gfx942"]
    shown = run("devices")
    assert "no bundle named" in shown
    assert "no hip device: no driver for hip: no libamdhip64 that loads" in shown
    assert "AMD GPUs that the kernel's driver lists: gfx942" in shown


def test_devices_of_a_machine_without_instruction_sets(no_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iq.cli.devices.cpu_flags", lambda: frozenset({"avx"}))
    [cpu] = facts("devices")["devices"]
    assert cpu["target"] == ""
    assert "which this CPU lacks" in cpu["problem"]
    assert "cpu: lacks avx2 bmi1 bmi2 f16c fma movbe for x86-64-v3" in run("devices")


def test_devices_without_the_package_that_finds_amd_gpus(no_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rocm_bootstrap", None)
    assert "iq-kernels[amd]" in facts("devices")["amd_gpus"]
    assert "AMD GPUs without HIP: not known" in run("devices")


def test_devices_of_hip(gpu: EmulatedGpu, bundles: Path) -> None:
    found = facts("devices", "--bundle", bundles)
    assert list(found["absent"]) == ["cuda"]
    [shown] = [d for d in found["devices"] if d["device"] == f"hip:{gpu.runtime.index}"]
    assert (shown["id"], shown["description"], shown["target"], shown["bundle"]) == ("gfx1100", "Emulated gfx1100", "gfx1100", "gfx1100")
    assert shown["library"] == str(gpu.runtime.library)
    assert shown["memory_total"] == gpu.memory.capacity
    assert shown["memory_free"] <= shown["memory_total"]
    assert shown["problem"] == ""
    assert gpu.handles == 0
    assert f"hip:{gpu.runtime.index}" in run("devices")


def test_devices_that_the_bundle_has_nothing_for(gpu: EmulatedGpu, bundles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IQ_BUNDLE_PATH", str(bundles / "x86-64-v3"))
    devices = {d["device"]: d for d in facts("devices")["devices"]}
    shown = devices[f"hip:{gpu.runtime.index}"]
    assert (shown["target"], shown["bundle"]) == ("gfx1100", "")
    assert "`iq compile --target gfx1100 --out artifacts` makes them" in shown["problem"]
    assert devices["cpu"]["bundle"] == "x86-64-v3"
    assert "no bundle there" in run("devices", "--bundle", bundles / "nowhere", status=1)


def test_where_a_library_was_loaded_from() -> None:
    assert where_loaded("/a/libamdhip64.so") == "/a/libamdhip64.so"
    assert Path(where_loaded("libc.so.6")).is_file()
    assert where_loaded("libof-no-machine.so.1") == "libof-no-machine.so.1"


# ---- doctor


def checks(status: int = 0) -> dict[str, dict[str, str]]:
    diagnosis = facts("doctor", status=status)
    assert diagnosis["runs"] is (status == 0)
    return {check["name"]: check for check in diagnosis["checks"]}


def test_doctor(no_gpus: None) -> None:
    found = checks()
    assert iq.__version__ in found["versions"]["found"]
    assert found["default device"]["found"] == "cpu, because IQ_DEVICE is not set"
    assert "compiled when they are first needed" in found["kernels"]["found"]
    assert (found["running"]["verdict"], found["running"]["found"][:9]) == ("ok", "cpu opens")
    assert "iree-base-runtime" in found["IREE's runtime"]["found"]
    assert found["HIP library"]["verdict"] == "missing"
    assert "This machine has an AMD GPU: gfx942." in found["HIP library"]["found"]
    assert found["CUDA driver"]["verdict"] == "missing"
    assert {"extra cli", "extra amd", "extra compile", "disassembler", "C compiler", "torch"} <= set(found)
    shown = run("doctor")
    assert shown.splitlines()[0].split() == ["what", "verdict", "found"]


def test_doctor_runs_a_kernel_of_the_bundle(gpu: EmulatedGpu, bundles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IQ_BUNDLE_PATH", str(bundles))
    monkeypatch.setenv("IQ_DEVICE", f"hip:{gpu.runtime.index}")
    found = checks()
    assert found["default device"]["found"] == f"hip:{gpu.runtime.index}, as IQ_DEVICE says"
    assert f"IQ_BUNDLE_PATH={bundles}, for gfx1100, x86-64-v3" in found["kernels"]["found"]
    assert "gfx1100, runs dequantize.q4_0.f32 of the bundle for gfx1100" in found["running"]["found"]
    assert [launch.kernel.partition("_")[0] for launch in gpu.launches] == ["dequantize"]
    assert str(gpu.runtime.library) in found["HIP library"]["found"]


def test_doctor_where_nothing_runs(no_gpus: None, bundles: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IQ_DEVICE", "hip")
    running = checks(status=1)["running"]
    assert running["verdict"] == "fails"
    assert "cannot open hip:0: no driver for hip" in running["found"]
    assert "cannot open hip:0" in run("doctor", status=1)
    monkeypatch.setenv("IQ_DEVICE", "rocm")
    assert "is hip meant?" in checks(status=1)["running"]["found"]
    monkeypatch.setenv("IQ_DEVICE", "cpu")
    monkeypatch.setenv("IQ_DISABLE_COMPILE", "1")
    found = checks(status=1)
    assert "from nowhere" in found["kernels"]["found"]
    assert "IQ_DISABLE_COMPILE is set" in found["running"]["found"]
    monkeypatch.setenv("IQ_BUNDLE_PATH", str(bundles / "gfx1100"))
    assert "it has those for gfx1100" in checks(status=1)["running"]["found"]
    (tmp_path / MANIFEST).write_text("{}")
    monkeypatch.setenv("IQ_BUNDLE_PATH", str(tmp_path))
    found = checks(status=1)
    assert (found["kernels"]["verdict"], found["running"]["verdict"]) == ("fails", "fails")


def test_doctor_says_what_is_missing(no_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gguf", "jinja2", "torch"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setattr(launching, "IMPLEMENTATION", "ctypes")
    found = checks(status=1)  # without jinja2 nothing can be compiled
    assert found["extra gguf"] == {
        "name": "extra gguf", "verdict": "missing", "found": "gguf cannot be imported (pip install 'iq-kernels[gguf]')",
        "advice": "pip install 'iq-kernels[gguf]'",
    }  # fmt: skip
    assert found["compiler"]["verdict"] == "missing"
    assert found["torch"]["found"] == "not installed, which iq does without"
    assert found["C compiler"]["verdict"] == "missing"
    assert found["launcher"]["verdict"] == "note"
    assert "about 5 us longer" in found["launcher"]["found"]


# ---- bench

SMALL = ("--n", "32", "--k", "64", "--layers", "1", "--repeat", "1")


def test_bench_on_an_emulated_gpu(environment: None, bundles: Path) -> None:
    report = facts("bench", "--calls", "--device", "emulated:gfx1100", "--bundle", bundles, *SMALL)
    assert (report["device"], report["id"], report["target"]) == ("emulated:gfx1100", "gfx1100", "gfx1100")
    assert report["launcher"] == launching.IMPLEMENTATION
    ways = [call["way"] for call in report["calls"]]
    own = [way for way in ways if not way.startswith("ctypes: ")]
    assert own[0] == "w.matmul(x, out=y)"
    assert len(own) == 5
    if launching.IMPLEMENTATION == "extension":
        assert ways[len(own) :] == [f"ctypes: {way}" for way in own]
    assert all(call["host_us"] > 0 and call["wait_us"] > 0 for call in report["calls"])
    chain = report["chain"]
    assert (chain["layers"], chain["products"]) == (1, 7)
    blocks = (2 * 64 * 64 + 2 * 16 * 64 + 3 * 224 * 64) // 32
    assert chain["weight_bytes"] == 18 * blocks
    assert chain["graph_ms"] > 0
    assert chain["eager_host_us"] > 0


def test_bench_on_the_cpu(environment: None, bundles: Path) -> None:
    shown = run("bench", "--calls", "--device", "cpu", "--bundle", bundles, *SMALL)
    assert shown.startswith("cpu: cpu, kernels for x86-64-v3, through IREE's runtime")
    assert "eager" in shown
    assert "graph" not in shown
    report = facts("bench", "--calls", "--device", "cpu", "--bundle", bundles, *SMALL[:-4], "--layers", "0", "--repeat", "2")
    assert report["chain"] is None
    assert report["launcher"] == ""


def test_layers_have_weights_of_their_own(environment: None, bundles: Path) -> None:
    from iq.bench import bench

    reports = [bench("cpu", bundles, 32, 64, layers=3, repeat=1, small=small) for small in (False, True)]
    assert [report.chain and (report.chain.products, report.chain.small) for report in reports] == [(21, False), (21, True)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "say what to time: --calls"),
        (("--calls", "--device", "rocm"), "is hip meant?"),
        (("--calls", "--k", "100"), "take a multiple of 64"),
        (("--calls", "--layers", "-1"), "is not in the range"),
    ],
)
def test_misuse_of_bench(environment: None, arguments: tuple[str, ...], said: str) -> None:
    assert said in run("bench", *arguments, status=2)


def test_bench_of_a_device_that_is_not_there(no_gpus: None) -> None:
    assert "cannot open hip:5" in run("bench", "--calls", "--device", "hip:5", status=1)
