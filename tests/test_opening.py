"""Names of devices: what each means, and what a name that means nothing is answered with."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

import iq
from iq.errors import DeviceError
from iq.runtime import amd_gpus, opening
from iq.runtime.driver import hip_library, library
from iq.runtime.opening import parse

ALLOWED = "expected cpu, hip, hip:N, cuda, cuda:N or emulated:gfx..."


@pytest.mark.parametrize(
    ("name", "parsed"),
    [("cpu", ("cpu", 0)), ("hip", ("hip", 0)), ("cuda", ("cuda", 0)), ("hip:1", ("hip", 1)), ("cuda:15", ("cuda", 15))],
)
def test_names(name, parsed):
    assert parse(name) == parsed


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("rocm", "hip"),
        ("rocm:1", "hip:1"),
        ("amd", "hip"),
        ("amdgpu:2", "hip:2"),
        ("nvidia", "cuda"),
        ("gpu", "hip or cuda"),
        ("gpu:1", "hip or cuda"),
        ("host", "cpu"),
        ("CPU", "cpu"),
        (" cpu", "cpu"),
        ("cpu:0", "cpu"),
        ("HIP:1", "hip:1"),
        ("Cuda:01", "cuda:1"),
        ("hpi", "hip"),
        ("cud:3", "cuda:3"),
        ("hip:", "hip"),
        ("hip:-1", "hip"),
        ("cuda:x", "cuda"),
        ("cuda:0:1", "cuda"),
        ("hip:1234567890", "hip"),
        ("hip:٣", "hip"),
        ("gfx1100", "hip, or emulated:gfx1100"),
        ("gfx942:xnack+", "hip, or emulated:gfx942:xnack+"),
        ("sm_90", "cuda"),
        ("emulate:gfx942", "emulated:gfx942"),
        ("emulator", "emulated:gfx1100"),
    ],
)
def test_what_is_meant(name, meant):
    with pytest.raises(DeviceError) as refused:
        parse(name)
    assert str(refused.value) == f"unknown device {name!r}; {ALLOWED}; is {meant} meant?"


@pytest.mark.parametrize("name", ["vulkan", "local-task", "", "::", "42"])
def test_no_telling(name):
    with pytest.raises(DeviceError) as refused:
        parse(name)
    assert str(refused.value) == f"unknown device {name!r}; {ALLOWED}"


@pytest.mark.parametrize("number", [0, 3])
def test_a_number_alone(number):
    with pytest.raises(
        DeviceError, match=f"unknown device {number}: a number alone does not say which; say 'hip:{number}' or 'cuda:{number}'"
    ):
        parse(number)


@pytest.mark.parametrize("given", [True, -1, 1.5, b"hip", ("hip", 1), np.int64(0), None])
def test_what_is_no_name(given):
    with pytest.raises(DeviceError) as refused:
        parse(given)
    for part in (f"unknown device {given!r}: expected a name", "hip:N", f"got a {type(given).__name__}"):
        assert part in str(refused.value)


@pytest.mark.parametrize("name", ["rocm", 0, "hip:x"])
def test_as_users_meet_it(environment, name):
    with pytest.raises(DeviceError, match="unknown device"):
        iq.Device(name)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"spec": "cpu", "runtime": "vulkan"}, "runtime='vulkan': expected 'launch', 'iree' or None"),
        ({"spec": "cpu", "runtime": "launch"}, "runtime='launch' is for GPUs"),
        ({"spec": "hip:1", "threads": 2}, "threads=2 is for the device cpu, not for hip:1"),
    ],
)
def test_arguments_that_do_not_go_together(arguments, said):
    with pytest.raises(DeviceError, match=said):
        opening.open_backend(**arguments)


# ---- AMD GPUs without a HIP runtime


@pytest.fixture
def no_hip(monkeypatch, tmp_path):
    monkeypatch.setenv(hip_library.VARIABLE, f"file:{tmp_path}/none.so")
    library._load.cache_clear()


@pytest.mark.parametrize("runtime", [None, "iree"])
@pytest.mark.parametrize(
    ("forced", "said"),
    [
        ("gfx942,gfx1100", "\nThis machine has AMD GPUs: gfx942, gfx1100."),
        ("gfx1201", "\nThis machine has an AMD GPU: gfx1201."),
        ("", "\nThis machine shows no AMD GPU: amdgpu, the kernel's driver, lists none"),
    ],
)
@pytest.mark.needs_extras
def test_hip_without_a_runtime_says_which_gpus_there_are(environment, no_hip, monkeypatch, tmp_path, runtime, forced, said):
    monkeypatch.setenv("ROCM_BOOTSTRAP_FORCE_GFX_ARCH", forced)
    if not forced:
        monkeypatch.setattr("rocm_bootstrap._platform.list_kfd_nodes", list)
        monkeypatch.setattr("rocm_bootstrap._platform.run_clinfo", lambda: "")
    with pytest.raises(DeviceError) as refused:
        iq.Device("hip", runtime=runtime)
    assert str(refused.value).startswith("cannot open hip:0")
    assert f"IREE_HIP_DYLIB_PATH=file:{tmp_path}/none.so" in str(refused.value)
    assert said in str(refused.value)


def test_nothing_is_said_without_the_package(environment, no_hip, monkeypatch):
    monkeypatch.setitem(sys.modules, "rocm_bootstrap", None)
    assert "iq-kernels[amd]" in amd_gpus.amd_gpus()
    assert amd_gpus.what_is_seen() == ""
    with pytest.raises(DeviceError) as refused:
        iq.Device("hip")
    assert "This machine" not in str(refused.value)


@pytest.mark.needs_extras
def test_a_gpu_that_the_package_does_not_know(monkeypatch):
    monkeypatch.setenv("ROCM_BOOTSTRAP_FORCE_GFX_ARCH", "gfx9999")
    assert "rocm-bootstrap cannot tell" in amd_gpus.amd_gpus()
    assert amd_gpus.what_is_seen() == ""


@pytest.mark.needs_extras
def test_as_the_kernels_driver_lists_them(monkeypatch, tmp_path):
    """Its list has CPUs too, which have no compute units."""
    properties = {
        0: "simd_count 0\ngfx_target_version 0\n",
        1: "simd_count 304\ngfx_target_version 90402\n",
        3: "simd_count 96\ngfx_target_version 110000\n",
    }
    for node, text in properties.items():
        (tmp_path / str(node)).mkdir()
        (tmp_path / str(node) / "properties").write_text(text)
    monkeypatch.delenv("ROCM_BOOTSTRAP_FORCE_GFX_ARCH", raising=False)
    monkeypatch.setattr("rocm_bootstrap._platform.list_kfd_nodes", lambda: sorted(tmp_path.iterdir()))
    assert amd_gpus.amd_gpus() == (amd_gpus.AmdGpu("gfx942", 1), amd_gpus.AmdGpu("gfx1100", 3))


def test_a_cuda_device_is_not_told_of_amd_gpus(environment, monkeypatch):
    monkeypatch.setattr(opening, "what_is_seen", lambda: "AMD")
    monkeypatch.setattr("iq.runtime.driver.load", lambda api: SimpleNamespace(device_count=lambda: 1, device_name=lambda i: "One"))
    for name, told in (("cuda:7", False), ("hip:7", True)):
        with pytest.raises(DeviceError) as refused:
            iq.Device(name)
        assert f"cannot open {name}: there is no such device; this machine has\n  {name[:-2]}:0 One" in str(refused.value)
        assert str(refused.value).endswith("AMD") is told


@pytest.mark.parametrize("given", [0, 1.5, b"cpu", ["cpu"], object()])
def test_a_device_that_is_neither_a_device_nor_a_name(given):
    weights = np.ones((2, 32), np.float32)
    with pytest.raises(DeviceError, match="unknown device"):
        iq.QTensor.quantize(weights, "q4_0", device=given)
    with pytest.raises(DeviceError, match="unknown device"):
        iq.quantize_q8_1(weights, device=given)
