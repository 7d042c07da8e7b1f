"""What `iq extract` writes: code that HIP loads as it is, a table that stands for itself, and a header that is all a host in C needs."""

import ctypes
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

import iq
from iq.bundle import Bundle, Vmfb, codeobject
from iq.bundle.extract import LaunchTable, extract
from iq.cli.commands import main
from iq.emulator import native
from iq.emulator.device import EmulatedGpu
from iq.errors import BundleError, FormatError, NoKernelError
from iq.runtime.gpu.plans import Planner
from iq.runtime.launching import EntryPoints

pytestmark = pytest.mark.needs_extras

ROOT = Path(__file__).parent.parent
GPUS = ("gfx1100", "gfx942")
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-pedantic")
KEY = "mul_mat_vec.q4_0.1"


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory, environment: None) -> Path:
    out = tmp_path_factory.mktemp("extract") / "artifacts"
    iq.compile.bundle([*GPUS, "sm_80", "x86-64-v3"], "q4_0,q8_1", out=out)
    return out


@pytest.fixture(scope="session")
def extracted(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("extracted") / "kernels"
    extract(bundles, out)
    return out


def compile_c(source: Path, *options: str | Path, compiler: str = "cc", standard: str = "c99") -> None:
    language = ("-x", "c++") if compiler == "g++" else ()
    done = subprocess.run(
        [compiler, f"-std={standard}", *WARNINGS, *language, source, "-x", "none", *options], capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("target", [*GPUS, "sm_80"])
def test_files(bundles: Path, extracted: Path, target: str) -> None:
    folder, bundle = extracted / target, Bundle.open(bundles / target)
    suffix = "ptx" if target.startswith("sm") else "hsaco"
    assert set(contents(folder)) == {f"q4_0.{suffix}", f"q8_1.{suffix}", "iq_kernels.h", "launch.json"}
    table = msgspec.json.decode((folder / "launch.json").read_bytes(), type=LaunchTable)
    assert (table.target, table.api) == (target, "cuda" if suffix == "ptx" else "hip")
    assert [file.name for file in table.files] == ["iq_kernels.h", f"q4_0.{suffix}", f"q8_1.{suffix}"]
    for file in table.files:
        data = (folder / file.name).read_bytes()
        assert (file.size, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    manifest = {kernel.key: kernel for kernel in bundle.manifest.kernels}
    assert [kernel.key for kernel in table.kernels] == sorted(manifest)
    for kernel in table.kernels:
        assert kernel.file == manifest[kernel.key].file.replace("vmfb", suffix)
        assert kernel.launches == manifest[kernel.key].launches


@pytest.mark.parametrize("target", GPUS)
def test_code_is_the_elf_that_the_bundle_has(bundles: Path, extracted: Path, target: str) -> None:
    elf = (extracted / target / "q4_0.hsaco").read_bytes()
    [executable] = Vmfb.parse(Bundle.open(bundles / target).data("q4_0.vmfb")).executables.values()
    assert elf == codeobject.find(executable)[0]
    code = codeobject.CodeObject.parse(elf)
    assert code.processor == target
    table = json.loads((extracted / target / "launch.json").read_text())
    functions = {d["function"] for kernel in table["kernels"] if kernel["file"] == "q4_0.hsaco" for d in kernel["launches"]["dispatches"]}
    assert functions <= {kernel.name for kernel in code.kernels}


def test_ptx_is_text(extracted: Path) -> None:
    text = (extracted / "sm_80" / "q4_0.ptx").read_bytes()
    assert b".target sm_80" in text
    assert b"\0" not in text


def test_the_same_bytes_again(bundles: Path, extracted: Path, tmp_path: Path) -> None:
    for _ in range(2):  # the second time over the first
        extract(bundles / "gfx1100", tmp_path / "out")
        assert contents(tmp_path / "out") == contents(extracted / "gfx1100")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_from_a_zip(bundles: Path, extracted: Path, tmp_path: Path) -> None:
    iq.bundle.pack(bundles / "gfx942", tmp_path / "gfx942.zip")
    extract(tmp_path / "gfx942.zip", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(extracted / "gfx942")


def test_some_kernels(bundles: Path, tmp_path: Path) -> None:
    [(folder, table)] = extract(bundles / "gfx1100", tmp_path / "out", "q4_0", "mul_mat_vec.*.1")
    assert [kernel.key for kernel in table.kernels] == [KEY]
    assert set(contents(folder)) == {"q4_0.hsaco", "iq_kernels.h", "launch.json"}
    with pytest.raises(NoKernelError, match=r"no kernel of q8_1 matches 'mul_mat\*'"):
        extract(bundles, tmp_path / "none", "q8_1", "mul_mat*")
    with pytest.raises(FormatError, match="q9_9"):
        extract(bundles, tmp_path / "none", "q9_9")
    assert not (tmp_path / "none").exists()


def test_kernels_of_a_cpu_are_refused(bundles: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="for CPUs only, which are functions that IREE's runtime calls"):
        extract(bundles / "x86-64-v3", tmp_path / "out")


def test_other_things_are_not_replaced(bundles: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(BundleError, match="holds other things"):
        extract(bundles / "gfx1100", tmp_path)
    with pytest.raises(BundleError, match="holds other things"):
        extract(bundles / "gfx1100", tmp_path / "mine")
    assert contents(tmp_path) == {"mine": b"kept"}


def test_command(bundles: Path, tmp_path: Path) -> None:
    def run(*arguments: str, status: int = 0) -> str:
        result = CliRunner().invoke(main, ["extract", *arguments])
        assert result.exit_code == status, result.output
        return result.output

    out = str(tmp_path / "out")
    rows = json.loads(run(str(bundles), "--out", out, "--kernel", KEY, "--json"))
    assert [(row["folder"], row["target"], row["kernels"]) for row in rows] == [
        (f"{out}/{t}", t, 1) for t in ("gfx1100", "gfx942", "sm_80")
    ]
    assert "gfx942" in run(str(bundles / "gfx942"), "--out", str(tmp_path / "one"))
    assert "for CPUs only" in run(str(bundles / "x86-64-v3"), "--out", out, status=1)
    assert "no kernel matches 'nothing'" in run(str(bundles), "--out", out, "--kernel", "nothing", status=1)
    assert "q9_9" in run(str(bundles), "--out", out, "--format", "q9_9", status=2)
    assert "--out" in run(str(bundles), status=2)


# ---- The header

HOST = """
#include "iq_kernels.h"

/* For Python: a kernel's buffers in bytes, then for each dispatch the status and the grid. */
int table_count(void);
int numbers(const char *key, const int32_t *sizes, uint64_t *out);
int table_count(void) { return IQ_KERNEL_COUNT; }
int numbers(const char *key, const int32_t *sizes, uint64_t *out) {
  const iq_kernel *kernel = iq_find(key);
  uint32_t grid[3];
  int i, j, n = 0;
  if (!kernel) return -1;
  for (i = 0; i < iq_buffer_count(kernel); i++) {
    out[n++] = iq_bytes(kernel, sizes, &kernel->buffers[i]);
    if (iq_buffer(kernel, kernel->buffers[i].name) != i) return -2;
  }
  for (i = 0; i < kernel->dispatch_count; i++) {
    out[n++] = (uint64_t)(int64_t)iq_grid(kernel, sizes, &kernel->dispatches[i], grid);
    for (j = 0; j < 3; j++) out[n++] = grid[j];
  }
  if (iq_size(kernel, sizes, "nothing") != -1 || iq_buffer(kernel, "nothing") != -1) return -3;
  return n;
}
"""


@pytest.mark.parametrize("target", [*GPUS, "sm_80"])
@pytest.mark.parametrize(("compiler", "standard"), [("cc", "c99"), ("cc", "c11"), ("g++", "c++11")])
def test_header_compiles_alone(extracted: Path, tmp_path: Path, target: str, compiler: str, standard: str) -> None:
    if not shutil.which(compiler):
        pytest.skip(f"there is no {compiler}")
    source = tmp_path / "host.c"
    source.write_text(HOST)
    compile_c(source, "-c", f"-I{extracted / target}", "-o", tmp_path / "host.o", compiler=compiler, standard=standard)


@pytest.mark.parametrize("target", [*GPUS, "sm_80"])
def test_header_says_what_the_table_says(extracted: Path, tmp_path: Path, target: str) -> None:
    source, library = tmp_path / "host.c", tmp_path / "host.so"
    source.write_text(HOST)
    compile_c(source, "-shared", "-fPIC", f"-I{extracted / target}", "-o", library)
    host = ctypes.CDLL(str(library))
    table = msgspec.json.decode((extracted / target / "launch.json").read_bytes(), type=LaunchTable)
    assert host.table_count() == len(table.kernels)
    for kernel in table.kernels:
        launches = kernel.launches
        numbers = [7 + 31 * at for at in range(len(launches.sizes))]
        sizes = launches.all_sizes(dict(zip(launches.sizes, numbers, strict=True)))
        out = (ctypes.c_uint64 * 64)()
        n = host.numbers(kernel.key.encode(), (ctypes.c_int32 * len(numbers))(*numbers), out)
        want = [tensor.nbytes(sizes) for tensor in (*launches.inputs, *launches.outputs, *launches.scratch)]
        for dispatch in launches.dispatches:
            want += [1, *[-(-sizes[axis.size] // axis.tile) for axis in dispatch.grid], *[1] * (3 - len(dispatch.grid))]
        assert out[:n] == want, kernel.key
    assert host.numbers(b"mul_mat.q4_0.nothing", None, None) == -1


def test_what_the_header_refuses_is_what_plans_refuse(extracted: Path, tmp_path: Path) -> None:
    """Empty grids, negative sizes, and what is beyond a GPU."""
    source, library = tmp_path / "host.c", tmp_path / "host.so"
    source.write_text(HOST)
    compile_c(source, "-shared", "-fPIC", f"-I{extracted / 'gfx1100'}", "-o", library)
    host = ctypes.CDLL(str(library))
    table = msgspec.json.decode((extracted / "gfx1100" / "launch.json").read_bytes(), type=LaunchTable)
    [launches] = [kernel.launches for kernel in table.kernels if kernel.key == KEY]
    planner = Planner(KEY, launches, {d.function: 1 for d in launches.dispatches}, EntryPoints(1, 1, 1, 1, 1))

    def statuses(*sizes: int) -> tuple[int, int]:
        out = (ctypes.c_int64 * 64)()
        n = host.numbers(KEY.encode(), (ctypes.c_int32 * 3)(*sizes), out)
        return out[n - 8], out[n - 4]

    assert statuses(1, 70, 16) == (1, 1)
    assert statuses(1, 0, 16) == (1, 0)
    assert statuses(0, 70, 16) == (0, 0)
    assert statuses(1, -1, 16) == (1, -1)
    for sizes in ((65536, 70, 1), (1, 70, 1 << 27), (1, (1 << 31) - 1, 1)):
        assert -1 in statuses(*sizes), sizes
        with pytest.raises(iq.errors.ShapeError):
            planner.plan(sizes)


def test_names_are_plain_in_c() -> None:
    from iq.bundle.header import _text

    assert _text("mul_mat_vec.q4_0.1") == '"mul_mat_vec.q4_0.1"'
    assert _text('a"\\\né?') == '"a\\042\\134\\012\\303\\251\\077"'


# ---- The example


@pytest.mark.parametrize("target", GPUS)
def test_matvec_in_c(extracted: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], target: str) -> None:
    """The example as a shared object on the HIP runtime of emulated GPUs, its `main` called in this process."""
    gpu = EmulatedGpu(f"emulated:{target}")
    library = tmp_path / "matvec.so"
    include = (f"-I{extracted / target}", f"-I{ROOT / 'tests' / 'include'}")
    compile_c(ROOT / "examples" / "matvec.c", *include, "-shared", "-fPIC", native.library_path(), "-lm", "-o", library)

    def run(*arguments: str) -> tuple[int, str, str]:
        given = [b"matvec", *(argument.encode() for argument in arguments)]
        status = ctypes.CDLL(str(library)).main(len(given), (ctypes.c_char_p * (len(given) + 1))(*given))
        ctypes.CDLL(None).fflush(None)
        said = capfd.readouterr()
        return status, said.out, said.err

    status, out, err = run(str(extracted / target), str(gpu.runtime.index))
    assert (status, err, gpu.take_failure()) == (0, "", None)
    found = re.fullmatch(rf"{re.escape(KEY)} on {target}: y\[0\] = (\S+), want (\S+); normalized mean square error (\S+)\n", out)
    assert found
    assert abs(float(found[1]) - float(found[2])) < 0.05
    assert 0 < float(found[3]) < 5e-4
    assert [launch.kernel.partition("_")[0] for launch in gpu.launches] == ["quantize", "mul"]
    assert gpu.memory.leaks() == []
    assert gpu.handles == 0
    assert run()[0] == 2
    assert run()[2].startswith("usage: matvec FOLDER")


def test_matvec_is_short() -> None:
    lines = (ROOT / "examples" / "matvec.c").read_text().splitlines()
    assert len(lines) < 100
    assert max(map(len, lines)) <= 140
