"""Verifying a bundle by running it: the cases, the report, and the command. The runner runs on any device; here that is mostly the CPU."""

import dataclasses
import json
import re
import shutil
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import CPU_TARGETS
from tiers import DISTINCT

import iq
from iq import kernels
from iq.bundle import Bundle
from iq.cli.commands import main
from iq.compile.build import bundle
from iq.errors import DeviceError, TargetError
from iq.formats import FORMATS
from iq.inspect import Objdump
from iq.kernels import KernelSpec
from iq.kernels.ops import SCALE_ROWS
from iq.targets import TARGETS
from iq.verify import report as reports
from iq.verify.case import Check
from iq.verify.cases import cases
from iq.verify.devices import APPROXIMATIONS, EMULATED, Opened, open_real
from iq.verify.peaks import PEAKS, Work, roofline
from iq.verify.products import LANES, THREAD_VALUES, THREADS
from iq.verify.results import TargetReport
from iq.verify.run import run, verify, verify_bundle

SOME = ["dequantize.q6_k.bf16", "get_rows.q4_0.f16", "mul_mat_vec.q4_k.4", "dequantize_mul_mat_vec.f16.8", "mul_mat.q8_0.q8_1"]
HOW, NOTES = "Run <somehow>.", ("Nothing & nobody.",)
SOME += ["mul_mat.q4_0.float", "quantize_q8_1.q8_1.f32", "quantize_q8_1_soa.q8_1.f32"]


@pytest.fixture(scope="session")
def cpu_bundle(environment, tmp_path_factory) -> Bundle:
    [path] = bundle(CPU_TARGETS[0].id, out=tmp_path_factory.mktemp("verify"), jobs=1)
    return Bundle.open(path)


@pytest.fixture(scope="session")
def cpu(cpu_bundle):
    return iq.Device("cpu", bundle=cpu_bundle.path)


@pytest.fixture(scope="session")
def passed(cpu_bundle, cpu) -> TargetReport:
    return verify_bundle(cpu_bundle, lambda target, bundle: Opened(cpu, HOW, NOTES), map(KernelSpec.parse, SOME))


def test_every_kernel_has_cases():
    for target in DISTINCT:
        for spec in kernels.kernels(target):
            names = [case.name for case in cases(spec, target)]
            assert len(names) == len(set(names)) >= 2, spec.key


def test_cases_are_the_same_every_time(cpu):
    spec = KernelSpec.parse("mul_mat_vec.q4_0.2")
    for one, other in zip(cases(spec, cpu.target), cases(spec, cpu.target), strict=True):
        assert all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(one.inputs, other.inputs, strict=True))


def test_all_edges_are_in_the_cases_of_one_column(cpu):
    names = {case.name.partition(":")[0] for case in cases(KernelSpec.parse("mul_mat_vec.q8_0.1"), cpu.target)}
    assert names >= {"zeros", "tiny", "huge", "outlier", "NaN", "inf", "-inf"}


