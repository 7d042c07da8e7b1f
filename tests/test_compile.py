"""Compiling: what becomes of a compiler's failure, what is compiled again and what not, and what an interrupt leaves."""

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jinja2
import pytest

from iq import kernels
from iq.bundle import Bundle
from iq.bundle.vmfb import Vmfb
from iq.cache import Cache
from iq.compile import CompileOnDemand, build, bundle, compiler, diagnostics
from iq.compile.build import Module, compile_module, compile_modules, mlir_of, modules_of, templates_digest
from iq.compile.compiler import FLAGS, Compilations, Compiler
from iq.errors import CompileError, FormatError, IqError, KernelKeyError, NoArtifactError, NoCompilerError, TargetError
from iq.kernels import KernelSpec
from iq.kernels.schedules import vec_columns
from iq.targets import TARGETS, DeviceId, Target

CPU = TARGETS["x86-64-v3"]

# A module with one kernel, whose body stands where $BODY does.
KERNEL = """\
#buffers = #hal.pipeline.layout<constants = 0, bindings = [#hal.pipeline.binding<storage_buffer>]>
module attributes {hal.device.targets = [$TARGET : !hal.device]} {
hal.executable.source private @kernels {
  hal.executable.export public @kernel ordinal(0) layout(#buffers) count(%device: !hal.device) -> (index, index, index) {
    %one = arith.constant 1 : index
    hal.return %one, %one, %one : index, index, index
  }
  builtin.module {
    func.func @kernel() attributes {translation_info = #iree_codegen.translation_info<
        pipeline = #iree_gpu.pipeline<BaseLowering> workgroup_size = [32, 1, 1] subgroup_size = 32>} {
      %zero = arith.constant 0 : index
      %y = hal.interface.binding.subspan layout(#buffers) binding(0) alignment(64) offset(%zero) : memref<4xi32>
      %a = memref.load %y[%zero] : memref<4xi32>
      %true = arith.constant true
      $BODY
      memref.store %sum, %y[%zero] : memref<4xi32>
      return
    }
  }
}
func.func @"a.b.c"(%y: tensor<4xi32> {iree.abi.output = 0 : index}) -> tensor<4xi32> {
  %r = flow.dispatch @kernels::@kernel() : () -> tensor<4xi32>
  return %r : tensor<4xi32>
}
}
"""
SDOT4 = 'llvm.call_intrinsic "llvm.amdgcn.sdot4"(%a, %a, %a, %true) : (i32, i32, i32, i1) -> i32'
SUDOT4 = 'llvm.call_intrinsic "llvm.amdgcn.sudot4"(%true, %a, %true, %a, %a, %true) : (i1, i32, i1, i32, i32, i1) -> i32'
GFX1010 = Target("gfx1010", "rocm", 32, "")


def kernel(target: Target, body: str) -> str:
    text = KERNEL.replace("$TARGET", target.device_attribute).replace("$BODY", f"%sum = {body}")
    return text.replace("32, 1, 1] subgroup_size = 32", f"{target.wave}, 1, 1] subgroup_size = {target.wave}")


@pytest.fixture(scope="session")
def iree() -> Compiler:
    return Compiler.find()


def script(path: Path, text: str) -> Compiler:
    """A stand-in for the compiler: a shell script, its text all there is to know of it."""
    executable = path / "iree-compile"
    executable.write_text(f"#!/bin/sh\n{text}\n")
    executable.chmod(0o755)
    return Compiler(str(executable), "1", hashlib.sha256(text.encode()).hexdigest())


