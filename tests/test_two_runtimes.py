"""The two ways to run a GPU's kernels: launched by iq, and through IREE's unmodified hip driver. The same vmfb, equal bytes; each without
the other.
"""

import subprocess
import sys

import numpy as np
import pytest
from test_streams import EMULATED

import iq
from iq.errors import DeviceError
from iq.kernels import KernelSpec
from iq.verify.cases import cases
from iq.verify.run import run

# One of each kind of kernel: with and without scratch, with LDS, with matrix cores, one and many dispatches.
KEYS = (
    "dequantize.q4_k.f16",
    "get_rows.q6_k.f32",
    "quantize_q8_1.q8_1.f32",
    "mul_mat_vec.q4_0.2",
    "dequantize_mul_mat_vec.q8_0.1",
    "mul_mat.q4_k.q8_1",
    "mul_mat.q4_0.float",
    "mul_mat_vec_id.q4_k.q8_1",
    "mul_mat_id.q4_0.q8_1",
)
TARGETS = [*EMULATED, "emulated:gfx90a", "emulated:gfx1030"]


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("key", KEYS)
def test_both_give_the_same_bytes(environment, name, key):
    launched, through_iree = iq.Device(name), iq.Device(name, runtime="iree")
    assert (launched.runtime, through_iree.runtime) == ("launch", "iree")
    assert launched.target is through_iree.target
    spec = KernelSpec.parse(key)
    for case in cases(spec, launched.target):
        (one, stray), (other, other_stray) = run(launched, spec, case), run(through_iree, spec, case)
        assert stray == other_stray == 0
        assert all(np.array_equal(a.view(np.uint8), b.view(np.uint8)) for a, b in zip(one, other, strict=True)), case.name


def test_matmul_gives_the_same_bytes(environment, rng):
    packed = iq.quantize(rng.standard_normal((70, 512), dtype=np.float32), "q4_k")
    devices = [iq.Device("emulated:gfx1100", runtime=how) for how in ("launch", "iree")]
    weights = [iq.QTensor.from_bytes(packed, "q4_k", (70, 512), device) for device in devices]
    for m in (1, 3, 8, 9, 33):
        x = rng.standard_normal((m, 512), dtype=np.float32)
        one, other = (w.matmul(x).numpy() for w in weights)
        assert np.array_equal(one, other)


def test_through_iree_there_are_no_streams_and_graphs(environment, rng):
    device = iq.Device("emulated:gfx1100", runtime="iree")
    buffer = device.put(np.ones(4, np.float32))
    device.synchronize()
    device.stream().synchronize()
    with pytest.raises(DeviceError, match="no stream of emulated:gfx1100"):
        buffer.fill_zero(stream=0)
    with pytest.raises(DeviceError, match=r"no graphs through IREE's runtime"), device.capture():
        pass


@pytest.mark.parametrize("runtime", ["IREE", "", "vm", 1])
def test_other_runtimes_are_refused(runtime):
    with pytest.raises(DeviceError, match=r"expected 'launch', 'iree' or None"):
        iq.Device("emulated:gfx1100", runtime=runtime)


def test_a_cpu_only_has_one():
    assert iq.Device("cpu", runtime="iree").runtime == "iree"
    with pytest.raises(DeviceError, match="runtime='launch' is for GPUs"):
        iq.Device("cpu", runtime="launch")


WITHOUT_IREE = """
import sys
sys.modules["iree"] = None  # as if it were not installed
import numpy as np
import iq
device = iq.Device("emulated:gfx1100", bundle=sys.argv[1])
w = iq.QTensor.quantize(np.ones((8, 64), np.float32), "q4_0", device)
print(w.matmul(np.ones((1, 64), np.float32)).numpy().tolist()[0][0])
for spec, runtime in (("cpu", None), ("emulated:gfx1100", "iree")):
    try:
        iq.Device(spec, runtime=runtime)
    except iq.errors.DeviceError as error:
        print(error)
"""


def test_a_gpu_does_without_iree(environment, tmp_path):
    from iq.compile.build import bundle

    [path] = bundle("gfx1100", "q4_0", out=tmp_path)
    done = subprocess.run([sys.executable, "-c", WITHOUT_IREE, str(path)], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "64.0",
        "cpu runs through IREE's runtime, which is not installed: pip install iree-base-runtime",
        "emulated:gfx1100 runs through IREE's runtime, which is not installed: pip install iree-base-runtime",
    ]
