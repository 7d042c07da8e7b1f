"""Writes docs/formats.md: which formats, ops and targets there are, from their declarations, and how each is tested, from tests/tiers.py.

    make support

tests/test_support.py says when the page is not what the declarations say now, or claims what no test covers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import tiers  # noqa: E402

from iq.formats import FORMATS, Format  # noqa: E402
from iq.gpu_names import products_of  # noqa: E402
from iq.kernels import OPS, Op  # noqa: E402
from iq.targets import TARGETS, Target  # noqa: E402

PAGE = ROOT / "docs" / "formats.md"

# What a kernel's arithmetic is done by (Kernel.unit), on a target.
_DOTS = {"none": "int16 pairs", "sdot4": "v_dot4", "pmaddubsw": "pmaddubsw", "vpdpbusd": "vpdpbusd", "dp4a": "dp4a"}


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)])


def formats_table() -> str:
    rows = [
        (f"`{f.name}`", f.type, f.block_size, f.type_size, f"{8 * f.type_size / f.block_size:.4g}", _weight(f), _imatrix(f))
        for f in FORMATS.values()
    ]
    return table(("format", "ggml's id", "weights a block", "bytes", "bits a weight", "weight", "imatrix"), rows)


def _weight(fmt: type[Format]) -> str:
    """How a weight comes of its bits, in short."""
    if fmt.kind == "plain":
        return "itself"
    source = "codebook[q]" if fmt.codebook else "grid[q]" if fmt.tables() else "q"
    centred = f"({source} - {fmt.zero})" if fmt.zero else source
    return f"scale * {centred}{' - min' if fmt.mins else ''}, a scale for {fmt.sub_block}"


def _imatrix(fmt: type[Format]) -> str:
    return {"ignored": "", "used": "used", "required": "required"}[fmt.imatrix]


def ops_table() -> str:
    """A row for each op, with the formats that have the same variants of it together."""
    rows = []
    for op in OPS.values():
        by_variants: dict[tuple[str, ...], list[str]] = {}
        for fmt in FORMATS.values():
            if variants := _variants(op, fmt):
                by_variants.setdefault(variants, []).append(fmt.name)
        rows += [(f"`{op.name}`", _values(op, variants), _together(names)) for variants, names in by_variants.items()]
    return table(("op", "variants", "formats"), rows)


def _together(names: list[str]) -> str:
    """Formats by name, or by what they have in common."""
    quantized = [f.name for f in FORMATS.values() if f.kind == "weights"]
    plain = [f.name for f in FORMATS.values() if f.kind == "plain"]
    if set(names) == {*quantized, *plain}:
        return "all weights"
    return "all quantized weights" if set(names) == set(quantized) else " ".join(f"`{name}`" for name in names)


def _variants(op: Op, fmt: type[Format]) -> tuple[str, ...]:
    """The variants that some target has."""
    return tuple(v for v in op.values(fmt) if any(op.kernels(v, target, fmt) for target in TARGETS.values()))


def _values(op: Op, variants: tuple[str, ...]) -> str:
    return f"M = {variants[0]} to {variants[-1]}" if op.varies == "columns" else ", ".join(variants)


def targets_table() -> str:
    """A row for each target with kernels of its own; what others share them stand beside it."""
    rows = []
    for same in _alike():
        first = same[0]
        names = " ".join(f"`{t.id}`" for t in same)
        products = ", ".join(p for t in same for p in products_of(t.id)[:2]) if first.family == "rocm" else ""
        rows.append(
            (names, products, first.wave, f"{first.lds // 1024} KiB" if first.family != "cpu" else "", *_units(first), _tested(same))
        )
    header = (
        "targets",
        "products, for example",
        "wave",
        "LDS",
        "products via q8_1",
        "float products of tiles",
        "kernels run by `make test`",
    )
    return table(header, rows)


def _alike() -> list[list[Target]]:
    """Targets whose rows say the same, in the order of TARGETS."""
    groups: dict[object, list[Target]] = {}
    for target in TARGETS.values():
        groups.setdefault(tiers.row_of(target), []).append(target)
    return list(groups.values())


def _units(target: Target) -> tuple[str, str]:
    return _DOTS.get(target.dot, target.dot), target.matrix.name.replace("_", " ") if target.matrix else "none: a row at a time, f32"


def _tested(same: Sequence[Target]) -> str:
    """How much of the group's first that is run at all is run."""
    if same[0].family == "cpu":
        return (
            "all on the best that the CPU runs, some of every kind on others"
            if same[0].isa.name == "x86_64"
            else "some of every kind, where QEMU is installed"
        )
    if same[0].family == "cuda":
        return "none (no GPU in CI); compiled"
    full = [t.id for t in same if t.id in tiers.EMULATED]
    some = [t.id for t in same if t.id in tiers.OTHERS]
    parts = [f"{id}: all of {len(tiers.formats_of(id))} formats, emulated" for id in full]
    parts += [f"{id}: some of every kind, emulated" for id in some if id not in full]
    return "; ".join(parts) or "none; compiled"


def page() -> str:
    return f"""# Formats, ops and targets

Written by `make support` from the declarations (`iq/formats`, `iq/kernels/ops.py`, `iq/targets.py`) and from `tests/tiers.py`; do not edit.
Every op is there on every target for every format that its row names.

## Formats

`q` is a quant, an integer of a few bits; a weight is `scale * (q - zero) - min`, where the weights of a sub-block share scale and min.
Quantizing gives ggml's bytes, with and without importances (an imatrix). `q8_1` and `q8_k` are for activations.

{formats_table()}

## Ops

{ops_table()}

Weights are all formats but `q8_1` and `q8_k`. M: rows of activations. `q8_1`, `float`: what activations become on the way; `f32`, `f16`,
`bf16`: the numbers' type. `mul_mat_vec_id` and `mul_mat_id` are `QTensor.moe`; `hadamard` is the rotation before `set_rows`.

## Targets

{targets_table()}

`make emulate-all` runs every kernel of gfx90a, gfx942, gfx1030, gfx1100 and gfx1201 under emulation, `make emulate-all EMULATE=gfx906`
those of another. Those of NVIDIA GPUs run where there is one: `iq compile --target cuda`, then `iq verify artifacts --run`.
"""


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
