"""Writes the renders in tests/golden that are kept to be read: what a change of templates does to the MLIR shows in its diff.

    make golden

tests/test_golden_renders.py says when they are not what the templates render now.
"""

from __future__ import annotations

from pathlib import Path

from iq.compile.build import Module, mlir_of
from iq.kernels import KernelSpec
from iq.targets import TARGETS

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "golden"

# Each shows another kernel, another format and another family of targets.
KEPT = (
    ("gfx1100", "mul_mat_vec.q4_k.1"),
    ("gfx942", "mul_mat.q4_k.float"),
    ("x86-64-v3", "dequantize.q6_k.f16"),
    ("sm_90", "quantize_q8_1.q8_1.f32"),
)


def path_of(target: str, key: str) -> Path:
    return FOLDER / f"{target}.{key}.mlir"


def rendered(target: str, key: str) -> str:
    """What `iq render KEY --target TARGET` prints."""
    spec = KernelSpec.parse(key)
    return mlir_of(Module(TARGETS[target], spec.format, (spec,)))


def main() -> None:
    kept = {path_of(*which): rendered(*which) for which in KEPT}
    for stale in set(FOLDER.glob("*.mlir")) - set(kept):
        stale.unlink()
    for path, text in kept.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
