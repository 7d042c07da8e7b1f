"""What several test files need: devices to run on, a cache of compiled kernels that lasts for the run, ggml's golden data.

The CPU by default. IQ_TEST_DEVICE=cuda (or hip) runs the same tests on a GPU, with the kernels of IQ_BUNDLE_PATH where that is set.
IQ_TEST_CACHE_DIR keeps compiled kernels from one run to the next.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import iq
from iq import runtime
from iq.bundle import Module, best_match
from iq.extras import missing
from iq.formats import FORMATS
from iq.kernels import KernelSpec
from iq.runtime.host import cpu_flags
from iq.targets import TARGETS, Accepted, DeviceId, Target, match

SPEC = os.environ.get("IQ_TEST_DEVICE", "cpu")
BUNDLE = os.environ.get("IQ_BUNDLE_PATH")

# Each runs different code, so kernels are tested on every one that this machine can run: all formats on the best, and on the others one for
# each way to multiply quants, which is what differs.
CPU_TARGETS = [t for t in TARGETS.values() if isinstance(match(DeviceId(t.id), DeviceId("cpu"), cpu_flags()), Accepted)]


def cpu_formats(target: Target) -> list[str]:
    """The formats that run on a CPU target."""
    if target.id == best_match(TARGETS, DeviceId("cpu"), cpu_flags()):
        return list(FORMATS)
    quantized = [fmt for fmt in FORMATS.values() if fmt.kind == "weights"]
    products = {(fmt.signed, fmt.sub_block, fmt.mins): fmt.name for fmt in reversed(quantized)}
    return [name for name in FORMATS if name in products.values() or FORMATS[name].kind != "weights"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the tests of formats on CPU targets where those do not run."""

    def runs(item: pytest.Item) -> bool:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        target, fmt = params.get("device"), params.get("fmt")
        if not isinstance(target, Target) or fmt is None:
            return True
        return (fmt if isinstance(fmt, str) else fmt.name) in cpu_formats(target)

    left_out = [item for item in items if not runs(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if runs(item)]


class OnDemandFor:
    """Kernels for one target, compiled on demand."""

    def __init__(self, target: Target) -> None:
        from compiled import FormatsOnDemand

        self._target = target
        self._compiler = FormatsOnDemand()

    def target(self, device_id: DeviceId, cpu_flags: frozenset[str]) -> Target:
        return self._target

    def module(self, target: Target, spec: KernelSpec) -> Module:
        return self._compiler.module(target, spec)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Refuse to start without torch and what the emulator takes, rather than let hundreds of tests fail one by one, or be skipped.

    Where the extra `emulate` is not installed, or on a GPU, its tests are not meant to run.
    """
    if hasattr(session.config, "workerinput") or missing("emulate") or SPEC != "cpu":
        return
    from iq.inspect import Objdump

    lacking = [found] if isinstance(found := Objdump.find(), str) else []
    if torch_is := missing("torch"):
        lacking.append(f"no torch: {torch_is}")
    if not shutil.which(os.environ.get("CC", "cc")):
        lacking.append("no C compiler: apt-get install gcc libc6-dev")
    if lacking:
        raise pytest.UsageError(f"the tests cannot start, there is {'; and '.join(lacking)} (`make test` installs it where it may)")


@pytest.fixture(scope="session", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """iq's environment variables as on a fresh machine; kernels are compiled a format at a time, into a directory of this run."""
    base = tmp_path_factory.getbasetemp()
    # With pytest-xdist, each worker has a directory of its own below the run's.
    cache = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "iq-cache"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("IQ_DEVICE", "IQ_BUNDLE_PATH", "IQ_DISABLE_COMPILE"):
            patch.delenv(name, raising=False)
        patch.setenv("IQ_CACHE_DIR", os.environ.get("IQ_TEST_CACHE_DIR", str(cache)))
        patch.setenv("IQ_QUIET", "1")
        if not missing("compile"):
            patch.setattr("iq.compile.ondemand.CompileOnDemand", import_module("compiled").FormatsOnDemand)
        yield


@pytest.fixture
def quiet() -> Iterator[None]:
    """Infinities and NaNs are ordinary results, as they are to the emulator's machine."""
    with np.errstate(all="ignore"):
        yield


@pytest.fixture(scope="session")
def dev(environment: None) -> iq.Device:
    """The device, as users open it."""
    return iq.Device(SPEC, bundle=BUNDLE)


@pytest.fixture(scope="session", params=CPU_TARGETS if SPEC == "cpu" and not BUNDLE else [None], ids=lambda t: t.id if t else SPEC)
def device(environment: None, request: pytest.FixtureRequest) -> runtime.Device:
    """The device, for tests of kernels: the CPU once for each target that it can run."""
    return runtime.Device("cpu", provider=OnDemandFor(request.param)) if request.param else iq.Device(SPEC, bundle=BUNDLE)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, Any]]:
    """ggml's own data of a format, by the format's name (see tests/golden)."""
    folder = Path(__file__).parent / "golden"

    def load(name: str) -> dict[str, Any]:
        with np.load(folder / f"{name}.npz") as data:
            return dict(data)

    return load


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240607)