def ending(process: int) -> bool:
    """Whether a process is gone, or dead and not yet reaped."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except OSError:
        return True


# ---- The compiler


def test_a_kernel_that_compiles(iree: Compiler) -> None:
    with Compilations(iree) as compilations:
        vmfb = Vmfb.parse(compilations.compile(kernel(TARGETS["gfx1100"], SDOT4), "it"))
    assert vmfb.functions == ("a.b.c",)


def refusal(iree: Compiler, mlir: str) -> str:
    with Compilations(iree) as compilations, pytest.raises(CompileError) as error:
        compilations.compile(mlir, "a.b.c for gfx0")
    return str(error.value)


def test_a_compiler_that_aborts_is_survived_and_its_message_shown(iree: Compiler) -> None:
    mlir = kernel(GFX1010, SDOT4)
    message = refusal(iree, mlir)
    assert message.startswith("a.b.c for gfx0 does not compile (SIGABRT: the compiler crashed):")
    assert "LLVM ERROR: Cannot select: intrinsic %llvm.amdgcn.sdot4" in message
    # LLVM names the function only: that is where the excerpt is.
    assert " 9 |     func.func @kernel()" in message
    assert "Instruction Selection' on function '@kernel'" in message
    assert "Stack dump" not in message


def test_an_error_with_exit_status_0_is_a_failure(iree: Compiler) -> None:
    message = refusal(iree, kernel(TARGETS["gfx942"], SUDOT4))
    assert "(exit status 0)" in message
    assert "llvm.amdgcn.sudot4 requires target feature 'dot8-insts'" in message


def test_a_diagnostic_stands_under_its_line(iree: Compiler) -> None:
    message = refusal(iree, kernel(TARGETS["gfx1100"], "arith.addi %a, %nothing : i32"))
    assert message.splitlines()[2:] == [
        "12 |       %y = hal.interface.binding.subspan layout(#buffers) binding(0) alignment(64) offset(%zero) : memref<4xi32>",
        "13 |       %a = memref.load %y[%zero] : memref<4xi32>",
        "14 |       %true = arith.constant true",
        "15 |       %sum = arith.addi %a, %nothing : i32",
        "   |                             ^ error: use of undeclared SSA value name",
        "16 |       memref.store %sum, %y[%zero] : memref<4xi32>",
        "17 |       return",
        "18 |     }",
    ]


def test_a_compiler_that_is_killed(tmp_path: Path) -> None:
    message = refusal(script(tmp_path, "echo reading >&2; kill -KILL $$"), "module {}")
    assert "SIGKILL: the compiler was killed; out of memory?" in message
    assert "reading" in message


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "iree.compiler.tools", None)
    with pytest.raises(NoCompilerError, match=r"pip install 'iq-kernels\[compile\]'"):
        Compiler.find()


def test_a_compiler_that_does_not_say_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IREE_TOOL_PATH", str(Path(script(tmp_path, "echo hello").executable).parent))
    with pytest.raises(NoCompilerError, match="'hello"):
        Compiler.find()


# ---- Diagnostics


def test_notes_without_news_are_left_out() -> None:
    stderr = "<stdin>:2:3: error: bad\n<stdin>:2:3: note: see current operation: %0 = huge\n<stdin>:1:1: note: called from\n"
    shown = diagnostics.parse(stderr, "a\nb")
    assert shown == [diagnostics.Diagnostic("error: bad", 2, 3), diagnostics.Diagnostic("note: called from", 1, 1)]


def test_many_errors_are_counted() -> None:
    stderr = "".join(f"<stdin>:{n}:1: error: number {n}\n" for n in range(1, 10))
    shown = diagnostics.show(stderr, "\n".join("abcdefghi"))
    assert "number 4" in shown
    assert "number 5" not in shown
    assert shown.endswith("... and 5 more")


@pytest.mark.parametrize(
    ("stderr", "errors"),
    [("<stdin>:1:2: error: x", True), ("error: <unknown>:0:0: in function", True), ("LLVM ERROR: x", True), ("warning: no error", False)],
)
def test_what_counts_as_an_error(stderr: str, errors: bool) -> None:
    assert diagnostics.has_errors(stderr) == errors


@pytest.mark.parametrize(
    ("template", "line", "message"),
    [
        ("a\nb ${missing}\nc", 2, "'missing' is undefined"),
        ("a\n//% for x in\nc", 2, "Expected an expression"),
        ('a\n\n//% include "nowhere.j2"', 3, "nowhere.j2"),
    ],
)
def test_a_fault_in_a_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str, line: int, message: str) -> None:
    (tmp_path / "inner.j2").write_text(template)
    (tmp_path / "outer.j2").write_text('\n\n\n//% include "inner.j2"\n')
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(tmp_path),
        undefined=jinja2.StrictUndefined,
        line_statement_prefix="//%",
        variable_start_string="${",
        variable_end_string="}",
    )
    monkeypatch.setattr(build, "render", lambda specs, target: environment.get_template("outer.j2").render())
    with pytest.raises(CompileError) as error:
        mlir_of(Module(CPU, "q8_1", (KernelSpec.parse("quantize_q8_1.q8_1.f32"),)))
    shown = str(error.value)
    assert shown.startswith(f"quantize_q8_1.q8_1.f32 for x86-64-v3 does not render:\n\n{tmp_path}/inner.j2:{line}\n")
    at = shown.splitlines().index(f"{line} | {template.splitlines()[line - 1]}")
    assert message in shown.splitlines()[at + 1]


# ---- Modules


SPECS = tuple(KernelSpec("mul_mat_vec", "q4_0", columns=n) for n in vec_columns(CPU))
MODULE = Module(CPU, "q4_0", SPECS)


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rendering gives the names of the kernels."""
    monkeypatch.setattr(build, "render", lambda specs, target: "\n".join(s.key for s in specs))


