"""Devices and their kernels: what opens and what is refused, where kernels come from, threads, and a clean exit."""

import ctypes
import mmap
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import iq
from iq import runtime
from iq.errors import BytecodeError, DeviceError, ManifestError, NoCompilerError, NoKernelError, ShapeError
from iq.kernels import KernelSpec, kernels
from iq.runtime.driver import hip_library
from iq.runtime.host import cpu_flags
from iq.runtime.iree import opening
from iq.targets import DeviceId

Q4_0_VEC = KernelSpec("mul_mat_vec", "q4_0", columns=1)


class Counting:
    """Compiles on demand, counts what it is asked for, and hands modules out as `form` changes them."""

    def __init__(self, form=lambda module: module):
        from compiled import FormatsOnDemand

        self._compiler = FormatsOnDemand()
        self._form = form
        self.asked = []

    def target(self, device_id, cpu_flags):
        return self._compiler.target(device_id, cpu_flags)

    def module(self, target, spec):
        self.asked.append(spec.key)
        return self._form(self._compiler.module(target, spec))


def has_library(name):
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def run_python(code, **environment):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=False)


# ---- Opening devices


@pytest.mark.parametrize("spec", ["gpu", "cpu:0", "cuda:", "cuda:x", "hip:-1", "CPU", " cpu", "vulkan", "local-task", ""])
def test_unknown_devices(spec):
    with pytest.raises(DeviceError, match="expected cpu, hip, hip:N, cuda, cuda:N or emulated:gfx"):
        iq.Device(spec)


@pytest.mark.parametrize(("spec", "threads", "said"), [("cpu", 0, "0 threads"), ("cpu", -2, "-2 threads"), ("cuda", 2, "not for cuda")])
def test_threads_that_make_no_sense(spec, threads, said):
    with pytest.raises(DeviceError, match=said):
        iq.Device(spec, threads=threads)


def test_a_device_says_what_it_is():
    device = iq.Device("cpu", threads=1)
    assert (device.name, device.id, repr(device), device.is_cpu) == ("cpu", DeviceId("cpu"), "Device('cpu')", True)
    assert cpu_flags() >= {"sse2"}


@pytest.mark.parametrize(
    ("driver", "info", "expected"),
    [
        ("hip", "\n- gpu-compute-capability: 9.4\n- gpu-arch-name: gfx942:sramecc+:xnack-\n", "gfx942:sramecc+:xnack-"),
        ("hip", "- gpu-arch-name: gfx1100\n", "gfx1100"),
        ("cuda", "\n- gpu-compute-capability: 9.0\n", "sm_90"),
        ("cuda", "\n- gpu-compute-capability: 12.1\n", "sm_121"),
    ],
)
def test_identity_of_gpus(driver, info, expected):
    assert str(opening._identify(driver, info)) == expected


def test_identity_that_the_driver_keeps_to_itself():
    with pytest.raises(DeviceError, match="warp-size"):
        opening._identify("hip", "- gpu-warp-size: 64")


@pytest.mark.skipif(has_library("libcuda.so"), reason="this machine has a CUDA driver")
def test_no_cuda_driver():
    with pytest.raises(
        DeviceError, match=r"no driver for cuda: no CUDA driver that loads\. Looked on the loader's path for libcuda\.so\.1"
    ):
        iq.Device("cuda:1")
    with pytest.raises(DeviceError, match=r"cannot open cuda:1: no libcuda\.so"):
        iq.Device("cuda:1", runtime="iree")


@pytest.mark.parametrize("how", ["launch", "iree"])
def test_no_hip_library(tmp_path, monkeypatch, how):
    monkeypatch.setenv("IREE_HIP_DYLIB_PATH", f"file:{tmp_path}/none.so")
    with pytest.raises(DeviceError, match=rf"hip[^$]*IREE_HIP_DYLIB_PATH=file:{tmp_path}/none.so"):
        iq.Device("hip", runtime=how)
    monkeypatch.delenv("IREE_HIP_DYLIB_PATH")
    if not any(map(has_library, hip_library.VERSIONED_NAMES)):
        monkeypatch.setenv("ROCM_PATH", str(tmp_path))
        with pytest.raises(DeviceError) as refused:
            iq.Device("hip:2", runtime=how)
        for place in (f"{tmp_path}/lib", "libamdhip64.so.6", "libamdhip64.so.7", "Set IREE_HIP_DYLIB_PATH"):
            assert place in str(refused.value)
    assert "IREE_HIP_DYLIB_PATH" not in os.environ


