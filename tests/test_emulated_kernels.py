"""Every kernel of every format on an emulated GPU, and candle's tests on one of each generation.

tests/tiers.py says which those are.
"""

import pytest

# The very same tests, with this module's device.
from test_candle import test_rocm_mm_q8_1, test_rocm_mm_q8_1_pad, test_rocm_mmv_q8_1, test_rocm_quantize_q8_1
from test_moe import check_shape
from tiers import EMULATED, EVERY_KERNEL

import iq
from iq import kernels
from iq.bundle import Bundle
from iq.compile.build import bundle
from iq.formats import FORMATS
from iq.inspect.waits import check_bundle
from iq.targets import TARGETS
from iq.verify.devices import open_emulated
from iq.verify.run import verify_bundle

__all__ = ["test_rocm_mm_q8_1", "test_rocm_mm_q8_1_pad", "test_rocm_mmv_q8_1", "test_rocm_quantize_q8_1"]


@pytest.mark.parametrize(("target", "fmt"), EVERY_KERNEL)
def test_kernels(environment, tmp_path, target, fmt):
    """As `iq verify --emulate` runs them: bit-exact dequantize and get_rows, products to the tolerances that hold on the CPU."""
    [path] = bundle(target, fmt, out=tmp_path, jobs=1)
    assert check_bundle(Bundle.open(path)) == []
    report = verify_bundle(Bundle.open(path), open_emulated)
    assert {k.key for k in report.kernels} == {k.key for k in kernels.select(fmt, target=TARGETS[target])}
    failed = {f"{k.key}: {c.name}": c.failure or c.checks for k in report.kernels for c in k.cases if not c.passed}
    assert not failed
    assert report.how == "Executed under ISA emulation, not validated on hardware."
    for kernel in report.kernels:
        assert kernel.instructions > 0
        assert all(case.executed.waves > 0 for case in kernel.cases)


@pytest.fixture(scope="module", params=EMULATED)
def device(environment, request):
    return iq.Device(f"emulated:{request.param}")


@pytest.mark.parametrize(("e", "each", "tokens"), [(8, 1, 1), (4, 2, 5), (8, 4, 17)])
def test_experts_in_shapes_of_llama_cpp(device, rng, e, each, tokens):
    """The last has a matvec for no pick: they are grouped."""
    check_shape(device, FORMATS["q4_k"], rng, e, each, tokens)
