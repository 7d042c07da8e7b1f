"""The rooms of the package: every import points down, nothing goes round in a circle."""

import ast
from collections.abc import Iterator
from pathlib import Path

import iq

ROOT = Path(iq.__file__).parent

# From the bottom up. A room may import rooms that stand before it; those of one line do not know each other.
ROOMS = (
    ("errors", "extras", "atomic", "gpu_names"),
    ("formats", "targets", "cache"),
    ("kernels",),
    ("bundle",),
    ("compile", "inspect", "runtime"),
    ("emulator",),
    ("device",),
    ("torch_tensors",),
    ("operands",),
    ("hadamard", "moe", "quantizing"),
    ("qtensor",),
    ("gguf", "verify", "bench"),
    ("cli", "torch"),
    ("__init__", "__main__"),
)
LEVELS = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(ROOT.rglob("*.py")):
        yield ".".join(path.relative_to(ROOT).with_suffix("").parts), ast.parse(path.read_text())


def imported(tree: ast.Module) -> Iterator[str]:
    """What a module imports of the package, wherever in it; imports for type checkers alone are not among them."""
    ignored = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in ignored:
            continue
        if isinstance(node, ast.Import):
            yield from (name.name.removeprefix("iq.") for name in node.names if name.name.startswith("iq."))
        elif isinstance(node, ast.ImportFrom) and node.module == "iq":
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("iq."):
            module = (node.module or "").removeprefix("iq.")
            yield from (f"{module}.{name.name}" for name in node.names)


def room(module: str) -> str:
    return module.partition(".")[0]


def test_every_module_stands_in_a_room():
    assert {room(name) for name, _ in modules()} == set(LEVELS)


def test_imports_point_down():
    up = [
        f"{name} imports {target}"
        for name, tree in modules()
        for target in imported(tree)
        if room(target) in LEVELS and room(target) != room(name) and LEVELS[room(target)] >= LEVELS[room(name)]
    ]
    assert not up


def test_no_circle_of_modules():
    known = {name.removesuffix(".__init__") for name, _ in modules()}

    def resolve(target: str) -> str:
        return target if target in known else target.rpartition(".")[0]

    arrows = {
        name.removesuffix(".__init__"): {resolve(t) for t in imported(tree)} - {name.removesuffix(".__init__")} for name, tree in modules()
    }
    # What is left when all that leads nowhere has gone, again and again, lies on circles or leads to them.
    while leaves := {name for name in arrows if not arrows[name] & set(arrows)}:
        arrows = {name: targets for name, targets in arrows.items() if name not in leaves}
    assert not arrows