def test_a_library_that_is_no_hip_runtime(tmp_path, monkeypatch):
    (tmp_path / "lib").mkdir()
    fake = tmp_path / "lib" / "libamdhip64.so.6"
    fake.write_bytes(b"no ELF")
    monkeypatch.delenv("IREE_HIP_DYLIB_PATH", raising=False)
    monkeypatch.setenv("ROCM_PATH", str(tmp_path))
    with pytest.raises(DeviceError, match=str(fake)):
        iq.Device("hip")


def test_where_hip_is_looked_for(tmp_path, monkeypatch):
    package = tmp_path / "site" / "_rocm_sdk_core"
    (package / "lib").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "lib" / "libamdhip64.so.7").touch()
    (tmp_path / "rocm" / "lib").mkdir(parents=True)
    for name in ("libamdhip64.so.6.1.2", "libamdhip64.so", "libamdhip64.so.6"):
        (tmp_path / "rocm" / "lib" / name).touch()
    monkeypatch.syspath_prepend(tmp_path / "site")
    places = hip_library.search_path({"ROCM_PATH": f"{tmp_path}/rocm"}).split(";")
    rocm = f"file:{tmp_path}/rocm/lib/libamdhip64.so"
    assert [p for p in places if str(tmp_path) in p] == [rocm, f"{rocm}.6", f"{rocm}.6.1.2", f"file:{package}/lib/libamdhip64.so.7"]
    assert places[-1] == "file:libamdhip64.so.5"
    assert "_rocm_sdk_core" not in sys.modules
    assert hip_library.search_path({"IREE_HIP_DYLIB_PATH": "/x", "ROCM_PATH": f"{tmp_path}/rocm"}) == "/x"


def test_a_hip_runtime_that_is_loaded_already_comes_first(tmp_path, monkeypatch):
    # The C library under another name: what counts is the mapping's.
    there = next(p for p in Path("/proc/self/maps").read_text().split() if "/libc.so" in p or "/libc-" in p)
    disguise = tmp_path / "libamdhip64.so.6"
    disguise.write_bytes(Path(there).read_bytes())
    with disguise.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        assert hip_library.search_path({"ROCM_PATH": "/nowhere"}).split(";")[0] == f"file:{disguise}"


def test_every_cpu_device_has_threads_of_its_own():
    def threads():
        return len(list(Path("/proc/self/task").iterdir()))

    def threads_of(n):
        before = threads()
        device = iq.Device("cpu", threads=n)
        return threads() - before, device

    two, one_device = threads_of(2)
    five, other_device = threads_of(5)
    assert five - two == 3
    one, last_device = threads_of(1)
    assert one < two
    assert {one_device.name, other_device.name, last_device.name} == {"cpu"}


# ---- Where kernels come from


def test_the_device_of_the_environment(monkeypatch):
    monkeypatch.setenv("IQ_DEVICE", "cuda:x")
    with pytest.raises(DeviceError, match="'cuda:x'"):
        iq.Device()
    assert iq.Device("cpu").name == "cpu"


def test_a_bundle_that_is_not_there(tmp_path, monkeypatch):
    with pytest.raises(ManifestError):
        iq.Device(bundle=tmp_path)
    monkeypatch.setenv("IQ_BUNDLE_PATH", str(tmp_path))
    with pytest.raises(ManifestError):
        iq.Device()


