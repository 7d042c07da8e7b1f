"""What trust in the emulator rests on beside its unit tests: ordinary kernels that IREE compiles for several GPUs compute what numpy says,
bugs planted in our own kernels are noticed, and an artifact for another GPU is refused."""

import re
import subprocess
from pathlib import Path

import iree.runtime
import numpy as np
import pytest
from conftest import OnDemandFor
from iree.compiler.tools import binaries

import iq
from iq import bundle as bundles
from iq import runtime
from iq.bundle import Bundle
from iq.compile.build import Module, mlir_of
from iq.compile.compiler import FLAGS, Compilations, Compiler
from iq.emulator.device import EmulatedGpu
from iq.errors import IqError, NoArtifactError
from iq.inspect import inspect
from iq.kernels import KernelSpec
from iq.targets import TARGETS, DeviceId
from iq.verify.devices import open_emulated
from iq.verify.references import nmse
from iq.verify.run import verify_bundle

MODULE = """
func.func @softmax(%x: tensor<9x320xf32>) -> tensor<9x320xf32> {
  %empty = tensor.empty() : tensor<9x320xf32>
  %y = linalg.softmax dimension(1) ins(%x : tensor<9x320xf32>) outs(%empty : tensor<9x320xf32>) -> tensor<9x320xf32>
  return %y : tensor<9x320xf32>
}
func.func @sum(%x: tensor<33x500xf32>) -> tensor<33xf32> {
  %zero = arith.constant 0.0 : f32
  %empty = tensor.empty() : tensor<33xf32>
  %init = linalg.fill ins(%zero : f32) outs(%empty : tensor<33xf32>) -> tensor<33xf32>
  %y = linalg.reduce { arith.addf } ins(%x : tensor<33x500xf32>) outs(%init : tensor<33xf32>) dimensions = [1]
  return %y : tensor<33xf32>
}
func.func @maximum(%x: tensor<7x1000xf16>) -> tensor<7xf16> {
  %low = arith.constant 0xFC00 : f16
  %empty = tensor.empty() : tensor<7xf16>
  %init = linalg.fill ins(%low : f16) outs(%empty : tensor<7xf16>) -> tensor<7xf16>
  %y = linalg.reduce { arith.maximumf } ins(%x : tensor<7x1000xf16>) outs(%init : tensor<7xf16>) dimensions = [1]
  return %y : tensor<7xf16>
}
func.func @matmul_f16(%a: tensor<96x64xf16>, %b: tensor<64x80xf16>) -> tensor<96x80xf32> {
  %zero = arith.constant 0.0 : f32
  %empty = tensor.empty() : tensor<96x80xf32>
  %init = linalg.fill ins(%zero : f32) outs(%empty : tensor<96x80xf32>) -> tensor<96x80xf32>
  %y = linalg.matmul ins(%a, %b : tensor<96x64xf16>, tensor<64x80xf16>) outs(%init : tensor<96x80xf32>) -> tensor<96x80xf32>
  return %y : tensor<96x80xf32>
}
func.func @matmul_i8(%a: tensor<96x64xi8>, %b: tensor<64x80xi8>) -> tensor<96x80xi32> {
  %zero = arith.constant 0 : i32
  %empty = tensor.empty() : tensor<96x80xi32>
  %init = linalg.fill ins(%zero : i32) outs(%empty : tensor<96x80xi32>) -> tensor<96x80xi32>
  %y = linalg.matmul ins(%a, %b : tensor<96x64xi8>, tensor<64x80xi8>) outs(%init : tensor<96x80xi32>) -> tensor<96x80xi32>
  return %y : tensor<96x80xi32>
}
"""

# Those that IREE knows by name, so that it uses their matrix units.
IREE_TARGETS = ("gfx908", "gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201")


