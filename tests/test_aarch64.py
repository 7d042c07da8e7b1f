"""Kernels for aarch64, run by QEMU's user mode emulation and held to the same models as everywhere. Left out where there is none:
apt-get install qemu-user gcc-aarch64-linux-gnu.
"""

import math
import shutil
import subprocess
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from tiers import something_of_everything

from iq.bundle import Launches, Vmfb
from iq.compile.ondemand import CompileOnDemand
from iq.kernels import KernelSpec
from iq.runtime.dtypes import dtype_of
from iq.targets import TARGETS
from iq.verify.cases import Case, cases

TARGET = TARGETS["aarch64-dotprod"]
COMPILER, QEMU = "aarch64-linux-gnu-gcc", "qemu-aarch64"
MOST_CASES = 2  # of a kernel: each dispatch is a process

pytestmark = pytest.mark.skipif(not (shutil.which(COMPILER) and shutil.which(QEMU)), reason=f"there is no {COMPILER} or no {QEMU}")


@pytest.fixture(scope="module")
def dispatch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that calls a dispatch."""
    program = tmp_path_factory.mktemp("aarch64") / "dispatch"
    source = Path(__file__).parent / "dispatch.c"
    subprocess.run([COMPILER, "-std=c11", "-O1", "-Wall", "-Werror", source, "-o", program, "-ldl"], check=True)
    return program


def outputs_of(dispatch: Path, launches: Launches, case: Case, folder: Path) -> list[np.ndarray]:
    """What a kernel makes of a case, its dispatches run one after another on buffers that are files; its code is in code.so."""
    sizes = launches.all_sizes(case.sizes)
    for tensor, array in zip(launches.inputs, case.inputs, strict=True):
        array.tofile(folder / tensor.name)
    for tensor in launches.scratch:
        (folder / tensor.name).write_bytes(b"\x7b" * tensor.nbytes(sizes))
    for tensor, (shape, dtype) in zip(launches.outputs, case.outputs, strict=True):
        (folder / tensor.name).write_bytes(b"\x7b" * (math.prod(shape) * dtype_of(dtype).itemsize))
    for launch in launches.dispatches:
        grid = [-(-sizes[axis.size] // axis.tile) for axis in launch.grid]
        workgroups = [*grid, 1, 1][:3]
        command = [QEMU, "-L", "/usr/aarch64-linux-gnu", dispatch, folder / "code.so", launch.function, *workgroups]
        command += [*(sizes[name] for name in launch.sizes), "--", *(folder / name for name in launch.buffers)]
        subprocess.run([str(part) for part in command], check=True)
    held = [(folder / tensor.name).read_bytes() for tensor in launches.outputs]
    return [np.frombuffer(data, dtype_of(dtype).numpy).reshape(shape) for data, (shape, dtype) in zip(held, case.outputs, strict=True)]


@pytest.mark.parametrize("key", [spec.key for spec in something_of_everything(TARGET)])
def test_kernel(environment: None, dispatch: Path, tmp_path: Path, key: str) -> None:
    spec = KernelSpec.parse(key)
    module = CompileOnDemand().module(TARGET, spec)
    [elf] = Vmfb.parse(module.vmfb).executables.values()
    (tmp_path / "code.so").write_bytes(elf)
    for case in islice(cases(spec, TARGET), MOST_CASES):
        outputs = outputs_of(dispatch, module.launches[key], case, tmp_path)
        assert [check for check in case.check(outputs) if not check.passed] == [], case.name
