"""The Python in README.md runs, block after block as a reader would type it, with stand-ins for what the reader is to bring."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import iq

pytestmark = pytest.mark.needs_extras

README = Path(__file__).parent.parent / "README.md"

# What cannot be had here, as the README has it, and what stands in for it.
STAND_INS = {
    'iq.Device("hip", bundle="artifacts/")': 'iq.Device("emulated:gfx1100", bundle="artifacts/")',
}


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def with_stand_ins(text: str) -> str:
    """The text with its stand-ins. Raises ValueError for one that stands in for nothing: then the README has changed."""
    for what, stand_in in STAND_INS.items():
        if what not in text:
            raise ValueError(f"no {what} in README.md: STAND_INS is out of date")
        text = text.replace(what, stand_in)
    return text


def test_python_runs(environment: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    weights = rng.standard_normal((64, 256), dtype=np.float32)
    iq.gguf.write(tmp_path / "model.gguf", {"blk.0.ffn_up.weight": (iq.quantize(weights, "q4_k"), "q4_k", weights.shape)})
    iq.compile.bundle("gfx1100", "q4_k", out=tmp_path / "artifacts")
    monkeypatch.chdir(tmp_path)
    python = with_stand_ins("\n".join(blocks()))
    names: dict[str, object] = {}
    exec(compile(python, str(README), "exec"), names)  # noqa: S102 (our own README)
    y, w = names["y"], names["w"]
    assert isinstance(y, iq.Buffer)
    assert y.shape == (3, 4096)
    assert isinstance(w, iq.QTensor)
    assert np.array_equal(np.asarray(w.dequantize()), iq.dequantize(iq.quantize(weights, "q4_k"), "q4_k"))


def test_a_stand_in_for_nothing_is_noticed() -> None:
    with pytest.raises(ValueError, match="STAND_INS is out of date"):
        with_stand_ins("w = 1")