@pytest.fixture(scope="module", params=IREE_TARGETS)
def functions(environment, request, tmp_path_factory):
    """The functions of MODULE on an emulated GPU."""
    path = tmp_path_factory.mktemp("iree") / f"{request.param}.vmfb"
    command = [binaries.find_tool("iree-compile"), "-", "--iree-hal-target-device=hip", f"--iree-rocm-target={request.param}", "-o", path]
    subprocess.run(command, input=MODULE.encode(), check=True)
    [report] = inspect(path)
    mixes = {d.name.partition("_dispatch")[0]: d.mix for d in report.dispatches}
    unit = "mfma" if request.param.startswith("gfx9") else "wmma"
    assert all(unit in mixes[name] for name in ("matmul_f16", "matmul_i8"))
    assert mixes["softmax"]["barrier"] >= 2
    device = iq.Device(f"emulated:{request.param}", runtime="iree")
    context = iree.runtime.SystemContext(config=iree.runtime.Config(device=device._backend.hal._device))
    context.add_vm_module(iree.runtime.VmModule.mmap(context.instance, str(path)))
    return lambda name, *arrays: context.modules.module[name](*arrays).to_host()


def test_softmax(functions, rng):
    x = (rng.standard_normal((9, 320)) * 5).astype(np.float32)
    e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    assert nmse(functions("softmax", x), e / e.sum(1, keepdims=True)) < 1e-12


def test_sum(functions, rng):
    x = rng.standard_normal((33, 500)).astype(np.float32)
    assert nmse(functions("sum", x), x.astype(np.float64).sum(1)) < 1e-12


def test_maximum(functions, rng):
    x = rng.standard_normal((7, 1000)).astype(np.float16)
    x[3, 17], x[4, 999] = -np.inf, np.inf
    assert np.array_equal(functions("maximum", x), x.max(1))  # (IREE compiles maximumf to an instruction that drops NaNs)


def test_matmul_f16(functions, rng):
    a, b = rng.standard_normal((96, 64)).astype(np.float16), rng.standard_normal((64, 80)).astype(np.float16)
    assert nmse(functions("matmul_f16", a, b), a.astype(np.float64) @ b.astype(np.float64)) < 1e-12


def test_matmul_i8(functions, rng):
    a, b = rng.integers(-128, 128, (96, 64), np.int8), rng.integers(-128, 128, (64, 80), np.int8)
    assert np.array_equal(functions("matmul_i8", a, b), a.astype(np.int32) @ b.astype(np.int32))


# ---- Bugs planted in our own kernels


def bundle_of(target: str, key: str, change, directory: Path) -> Bundle:
    """A bundle with one kernel, its MLIR changed: sound in all else."""
    spec, compiler = KernelSpec.parse(key), Compiler.find()
    vmfb = directory / "altered.vmfb"
    with Compilations(compiler) as compilations:
        vmfb.write_bytes(compilations.compile(change(mlir_of(Module(TARGETS[target], spec.format, (spec,)))), key))
    made_by = bundles.Compiler(compiler.version, compiler.revision, FLAGS)
    bundles.write(directory / target, DeviceId(target), [bundles.Compiled(spec.format, vmfb, (key,))], made_by, "")
    return Bundle.open(directory / target)


def failures(bundle: Bundle) -> set[str]:
    """How the cases of the bundle's kernel failed: the names of errors, and what the checks that failed had measured."""
    [kernel] = verify_bundle(bundle, open_emulated).kernels
    measured = {check.measure for case in kernel.cases for check in case.checks if not check.passed}
    return measured | {case.failure.partition(":")[0] for case in kernel.cases if case.failure}


def replaced(old: str, new: str, at: int | None = None):
    """Replaces what matches a pattern: all of it, or the match of this number; negative ones count from the end."""

    def change(mlir: str) -> str:
        found = list(re.finditer(old, mlir))
        assert found and (at is None or -len(found) <= at < len(found)), f"{old!r} occurs {len(found)} times"
        for match in reversed(found if at is None else [found[at]]):
            mlir = mlir[: match.start()] + match.expand(new) + mlir[match.end() :]
        return mlir

    return change


@pytest.mark.parametrize("target", ["gfx90a", "gfx1100"])
def test_without_a_bug_all_is_well(target, tmp_path):
    assert failures(bundle_of(target, "mul_mat.q4_0.q8_1", lambda mlir: mlir, tmp_path)) == set()