def test_each_lane_has_an_outlier():
    for target in TARGETS.values():
        for schedule in SCALE_ROWS.schedules(target, FORMATS["q8_0"], 0):
            assert schedule.threads(target.wave) <= THREADS and target.wave <= LANES, target.id
    [x] = [case.inputs[1] for case in cases(KernelSpec.parse("mul_mat.q4_0.float"), TARGETS["gfx1100"]) if "each lane" in case.name]
    largest = np.abs(x).argmax(axis=1)
    thread = largest // THREAD_VALUES
    for wave in (32, 64):
        assert set(thread % wave) == set(range(wave))
        assert set(thread // wave) == set(range(THREADS // wave))
    assert set(largest % THREAD_VALUES) == set(range(THREAD_VALUES))
    assert {np.sign(x[i, at]) for i, at in enumerate(largest)} == {-1, 1}


@pytest.mark.parametrize("key", SOME)
def test_one_wrong_element_is_noticed(cpu, key):
    spec, rng = KernelSpec.parse(key), np.random.default_rng(0)
    for case in cases(spec, cpu.target):
        outputs, stray = run(cpu, spec, case)
        assert stray == 0
        assert all(check.passed for check in case.check(outputs)), case.name
        for which in range(len(outputs)):
            altered = [output.copy() for output in outputs]
            at = tuple(rng.integers(n) for n in altered[which].shape)
            if "mul_mat" in key:
                value = altered[which][at]
                altered[which][at] = value * np.float32(1.01) + np.float32(1e-30) if np.isfinite(value) else 0
            else:
                altered[which].view(f"u{altered[which].dtype.itemsize}")[at] ^= 1
                if altered[which].dtype.kind in "fV" and np.isnan(outputs[which].astype(np.float32)[at]):
                    continue  # another NaN is as good
            assert not all(check.passed for check in case.check(altered)), (case.name, which, at)


def test_an_unwritten_output_is_noticed(cpu):
    spec = KernelSpec.parse("dequantize.q4_0.f32")
    case = next(cases(spec, cpu.target))
    nothing = [np.full(shape, 0x7B, np.uint8).view(np.float32) for shape in [(1, 128)]]
    assert not case.check(nothing)[0].passed


def test_nan_passes_no_check():
    assert not Check("", float("nan"), 1.0).passed
    assert Check("", 1.0, 1.0).passed


def test_a_sound_bundle_passes(passed):
    assert passed.passed
    assert [k.key for k in passed.kernels] == SOME
    assert (passed.how, passed.approximations) == (HOW, NOTES)
    assert not passed.counted


class Broken:
    """A device on which one kernel fails: once, and from then on everything, until another one is opened."""

    def __init__(self, cpu, key: str, error: Exception) -> None:
        self._cpu, self._key, self._error, self._broken = cpu, key, error, False
        self.library = self

    def __getattr__(self, name):
        return getattr(self._cpu, name)

    def kernel(self, spec):
        self._broken |= spec.key == self._key
        if self._broken:
            raise self._error
        return self._cpu.library.kernel(spec)


@pytest.mark.parametrize("error", [DeviceError("it <broke>"), ZeroDivisionError("it <broke>")], ids=lambda e: type(e).__name__)
def test_a_failure_is_reported_and_the_others_run_on_a_fresh_device(cpu_bundle, cpu, error):
    report = verify_bundle(cpu_bundle, lambda target, bundle: Opened(Broken(cpu, SOME[2], error), HOW), map(KernelSpec.parse, SOME))
    assert [k.key for k in report.kernels if not k.passed] == [SOME[2]]
    assert not report.passed
    assert report.kernels[2].worst == f"{type(error).__name__}: it <broke>"


def test_a_device_that_does_not_open_is_an_error(cpu_bundle):
    def refuse(target, bundle):
        raise DeviceError("no such GPU")

    with pytest.raises(DeviceError, match="no such GPU"):
        verify_bundle(cpu_bundle, refuse, [KernelSpec.parse(SOME[0])])


# ---- Roofline


@pytest.mark.parametrize("gpu", PEAKS.values(), ids=PEAKS)
def test_roofline(gpu):
    ridge = gpu.matrix * gpu.clocks / gpu.bandwidth
    below = roofline(gpu, Work(int(ridge * 1e6 / 2), "matrix", 10**6, 0, 0))
    above = roofline(gpu, Work(int(ridge * 1e6 * 2), "matrix", 10**6, 0, 0))
    assert (below.bound, above.bound) == ("memory", "matrix arithmetic")
    assert below.ridge == pytest.approx(ridge)
    assert below.intensity == pytest.approx(ridge / 2, rel=1e-3)
    assert below.times["memory"] == pytest.approx(1e6 / gpu.bandwidth)
    assert roofline(gpu, Work(0, "", 1, 10**9, 0)).bound == "LDS"
    assert roofline(gpu, Work(0, "", 1, 0, 10**9)).intensity is None


# ---- The report


class Checker(HTMLParser):
    """Finds tags that are not closed in order, and anything the page would fetch."""

    VOID = frozenset({"meta"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        assert tag not in ("script", "link", "img") and not any(name in ("src", "srcset") for name, _ in attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def checked(text: str) -> str:
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert not checker.open
    return text


def test_report(passed):
    text = checked(reports.html([dataclasses.replace(passed, target="gfx1100", gpu=PEAKS["gfx1100"].name)]))
    assert all(escape(text_of) in text for text_of in (HOW, *NOTES))
    assert all(key in text for key in SOME)
    assert "every kernel passed" in text and "FAILED" not in text


def test_report_of_a_failure(cpu_bundle, cpu):
    def open_broken(target, bundle):
        return Opened(Broken(cpu, SOME[2], DeviceError("it <broke>")), HOW)

    result = verify_bundle(cpu_bundle, open_broken, map(KernelSpec.parse, SOME[2:4]))
    text = checked(reports.html([result]))
    assert "1 kernels failed" in text and "DeviceError: it &lt;broke&gt;" in text


# ---- The command


def test_waits_are_checked_where_there_is_a_disassembler(artifacts, monkeypatch):
    def waits() -> dict[str, str]:
        return {row["target"]: row["waits"] for row in json.loads(invoke(artifacts, "--json", status=0).stdout)}

    assert waits() == {"gfx1100": "ok", "gfx90a": "ok", CPU_TARGETS[0].id: ""}
    monkeypatch.setenv("IQ_LLVM_OBJDUMP", "/no/such/objdump")
    assert waits() == {"gfx1100": "not checked", "gfx90a": "not checked", CPU_TARGETS[0].id: ""}
    assert "gfx1100: waits are not checked: no llvm-objdump" in invoke(artifacts, status=0).stderr


def test_a_missing_wait_is_a_failure(artifacts, monkeypatch):
    listing = Objdump.listing
    without = re.compile(r"s_waitcnt (vm|lgkm)cnt.*?(?=\s*//)")
    monkeypatch.setattr(Objdump, "listing", lambda *arguments: without.sub("s_nop 0", listing(*arguments)))
    rows = json.loads(invoke(artifacts, "--json", status=1).stdout)
    assert {row["target"]: row["verdict"] for row in rows} == {"gfx1100": "MissingWait", "gfx90a": "MissingWait", CPU_TARGETS[0].id: "ok"}
    assert re.search(r"quantize_q8_1\w* at 0x[0-9a-f]+: .* may still be under way", rows[0]["reason"])


@pytest.fixture(scope="session")
def artifacts(environment, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("emulated")
    bundle(["gfx1100", "gfx90a", CPU_TARGETS[0].id], "q8_1", out=out, jobs=1)
    return out


def invoke(*arguments: str | Path, status: int):
    result = CliRunner().invoke(main, ["verify", *map(str, arguments)])
    assert result.exit_code == status, (result.output, result.exception)
    return result


def test_command(artifacts, tmp_path):
    result = invoke(artifacts, "--emulate", "--target", "gfx1100", "--report", tmp_path / "report.html", status=0)
    assert re.search(r"quantize_q8_1\.q8_1\.f32 +ok +0 different bytes", result.stdout)
    assert EMULATED in result.stdout and all(note in result.stdout for note in APPROXIMATIONS)
    assert "gfx1100/quantize_q8_1.q8_1.f32" in result.stderr  # progress
    text = checked((tmp_path / "report.html").read_text())
    assert "RX 7900 XTX" in text and "VGPRs" in text


def test_command_prints_json(artifacts):
    results = json.loads(invoke(artifacts, "--emulate", "--json", status=0).stdout)
    assert [r["target"] for r in results if not r["not_run"]] == ["gfx1100", "gfx90a"]
    assert results[0]["how"] == EMULATED
    case = results[0]["kernels"][0]["cases"][0]
    assert case["executed"]["instructions"]["valu"] > 0 and sum(case["executed"]["bytes_written"].values()) == 36


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target", "gfx1100"), "go with --run or --emulate"),
        (("--run", "--emulate"), "give one of them"),
        (("--emulate", "--target", "gfx942"), f"holds no bundle for gfx942; it has gfx1100, gfx90a, {CPU_TARGETS[0].id}"),
        (("--emulate", "--target", CPU_TARGETS[0].id), "cannot be emulated, only ROCm targets can"),
        (("--emulate", "--target", "gfx1"), "unknown target"),
    ],
)
def test_misuse(artifacts, arguments, message):
    assert message in invoke(artifacts, *arguments, status=2).stderr


def test_where_no_bundle_can_be_run(artifacts):
    with pytest.raises(TargetError, match=r"(?s)no bundle that can be run here.*hip"):
        verify(artifacts / "gfx1100", open_real)


def test_every_kernel_of_a_cpu_bundle_runs_on_the_cpu(cpu_bundle, tmp_path):
    result = invoke(cpu_bundle.path, "--run", "--json", "--report", tmp_path / "report.html", status=0)
    [report] = json.loads(result.stdout)
    assert report["how"] == "Run on this CPU." and not report["not_run"] and not report["approximations"]
    assert [kernel["key"] for kernel in report["kernels"]] == [kernel.key for kernel in cpu_bundle.manifest.kernels]
    assert all(case["checks"] for kernel in report["kernels"] for case in kernel["cases"])
    text = checked((tmp_path / "report.html").read_text())
    assert "Run on this CPU." in text and "emulation" not in text


def test_bundles_that_cannot_be_run_here_are_named(artifacts):
    result = invoke(artifacts, "--run", status=0)
    assert "Run on this CPU." in result.stdout
    for target in ("gfx1100", "gfx90a"):
        assert re.search(rf"{target}: not run: .*hip", result.stdout), target


def test_an_altered_bundle_is_not_run(artifacts, tmp_path):
    altered = shutil.copytree(artifacts / "gfx1100", tmp_path / "gfx1100")
    (altered / "q8_1.vmfb").write_bytes(b"x" + (altered / "q8_1.vmfb").read_bytes()[1:])
    assert "AlteredFileError" in invoke(altered, "--emulate", status=1).stdout
