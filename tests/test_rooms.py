"""The house: each room of iq imports only what stands below it, and no module imports itself by a detour.

Imports in functions count; those for type checkers alone do not.
"""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

IQ = Path(__file__).parent.parent / "iq"

# From the ground up. A room may import those before it; "iq" is the public API in iq/__init__.py.
ROOMS = (
    "errors", "extras", "atomic", "targets", "formats", "ops", "kernels", "bundle", "cache", "inspect", "compile", "runtime", "emulator",
    "device", "qtensor", "gguf", "verify", "torch", "iq", "cli", "__main__",
)  # fmt: skip


def modules() -> dict[str, Path]:
    """iq's modules by name; a package is its __init__."""
    names = {p: ".".join(p.relative_to(IQ.parent).with_suffix("").parts) for p in IQ.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


MODULES = modules()


def imports(node: ast.AST) -> Iterator[str]:
    """The modules of iq that are imported anywhere in a syntax tree."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in MODULES)
    elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
        submodules = (f"{node.module}.{alias.name}" for alias in node.names)
        yield from (submodule if submodule in MODULES else node.module for submodule in submodules)
    for child in ast.iter_child_nodes(node):
        yield from imports(child)


GRAPH = {name: set(imports(ast.parse(path.read_text()))) for name, path in MODULES.items()}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def test_the_graph_is_read() -> None:
    assert "iq.errors" in GRAPH["iq.bundle.reading"]
    assert "iq.emulator.device" in GRAPH["iq.device"]  # in a function
    assert GRAPH["iq.errors"] == set()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_arrows_point_down(module: str) -> None:
    assert room(module) in ROOMS, f"iq.{room(module)} is a new room: say in ROOMS above what it stands on"
    allowed = ROOMS[: ROOMS.index(room(module)) + 1]
    assert {imported for imported in GRAPH[module] if room(imported) not in allowed} == set()


def test_no_circles() -> None:
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