@pytest.mark.parametrize("barrier", [-2, -1], ids=["before the tile is written", "after it is written"])
@pytest.mark.parametrize("kernel", ["mul_mat.q4_0.q8_1", "mul_mat.q8_0.float"])
@pytest.mark.parametrize("target", ["gfx942", "gfx1100"])
def test_a_missing_barrier_is_noticed(target, kernel, barrier, tmp_path):
    # The product's kernel comes after scale_rows, which has a barrier of its own.
    assert "NMSE to float64, worst row" in failures(bundle_of(target, kernel, replaced(r"gpu\.barrier\n", r"\n", barrier), tmp_path))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (r"subgroup_reduce add %x : \(f32\)", "subgroup_reduce add %x cluster(size = 16) : (f32)"),
        (r"(@lane\(\) -> index \{[^}]*%lane = )arith.remui", r"\1arith.divui"),
    ],
    ids=["a sum over too few lanes", "a lane that is not its own"],
)
@pytest.mark.parametrize("target", ["gfx90a", "gfx1201"])
def test_wrong_lanes_are_noticed(target, old, new, tmp_path):
    assert failures(bundle_of(target, "mul_mat_vec.q4_k.2", replaced(old, new), tmp_path))


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [
        ("mul_mat.q8_0.float", r"reduce maxnumf %x : \(f32\)", "reduce maxnumf %x cluster(size = 16) : (f32)"),
        (
            "mul_mat.q8_0.float",
            r"memref.store %wave_max, %maxima\[%wave\]",
            "%to = arith.constant 0 : index\nmemref.store %wave_max, %maxima[%to]",
        ),
        ("mul_mat.q8_0.float", "math.absf %values", "arith.negf %values"),
        ("quantize_q8_1.q8_1.f32", r"maxui %x cluster\(size = 8\)", "maxui %x cluster(size = 4)"),
        ("quantize_q8_1.q8_1.f32", r"add %x cluster\(size = 8\)", "add %x cluster(size = 4)"),
        ("mul_mat_vec.q8_0.1", r"maxui %x cluster\(size = 8\)", "maxui %x cluster(size = 4)"),
    ],
    ids=[
        "a row's maximum in a wave",
        "in a workgroup",
        "of both signs",
        "a block's maximum",
        "a block's sum",
        "a block's maximum, of a product",
    ],
)
@pytest.mark.parametrize("target", ["gfx942", "gfx1100"])
def test_a_maximum_over_too_few_lanes_is_noticed(target, key, old, new, tmp_path):
    assert failures(bundle_of(target, key, replaced(old, new), tmp_path))


@pytest.mark.parametrize("target", ["gfx90a", "gfx1201"])
def test_an_off_by_one_store_is_noticed(target, tmp_path):
    """A result beyond the last row is, in the last column, beyond the output; in others it is what another thread writes."""
    found = failures(bundle_of(target, "mul_mat.q4_0.q8_1", replaced(r"cmpi ult, (%n\d+_\d+), %n", r"cmpi ule, \1, %n"), tmp_path))
    assert "bytes written outside the outputs" in found


@pytest.mark.parametrize("target", ["gfx942", "gfx1030"])
def test_rows_beyond_the_last_are_noticed(target, tmp_path):
    change = replaced(r"(%has_rows = arith.cmpi) ult, %row, %n", r"\1 ule, %row, %n")
    assert "MemoryFault" in failures(bundle_of(target, "mul_mat_vec.q6_k.1", change, tmp_path))


# ---- Artifacts for another GPU


def test_a_bundle_for_another_gpu_is_refused(tmp_path):
    bundle = bundle_of("gfx942", "quantize_q8_1.q8_1.f32", lambda mlir: mlir, tmp_path)
    with pytest.raises(NoArtifactError, match=r"no kernels for gfx90a:sramecc\+:xnack-: .*\n`iq compile --target gfx90a "):
        _ = iq.Device("emulated:gfx90a", bundle=bundle.path).target


def test_code_for_another_gpu_is_not_loaded(environment):
    """Past iq's own check, the HIP runtime has no binary for the GPU."""
    gpu = EmulatedGpu("emulated:gfx90a")
    device = runtime.Device(gpu.runtime, provider=OnDemandFor(TARGETS["gfx942"]))
    with pytest.raises(IqError, match=r"hipErrorNoBinaryForGpu|the code object is for gfx942"):
        device.library.kernel(KernelSpec.parse("quantize_q8_1.q8_1.f32"))