@pytest.mark.usefixtures("rendered")
def test_the_kernel_that_crashes_the_compiler_is_named(tmp_path: Path) -> None:
    crashing = script(tmp_path, r"grep -q 'q4_0\.4' && kill -ABRT $$; echo fine")
    with Compilations(crashing) as compilations, pytest.raises(CompileError) as error:
        compile_module(MODULE, compilations, Cache(tmp_path))
    assert str(error.value).startswith("mul_mat_vec.q4_0.4 for x86-64-v3 does not compile (SIGABRT")


@pytest.mark.usefixtures("rendered")
def test_kernels_that_only_fail_together(tmp_path: Path) -> None:
    crashing = script(tmp_path, "[ $(cat | wc -l) -gt 0 ] && kill -ABRT $$; echo fine")
    with Compilations(crashing) as compilations, pytest.raises(CompileError) as error:
        compile_module(MODULE, compilations, Cache(tmp_path))
    assert str(error.value).startswith(f"x86-64-v3/q4_0 ({len(SPECS)} kernels) does not compile")
    assert error.value.__notes__ == ["Each of these kernels compiles when it is alone in a module."]


@pytest.mark.usefixtures("rendered")
def test_what_is_in_the_cache_is_not_compiled_again(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    counting = script(tmp_path, f"cat; echo x >> {runs}")
    cache = Cache(tmp_path / "cache")
    modules = [MODULE, replace(MODULE, target=TARGETS["gfx942"], specs=SPECS[:2])]
    first = compile_modules(modules, counting, cache, jobs=2)
    assert compile_modules(modules, counting, cache, jobs=2) == first
    assert runs.read_text() == "x\nx\n"
    assert [first[m].read_text() for m in modules] == ["\n".join(s.key for s in m.specs) for m in modules]


def test_the_cache_keeps_apart_what_could_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_by, cache = Compiler("", "3.13.0", "abc"), Cache(tmp_path)

    def path(text: str, **changes: str) -> Path:
        return cache.path(".vmfb", *replace(made_by, **changes).inputs(text))

    paths = [path("text"), path("text "), path("text", version="3.13.1"), path("text", revision="abd")]
    monkeypatch.setattr("iq.compile.compiler.FLAGS", (*FLAGS, "--more"))
    paths.append(path("text"))
    assert len(set(paths)) == len(paths)
    assert path("text", executable="elsewhere") == paths[-1]


def test_the_cache_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IQ_CACHE_DIR", str(tmp_path / "mine"))
    assert Cache().directory == tmp_path / "mine"
    monkeypatch.delenv("IQ_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Cache().directory == tmp_path / "iq"


def test_an_entry_that_could_not_be_stored_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    cache = Cache(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        cache.store(tmp_path / "a.vmfb", b"vmfb")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("rendered")
def test_progress(tmp_path: Path) -> None:
    modules = [replace(MODULE, target=TARGETS[t]) for t in ("gfx90a", "gfx942", "gfx1100")]
    steps: list[tuple[int, int, tuple[str, ...]]] = []
    compile_modules(modules, script(tmp_path, "cat"), Cache(tmp_path / "cache"), 1, lambda *step: steps.append(step))
    assert steps == [(0, 3, ("gfx90a/q4_0",)), (1, 3, ("gfx942/q4_0",)), (2, 3, ("gfx1100/q4_0",)), (3, 3, ())]


@pytest.mark.usefixtures("rendered")
@pytest.mark.parametrize("error", [KeyboardInterrupt, CompileError])
def test_running_compilers_are_ended(tmp_path: Path, error: type[BaseException]) -> None:
    """One module is done (or fails) while another's compiler, once started, would never end."""
    started = tmp_path / "started"
    os.mkfifo(started)
    stuck = script(
        tmp_path,
        f"""grep -q 'q4_0.1' || {{ echo $$ > {started}; exec tail -f /dev/null; }}
            read process < {started}; echo $process > {started}.log
            {"exit 1" if error is CompileError else "echo fine"}""",
    )
    modules = [replace(MODULE, specs=SPECS[:1]), replace(MODULE, specs=SPECS[1:2])]

    def interrupt(done: int, total: int, running: tuple[str, ...]) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(error):
        compile_modules(modules, stuck, Cache(tmp_path / "cache"), 2, interrupt)
    assert ending(int(Path(f"{started}.log").read_text()))


def test_every_kernel_is_in_a_module() -> None:
    modules = modules_of(CPU, kernels.kernels())
    assert [m.name for m in modules] == [f"x86-64-v3/{f}" for f in sorted({k.format for k in kernels.kernels()})]
    assert {s for m in modules for s in m.specs} == set(kernels.kernels(CPU))


# ---- Bundles


def snapshot(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_bundles_are_the_same_bytes_wherever_they_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for place, jobs, targets in (("one", 1, ["gfx1100", "x86-64-v3"]), ("two", 2, ["x86-64-v3", "gfx1100"])):
        (tmp_path / place / "cwd").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / place / "cwd")
        monkeypatch.setenv("IQ_CACHE_DIR", str(tmp_path / place / "cache"))
        paths = bundle(targets, ["q8_1"], "quantize_q8_1", out=f"{place}/artifacts", jobs=jobs)
        assert paths == [Path(place, "artifacts", t) for t in targets]
        made.append(snapshot(Path(place, "artifacts")))
    assert made[0] == made[1]
    assert sorted(made[0]) == [f"{t}/{f}" for t in ("gfx1100", "x86-64-v3") for f in ("manifest.json", "q8_1.vmfb")]
    opened = Bundle.open("two/artifacts/gfx1100")
    opened.verify()
    assert opened.manifest.compiler.flags == FLAGS
    assert opened.manifest.templates == templates_digest()


def test_bundles_in_zips(tmp_path: Path) -> None:
    [path] = bundle("x86-64-v3", "q8_1", out=tmp_path, packed=True)
    assert path == tmp_path / "x86-64-v3.zip"
    Bundle.open(path).verify()


@pytest.mark.usefixtures("rendered")
def test_a_bundle_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "artifacts"
    (out / "gfx1100").mkdir(parents=True)
    (out / "gfx1100" / "manifest.json").write_text("the old one")
    before = snapshot(out)
    failing = script(tmp_path, "grep -q quantize_q8_1 && exit 1; cat")
    monkeypatch.setattr(compiler.Compiler, "find", classmethod(lambda cls: failing))
    with pytest.raises(CompileError, match=r"quantize_q8_1\.q8_1\.f32 for gfx1100"):
        bundle("gfx1100", out=out)
    assert snapshot(out) == before

    def interrupt(done: int, total: int, running: tuple[str, ...]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bundle("gfx1100", "q4_0", out=out, progress=interrupt)
    assert snapshot(out) == before
    assert [p.name for p in out.iterdir()] == ["gfx1100"]


@pytest.mark.parametrize(
    ("targets", "formats", "op_names", "refused"),
    [
        ("gfx1", "q4_0", None, TargetError),
        (["cpu"], ["q4_0", "q9_9"], None, FormatError),
        ("cpu", None, "mul", KernelKeyError),
        ("cpu", ["q8_1"], ["mul_mat", "get_rows"], KernelKeyError),
    ],
)
def test_unknown_names(
    tmp_path: Path, targets: str | list[str], formats: str | list[str] | None, op_names: str | list[str] | None, refused: type[IqError]
) -> None:
    with pytest.raises(refused):
        bundle(targets, formats, op_names, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_templates_digest_follows_the_templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(Path(build.__file__).parent.parent / "templates", tmp_path / "templates")
    monkeypatch.setattr(build.resources, "files", lambda package: tmp_path)
    digests = [templates_digest()]
    (tmp_path / "templates" / "note.txt").write_text("no template")
    assert templates_digest() == digests[0]
    template = next((tmp_path / "templates" / "kernels").glob("*.j2"))
    template.write_text(template.read_text() + "\n")
    digests.append(templates_digest())
    template.rename(template.with_name("renamed.mlir.j2"))
    digests.append(templates_digest())
    assert len(set(digests)) == 3


# ---- On demand


def test_on_demand_compiles_a_kernel_alone_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("IQ_QUIET")
    provider = CompileOnDemand(Cache(tmp_path))
    target = provider.target(DeviceId("cpu"), CPU.cpu_requires)
    assert target is CPU
    module = provider.module(target, SPECS[0])
    assert capsys.readouterr().err == f"iq: compiling {SPECS[0].key} for {CPU.id}\n"
    assert set(Vmfb.parse(module.vmfb).functions) == set(module.launches) == {SPECS[0].key}
    assert provider.vmfb(target, SPECS[0]).read_bytes() == module.vmfb
    assert capsys.readouterr().err == ""
    with pytest.raises(KernelKeyError):
        provider.module(target, replace(SPECS[0], columns=9))


def test_on_demand_quietly(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IQ_QUIET", "1")
    CompileOnDemand(Cache(tmp_path)).module(CPU, SPECS[0])
    assert capsys.readouterr().err == ""


def test_on_demand_targets() -> None:
    provider = CompileOnDemand()
    assert provider.target(DeviceId.parse("gfx90a:sramecc+:xnack-")).id == "gfx90a"
    assert provider.target(DeviceId("sm_86")).id == "sm_80"
    assert provider.target(DeviceId("cpu"), TARGETS["x86-64-v4-vnni"].cpu_requires).id == "x86-64-v4-vnni"
    with pytest.raises(NoArtifactError, match=r"^iq does not compile for gfx803\n`iq targets` lists what it compiles for$"):
        provider.target(DeviceId("gfx803"))
    with pytest.raises(NoArtifactError, match=r"^iq does not compile for sm_75\nsm_80 does not run on sm_75\n"):
        provider.target(DeviceId("sm_75"))


def test_on_demand_can_be_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IQ_DISABLE_COMPILE", "1")
    with pytest.raises(NoCompilerError, match=r"IQ_DISABLE_COMPILE is set.*iq compile --target x86-64-v3 --format q4_0"):
        CompileOnDemand().module(CPU, SPECS[0])


def test_processes_share_a_cache(tmp_path: Path) -> None:
    code = f"""
from iq.compile import CompileOnDemand
from iq.kernels import KernelSpec
from iq.targets import TARGETS
print(CompileOnDemand().vmfb(TARGETS["x86-64-v3"], KernelSpec.parse("{SPECS[0].key}")))
"""
    environment = os.environ | {"IQ_CACHE_DIR": str(tmp_path)}
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, text=True) for _ in range(2)]
    printed = {p.communicate()[0].strip() for p in processes}
    assert [p.returncode for p in processes] == [0, 0]
    [path] = tmp_path.iterdir()
    assert printed == {str(path)}
    Vmfb.parse(path.read_bytes())
