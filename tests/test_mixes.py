"""llama.cpp's mixes: which format each tensor of a model gets, as llama.cpp's own tool says.

tests/golden/mixes.json holds what `llama-quantize --dry-run` of the llama.cpp in llama-cpp-python 0.3.36 printed for files of the models in
mix_models.py: for each model and mix, with importances and without, a letter for the format of each tensor, the tensors sorted by name.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mix_models import MODELS

from iq.errors import FormatError
from iq.formats import FORMATS
from iq.gguf.mixes import MIXES, Kind, Model, Shaped, choose_formats, mix_of

GOLDEN = json.loads((Path(__file__).parent / "golden" / "mixes.json").read_text())


def model_of(title: str, imatrix: bool) -> Model:
    described = MODELS[title]
    kinds = [Kind.of(name) for name in described.shapes()]
    return Model(
        described.architecture,
        layers=described.layers,
        heads=described.heads,
        heads_kv=described.heads_kv,
        experts=described.experts,
        attention_vs=kinds.count(Kind.ATTENTION_V),
        tied=described.tied,
        imatrix=imatrix,
    )


@pytest.mark.parametrize(("title", "key"), [(title, key) for title, mixes in GOLDEN["types"].items() for key in mixes])
def test_types_are_those_of_llama_cpp(title: str, key: str) -> None:
    name, _, imatrix = key.partition(" ")
    shapes = MODELS[title].shapes()
    chosen = choose_formats([Shaped(*item) for item in shapes.items()], mix_of(name), model_of(title, bool(imatrix)))
    want = dict(zip(sorted(shapes), (GOLDEN["formats"][letter] for letter in GOLDEN["types"][title][key]), strict=True))
    got = {tensor: choice.format.name if choice.format else "f32" for tensor, choice in chosen.items()}
    assert {t: f for t, f in got.items() if f != want[t]} == {t: want[t] for t in got if got[t] != want[t]} == {}


def test_golden_types_have_every_mix_of_the_tool() -> None:
    assert {key.partition(" ")[0] for mixes in GOLDEN["types"].values() for key in mixes} == set(MIXES) - {"nvfp4"}
    assert set(GOLDEN["types"]) == set(MODELS)


def test_names_of_mixes() -> None:
    assert mix_of("Q4_K_M").name == mix_of("q4_k").name == "q4_k_m"
    assert all(mix.format in FORMATS for mix in MIXES.values())
    with pytest.raises(FormatError, match="q4_k_m"):
        mix_of("q4_k_xl")


def test_overrides_come_first_and_take_no_part_in_the_count() -> None:
    shapes = [Shaped(f"blk.{layer}.attn_v.weight", (4, 256)) for layer in range(8)]
    model = Model("llama", layers=8, heads=8, heads_kv=8, attention_vs=8)
    plain = choose_formats(shapes, mix_of("q3_k_m"), model)
    assert [plain[t.name].format.name for t in shapes] == ["q5_k"] * 2 + ["q4_k"] * 6  # type: ignore[union-attr]
    chosen = choose_formats(shapes, mix_of("q3_k_m"), model, [(r"blk\.[01]\.", "q8_0"), ("attn_v", "q6_k")][:1])
    assert [chosen[t.name].format.name for t in shapes] == ["q8_0"] * 2 + ["q5_k"] * 2 + ["q4_k"] * 4  # type: ignore[union-attr]
    with pytest.raises(FormatError, match="no pattern"):
        choose_formats(shapes, mix_of("q3_k_m"), model, [("(", "q8_0")])
    with pytest.raises(FormatError, match="unknown format"):
        choose_formats(shapes, mix_of("q3_k_m"), model, [("attn", "q9_k")])


def test_pure_gives_every_matrix_the_same() -> None:
    shapes = [Shaped(*item) for item in MODELS["llama 8B"].shapes().items()]
    chosen = choose_formats(shapes, mix_of("q4_k_m"), model_of("llama 8B", False), pure=True)
    assert {c.format.name for c in chosen.values() if c.format} == {"q4_k"}


@pytest.mark.parametrize("name", ["blk.0.attn_norm.weight", "blk.0.ffn_gate_inp.weight", "blk.1.ssm_conv1d.weight", "position_embd.weight"])
def test_what_stays_says_why(name: str) -> None:
    choice = choose_formats([Shaped(name, (4, 256))], mix_of("q8_0"), Model())[name]
    assert choice.format is None
    assert choice.why
