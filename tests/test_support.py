"""docs/formats.md says what the declarations say, and claims nothing that no test covers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import support_tables
import tiers
from conftest import CPU_TARGETS

from iq.formats import FORMATS
from iq.kernels import kernels, select
from iq.targets import TARGETS

TESTS = Path(__file__).parent

pytestmark = pytest.mark.needs_extras


@pytest.fixture(scope="module")
def collected() -> set[str]:
    """The ids of the tests that run kernels by target and format, as pytest finds them."""
    files = [f"test_{name}.py" for name in ("cpu_kernels", "emulated_kernels", "emulated_others", "aarch64", "isa")]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *files]
    listed = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, timeout=300, check=True).stdout
    return {line.rpartition("/")[2] for line in listed.splitlines() if "::" in line}


def test_the_page_is_what_the_declarations_say() -> None:
    assert support_tables.PAGE.read_text(encoding="utf-8") == support_tables.page(), "run `make support`, and read the diff"


def test_every_kernel_of_every_format_runs_on_the_cpu(collected: set[str]) -> None:
    """On the target that fits this machine best all formats, on the others some."""
    runs = {f"test_cpu_kernels.py::test_kernels[{t.id}-{name}]" for t in CPU_TARGETS for name in FORMATS if select(name, target=t)}
    assert {name for name in FORMATS if select(name)} == {test.rpartition("-")[2].rstrip("]") for test in runs & collected}
    assert all(any(f"[{t.id}-" in test for test in runs & collected) for t in CPU_TARGETS)


@pytest.mark.skipif(bool(tiers.NAMED), reason="other targets are named")
def test_every_kernel_of_every_format_runs_on_an_emulated_gpu(collected: set[str]) -> None:
    """On the one that the page names, and on one at least."""
    runs = {(target, name) for target in tiers.GENERATIONS for name in tiers.formats_of(target)}
    assert {f"test_emulated_kernels.py::test_kernels[{target}-{name}]" for target, name in runs} <= collected
    assert {name for _, name in runs} == {name for name in FORMATS if select(name)}


def test_some_kernels_run_on_each_kind_of_processor(collected: set[str]) -> None:
    for id in tiers.OTHERS:
        assert any(test.startswith(f"test_emulated_others.py::test_kernel[{id}-") for test in collected), id


def test_every_other_amd_target_is_looked_at(collected: set[str]) -> None:
    """Compiled and inspected, as the page says of those that run nothing."""
    rest = [t.id for t in TARGETS.values() if t.family == "rocm" and t.id not in (*tiers.GENERATIONS, *tiers.OTHERS)]
    assert rest
    for id in rest:
        assert any(test.startswith("test_isa.py::") and f"[{id}" in test for test in collected), id


def test_every_kernel_has_a_row() -> None:
    """No kernel of any target is of an op or a format that the page leaves out."""
    page = support_tables.PAGE.read_text(encoding="utf-8")
    for op, fmt in {(spec.op, spec.format) for spec in kernels()}:
        rows = [line for line in page.splitlines() if line.startswith(f"| `{op}` |")]
        quantized = FORMATS[fmt].kind == "weights"
        words = [f"`{fmt}`", *(["all weights"] if FORMATS[fmt].kind != "activations" else []), *(["all quantized"] if quantized else [])]
        assert any(word in row for row in rows for word in words), (op, fmt)
