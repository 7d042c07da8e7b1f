"""The distribution: its name and version, and what works without its extras."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import iq
from iq.extras import DISTRIBUTION, EXTRAS, extra_of, install, missing

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Distributions that are not named as what they are imported as.
MODULES = {"iree-base-compiler": "iree.compiler", "pyelftools": "elftools", "rocm-bootstrap": "rocm_bootstrap"}

WITHOUT_EXTRAS = f"""
import sys
for name in {sorted({name for names in EXTRAS.values() for name in names})}:
    sys.modules[name] = None  # importing it fails as if it were not installed
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def module_of(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9-]+", requirement)
    assert found
    return MODULES.get(found[0], found[0])


def test_extras() -> None:
    assert PROJECT["name"] == DISTRIBUTION
    declared = {extra: {module_of(r) for r in requirements} for extra, requirements in PROJECT["optional-dependencies"].items()}
    test = declared.pop("test")
    assert declared == {extra: set(names) for extra, names in EXTRAS.items()}
    assert DISTRIBUTION in test
    assert not {module_of(r) for r in PROJECT["dependencies"]} & {name for names in declared.values() for name in names}


@pytest.mark.needs_extras
def test_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing("cli") == ""
    monkeypatch.setitem(sys.modules, "rich", None)
    assert missing("cli") == "rich cannot be imported (pip install 'iq-kernels[cli]')"
    assert [extra_of(name) for name in ("rich.table", "elftools", "iree.compiler.tools", "iree", "numpy", "")] == [
        "cli", "emulate", "compile", None, None, None,
    ]  # fmt: skip


def test_everything_can_be_named_without_extras() -> None:
    done = python(WITHOUT_EXTRAS + "from iq import *; print(compile, gguf, QTensor)\nimport iq; print(*dir(iq.compile))")
    assert done.returncode == 0, done.stderr
    done = python(WITHOUT_EXTRAS + "import iq; iq.compile.bundle('cpu')")
    assert "NoCompilerError" in done.stderr
    assert install("compile") in done.stderr


def test_the_command_line_without_extras() -> None:
    done = python(WITHOUT_EXTRAS + "from iq.cli import main; main()")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "iq: click and rich cannot be imported (pip install 'iq-kernels[cli]')\n"


@pytest.mark.needs_extras
@pytest.mark.parametrize(
    ("arguments", "extra"),
    [(("compile", "--target", "cpu"), "compile"), (("render", "dequantize.q4_0.f32", "--target", "gfx942"), "compile")],
)
def test_commands_without_their_extra(arguments: tuple[str, ...], extra: str) -> None:
    done = python("import sys\nsys.modules['jinja2'] = None\nfrom iq.cli import main\nmain()", *arguments)
    assert done.returncode == 1
    assert done.stderr == f"Error: this command needs jinja2, which is not installed: {install(extra)}\n"


@pytest.mark.needs_extras
def test_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", iq.__version__)
    assert python("from iq.cli import main; main()", "--version").stdout == f"iq, version {iq.__version__}\n"


def test_no_other_distribution_is_recommended() -> None:
    """`iq` on the package index is somebody else's."""
    texts = [
        p for folder in ("iq", "docs", "examples", "benchmarks") for p in (ROOT / folder).rglob("*") if p.suffix in (".py", ".md", ".j2")
    ]
    for path in [*texts, ROOT / "README.md"]:
        assert not re.search(r"pip install [^\n]*\biq\b(?!-kernels)", path.read_text().replace("iq.", "")), path


def test_a_module_of_a_package_that_is_missing_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing of IREE is installed, iree.compiler has no package to be looked for in."""
    monkeypatch.setitem(EXTRAS, "compile", ("nothing_of_that_name.compiler",))
    assert missing("compile").startswith("nothing_of_that_name.compiler cannot be imported")