def test_without_compiler_buffers_work_and_kernels_say_what_to_do(monkeypatch):
    def check(said):
        device = iq.Device("cpu", threads=1)
        assert device.put(np.ones(3)).numpy().sum() == 3
        w = iq.QTensor.quantize(np.ones((2, 32), np.float32), "q4_0", device)
        assert w.to_bytes().shape == (2, 18)
        with pytest.raises(NoCompilerError, match=said) as refused:
            w.matmul(np.ones((1, 32), np.float32))
        assert "IQ_BUNDLE_PATH" in str(refused.value)

    monkeypatch.setenv("IQ_DISABLE_COMPILE", "1")
    check("IQ_DISABLE_COMPILE is set")
    monkeypatch.delenv("IQ_DISABLE_COMPILE")
    monkeypatch.setattr("iq.extras.find_spec", lambda name: None)
    check(r"iree\.compiler and jinja2 and .* cannot be imported .pip install 'iq-kernels\[compile\]'")


def test_a_module_is_loaded_once_and_only_when_needed():
    provider = Counting()
    device = runtime.Device("cpu", provider=provider, threads=1)
    w = iq.QTensor.quantize(np.ones((2, 32), np.float32), "q4_0", device)
    assert provider.asked == []
    w.matmul(np.ones((1, 32), np.float32))
    w.dequantize()
    w.matmul(np.ones((3, 32), np.float32))
    assert provider.asked == [Q4_0_VEC.key]
    w.matmul(np.ones((1, 32), np.float16))
    assert [KernelSpec.parse(key).format for key in provider.asked] == ["q4_0", "f16"]
    assert device.library.kernel(Q4_0_VEC) is device.library.kernel(Q4_0_VEC)


def test_threads_that_start_together_load_a_module_once():
    provider = Counting()
    device = runtime.Device("cpu", provider=provider, threads=2)
    together = threading.Barrier(8)

    def look_up(_):
        together.wait()
        return device.library.kernel(Q4_0_VEC)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(look_up, range(8)))) == 1
    assert provider.asked == [Q4_0_VEC.key]


def test_a_kernel_that_the_module_lacks():
    # The module of q4_0 in the place of q8_0's.
    provider = Counting()
    q4_0 = provider.module(provider.target(DeviceId("cpu"), cpu_flags()), Q4_0_VEC)
    device = runtime.Device("cpu", provider=Counting(lambda _: q4_0), threads=1)
    with pytest.raises(NoKernelError, match=r"mul_mat_vec\.q8_0\.1"):
        device.library.kernel(KernelSpec("mul_mat_vec", "q8_0", columns=1))


@pytest.mark.parametrize("keep", [0, 100, -1000])
def test_a_module_that_cannot_be_loaded(keep):
    def cut(module):
        return replace(module, where="cut.vmfb", vmfb=module.vmfb[:keep])

    device = runtime.Device("cpu", provider=Counting(cut), threads=1)
    with pytest.raises(BytecodeError, match=r"cut\.vmfb"):
        device.library.kernel(Q4_0_VEC)


# ---- Calling kernels


def test_what_iree_refuses_is_a_device_error():
    device = runtime.Device("cpu", provider=Counting(), threads=1)
    kernel = device.library.kernel(Q4_0_VEC)
    sizes = {"m": 1, "n": 1, "blocks": 1}
    right = (device.zeros(18, "u8"), device.zeros(32, "f32")), (device.zeros(1, "f32"),)
    kernel(right[0], sizes, right[1])
    with pytest.raises(DeviceError, match=r"mul_mat_vec\.q4_0\.1 failed"):
        kernel((device.zeros(18, "u8"), device.zeros(32, "f64")), sizes, right[1])
    with pytest.raises(DeviceError, match="failed"):
        kernel(right[0][:1], sizes, right[1])
    with pytest.raises(ShapeError, match=f"{2**31} n "):
        kernel(right[0], {**sizes, "n": 2**31}, right[1])
    with pytest.raises(ShapeError, match="-1 blocks"):
        kernel(right[0], {**sizes, "blocks": -1}, right[1])
    kernel(right[0], sizes, right[1])


@pytest.mark.parametrize("spec", [spec for spec in kernels() if spec.format in ("q4_0", "f16", "q8_1")], ids=lambda spec: spec.key)
def test_a_buffer_that_is_too_short(dev, spec):
    """Every tensor of every op: with exactly the bytes that its declaration gives a kernel runs, with an element less it is not called."""
    if not spec.exists(dev.target):
        pytest.skip(f"{dev.target.id} has no such kernel")
    op, m = spec.definition, spec.columns or 9
    some = {"m": m, "n": 5, "blocks": 2, "rows": 3, "k": 70, "q8_blocks": 16, "width": 64, "share": 2, "picks": 2 * m, "experts": 3}
    sizes = {name: some[name] for name in op.sizes}
    tensors = [*op.inputs, *op.outputs]
    dtypes = ["u8" if t.name == "w" else t.dtype or spec.dtype for t in tensors]
    whole = [dev.zeros(spec.nbytes(t, sizes), "u8").view(dtype) for t, dtype in zip(tensors, dtypes, strict=True)]
    kernel = dev.library.kernel(spec)
    kernel(whole[: len(op.inputs)], sizes, whole[len(op.inputs) :])
    for i, tensor in enumerate(tensors):
        given = [buffer[: len(buffer) - (i == j)] for j, buffer in enumerate(whole)]
        with pytest.raises(ShapeError, match=rf"{spec.key}: {tensor.name} has {given[i].nbytes} bytes; for .* it takes {whole[i].nbytes}"):
            kernel(given[: len(op.inputs)], sizes, given[len(op.inputs) :])
    with pytest.raises(ShapeError, match="it takes"):  # sizes that are too large do not reach the device either
        kernel(whole[: len(op.inputs)], dict.fromkeys(sizes, 2**30), whole[len(op.inputs) :])


@pytest.mark.parametrize("threads", [None, 1, 2])
def test_one_device_from_many_threads(dev, threads):
    device = iq.Device("cpu", threads=threads) if threads else dev
    rng = np.random.default_rng(0)
    weights = {f: iq.QTensor.quantize(rng.standard_normal((64, 256), dtype=np.float32), f, device) for f in ("q4_0", "f16")}
    xs = [rng.standard_normal((m, 256), dtype=np.float32) for m in (1, 3, 8, 12)]
    wanted = {(f, i): w.matmul(x).numpy() for f, w in weights.items() for i, x in enumerate(xs)}
    rows = {f: w.dequantize().numpy() for f, w in weights.items()}

    def work(seed):
        mine = np.random.default_rng(seed)
        out = device.alloc((len(xs[0]), 64), "f32")
        for _ in range(60):
            f, i = mine.choice(list(weights)), int(mine.integers(len(xs)))
            assert np.array_equal(weights[f].matmul(xs[i]).numpy(), wanted[f, i])
            assert np.array_equal(weights[f].matmul(device.put(xs[0]), out=out).numpy(), wanted[f, 0])
            ids = mine.integers(0, 64, 5)
            assert np.array_equal(weights[f].get_rows(ids).numpy(), rows[f][ids])
        return True

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(6)))


# ---- The process around it


def test_importing_iq_is_light():
    code = """
import sys, iq
from iq.extras import EXTRAS
heavy = {*(name for names in EXTRAS.values() for name in names), "torch", "iq.compile", "iq.emulator", "iq.cli"}
print(*(heavy & set(sys.modules)))
iq.Device("cpu").zeros(3, "f32")
print(*(heavy & set(sys.modules)))
assert callable(iq.compile.bundle)
try:
    iq.nothing
except AttributeError as error:
    print(error)
"""
    done = run_python(code)
    assert (done.stdout, done.stderr) == ("\n\nmodule 'iq' has no attribute 'nothing'\n", "")


def test_an_exit_with_everything_alive_is_clean():
    code = """
import iq, numpy as np
dev = iq.Device("cpu")
w = iq.QTensor.quantize(np.ones((4, 32), np.float32), "q4_0", dev)
part = w.matmul(np.ones((3, 32), np.float32))[1:]
seen = np.asarray(part)
kernel = dev.library.kernel
cycle = [dev, w]; cycle.append(cycle)
print(seen.shape)
"""
    done = run_python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "(2, 4)\n", "")


def test_buffers_outlive_the_name_of_their_device():
    device = iq.Device("cpu", threads=2)
    w = iq.QTensor.quantize(np.ones((4, 32), np.float32), "q4_0", device)
    del device
    assert np.allclose(w.matmul(np.ones((2, 32), np.float32)).numpy(), 32, rtol=1e-2)
