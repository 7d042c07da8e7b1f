"""`iq quantize`: a model's weights into a new GGUF file, with llama.cpp's types and ggml's bytes, and nothing lost."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import libgguf
import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from safetensors.numpy import save_file

import iq
from iq.cli.commands import main
from iq.errors import FormatError, GGUFError
from iq.gguf import MIXES, Value, ValueType, quantize_file, read_imatrix

Array = NDArray[Any]


def run(*arguments: str | Path, status: int = 0) -> Result:
    result = CliRunner().invoke(main, ["quantize", *map(str, arguments)])
    assert result.exit_code == status, (result.output, result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def f32(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


WEIGHTS: dict[str, Array] = {
    "token_embd.weight": f32(40, 512),
    "output.weight": f32(40, 512, seed=1),
    "output_norm.weight": f32(512),
    **{f"blk.{i}.attn_v.weight": f32(6, 512, seed=i) for i in range(4)},
    "blk.0.attn_k.weight": f32(6, 512, seed=9).astype(np.float16),
    "blk.0.ffn_down.weight": f32(6, 96),
    "blk.0.ffn_up_exps.weight": f32(3, 6, 256),
    "blk.0.attn_norm.weight": f32(512),
    "blk.1.ffn_gate_inp.weight": f32(4, 512),
    "blk.1.nothing.weight": f32(0, 512),
    "blk.1.attn_q.bias": f32(2, 256),
}
METADATA = {
    "general.architecture": "llama",
    "general.file_type": Value(0, ValueType.UINT32),
    "llama.block_count": Value(4, ValueType.UINT32),
    "llama.attention.head_count": Value(8, ValueType.UINT32),
    "tokens": ["a", "b"],
    "split.count": Value(2, ValueType.UINT16),
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    brain = ((f32(2, 256).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8).reshape(-1), "bf16", (2, 256))
    iq.gguf.write(tmp_path / "in.gguf", WEIGHTS | {"blk.2.ffn_up.weight": brain}, METADATA)
    return tmp_path / "in.gguf"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.gguf"


class Tensor(NamedTuple):
    format: str
    shape: tuple[int, ...]
    data: Array


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and metadata of a file, as gguf-py reads them; iq must agree."""
    with iq.gguf.open(path) as file:
        tensors = {name: Tensor(info.format, info.shape, file.packed(name)[0].copy()) for name, info in file.tensors.items()}
        metadata = {key: value.value for key, value in file.metadata.items()}
    if "q2_0" not in {tensor.format for tensor in tensors.values()}:  # gguf-py 0.19 does not know it
        theirs = {t.name: (t.tensor_type.name.lower(), tuple(int(n) for n in reversed(t.shape))) for t in gguf.GGUFReader(path).tensors}
        assert theirs == {name: tensor[:2] for name, tensor in tensors.items()}
    return tensors, metadata


def ggmls(values: Array, format: str, importances: Array | None = None) -> Array:
    """ggml's own bytes of rows."""
    if format in ("f32", "f16", "bf16"):
        return iq.quantize(values, format)
    return np.asarray(libgguf.quantize_rows(values, gguf.GGMLQuantizationType[format.upper()], imatrix=importances)).view(np.uint8)


def test_types_bytes_and_metadata(model: Path, out: Path) -> None:
    result = run(model, out, "--type", "Q4_K_M")
    assert result.stderr.splitlines()[0] == "0/15 token_embd.weight"
    before, _ = read(model)
    after, metadata = read(out)
    assert list(after) == list(before)
    changed = {name: tensor.format for name, tensor in after.items() if tensor.format != before[name].format}
    assert changed == {
        "token_embd.weight": "q4_k",
        "output.weight": "q6_k",
        "blk.0.attn_v.weight": "q4_k",
        "blk.1.attn_v.weight": "q4_k",
        "blk.2.attn_v.weight": "q6_k",
        "blk.3.attn_v.weight": "q6_k",
        "blk.0.attn_k.weight": "q4_k",
        "blk.0.ffn_down.weight": "q5_0",  # rows of 96
        "blk.0.ffn_up_exps.weight": "q4_k",
        "blk.1.nothing.weight": "q4_k",
        "blk.2.ffn_up.weight": "q4_k",
    }
    for name, tensor in after.items():
        assert tensor.shape == before[name].shape
        if name not in changed:
            assert np.array_equal(tensor.data, before[name].data)
        elif name in WEIGHTS and WEIGHTS[name].size:
            rows = WEIGHTS[name].astype(np.float32).reshape(-1, WEIGHTS[name].shape[-1])
            assert np.array_equal(tensor.data, ggmls(rows, tensor.format).reshape(-1)), name
    assert metadata == {
        "general.architecture": "llama",
        "general.file_type": gguf.LlamaFileType.MOSTLY_Q4_K_M,
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        "llama.block_count": 4,
        "llama.attention.head_count": 8,
        "tokens": ["a", "b"],
    }
    lines = result.stdout.splitlines()
    assert "blk.0.ffn_down.weight: q5_0: rows of 96 are no whole blocks of q4_k" in lines
    assert "blk.0.attn_norm.weight: f32, as it was: no matrix" in lines
    assert lines[-1].startswith(f"{out}: 11 of 15 tensors quantized (7 q4_k, 3 q6_k, 1 q5_0), ")


@pytest.mark.parametrize("name", MIXES)
def test_every_mix(model: Path, out: Path, tmp_path: Path, name: str) -> None:
    """With importances, which some require; the file's type is that of llama.cpp where gguf-py names it."""
    if name == "f32":  # the halves become f32
        run(model, out, "--type", name)
        assert {t.format for t in read(out)[0].values()} == {"f32"}
        return
    write_imatrix(tmp_path / "imatrix", importances())
    run(model, out, "--type", name, "--imatrix", tmp_path / "imatrix")
    tensors, metadata = read(out)
    assert metadata["general.file_type"] == MIXES[name].file_type
    assert MIXES[name].format in {t.format for t in tensors.values()} or name == "mxfp4_moe"
    if known := gguf.LlamaFileType.__members__.get(f"MOSTLY_{name.upper()}"):
        assert known == MIXES[name].file_type


def importances() -> dict[str, Array]:
    """For every matrix but the embedding, a row for each expert."""
    found = {}
    for name, w in (WEIGHTS | {"blk.2.ffn_up.weight": f32(2, 256)}).items():
        if w.ndim > 1 and name != "token_embd.weight":
            rows = w.shape[0] if w.ndim == 3 else 1
            found[name] = np.square(f32(rows, w.shape[-1], seed=len(name)))
    return found


def write_imatrix(path: Path, values: Mapping[str, Array], calls: int = 4) -> None:
    """The older, binary form."""
    with path.open("wb") as file:
        file.write(struct.pack("<i", len(values)))
        for name, rows in values.items():
            sums = (rows * np.float32(calls)).astype(np.float32)
            file.write(struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, sums.size) + sums.tobytes())
        file.write(struct.pack("<ii", 10, 4) + b"data")


def write_gguf_imatrix(path: Path, values: Mapping[str, Array], counts: float = 4) -> None:
    tensors: dict[str, Array] = {}
    for name, rows in values.items():
        tensors[f"{name}.in_sum2"] = (rows * np.float32(counts)).astype(np.float32)
        tensors[f"{name}.counts"] = np.full((len(rows), 1), counts, np.float32)
    metadata = {
        "general.type": "imatrix",
        "imatrix.datasets": ["data"],
        "imatrix.chunk_count": Value(10, ValueType.UINT32),
        "imatrix.chunk_size": Value(512, ValueType.UINT32),
    }
    iq.gguf.write(path, tensors, metadata)


@pytest.mark.parametrize("write", [write_imatrix, write_gguf_imatrix])
def test_an_imatrix(model: Path, out: Path, tmp_path: Path, write: Callable[[Path, Mapping[str, Array]], None]) -> None:
    """Either form is read as libgguf reads it; each expert has its own row; the file says what it was made with."""
    path = tmp_path / "model.imatrix"
    write(path, importances())
    theirs = libgguf.load_imatrix(path)
    ours = read_imatrix(path).importances
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        np.testing.assert_array_equal(ours[name].reshape(-1), np.asarray(values).reshape(-1))
    run(model, out, "--type", "q4_k_s", "--imatrix", path)
    tensors, metadata = read(out)
    for name in ("blk.1.attn_v.weight", "output.weight"):
        assert np.array_equal(tensors[name].data, ggmls(WEIGHTS[name], tensors[name].format, ours[name].reshape(-1)).reshape(-1))
    experts = zip(WEIGHTS["blk.0.ffn_up_exps.weight"], ours["blk.0.ffn_up_exps.weight"].reshape(3, -1), strict=True)
    want = np.concatenate([ggmls(rows, "q4_k", columns).reshape(-1) for rows, columns in experts])
    assert np.array_equal(tensors["blk.0.ffn_up_exps.weight"].data, want)
    assert {key: value for key, value in metadata.items() if key.startswith("quantize.")} == {
        "quantize.imatrix.file": str(path),
        "quantize.imatrix.dataset": "data",
        "quantize.imatrix.entries_count": len(ours),
        "quantize.imatrix.chunks_count": 10,
    }


def test_an_expert_that_was_never_picked_matters_alike(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    iq.gguf.write(path, {"w.in_sum2": np.array([[2, 4], [0, 0]], np.float32), "w.counts": np.array([[2], [0]], np.float32)})
    assert read_imatrix(path).importances["w"].tolist() == [[1, 2], [1, 1]]


def damage_negative(values: dict[str, Array]) -> None:
    values["output.weight"][0, 3] = -1


def damage_nan(values: dict[str, Array]) -> None:
    values["output.weight"][0, 3] = np.nan


@pytest.mark.parametrize("damage", [damage_negative, damage_nan])
@pytest.mark.parametrize("write", [write_imatrix, write_gguf_imatrix])
def test_importances_that_are_none_are_refused(model: Path, out: Path, tmp_path: Path, write: Any, damage: Any) -> None:
    values = importances()
    damage(values)
    write(tmp_path / "imatrix", values)
    assert "'output.weight'" in run(model, out, "--type", "q4_k", "--imatrix", tmp_path / "imatrix", status=1).stderr
    assert not out.exists()


def test_a_cut_imatrix_is_refused_at_every_length(tmp_path: Path) -> None:
    write_imatrix(tmp_path / "whole", {"w": np.ones((1, 4), np.float32)})
    whole = (tmp_path / "whole").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:length])
        if length == len(whole) - 12:  # what follows the entries may be missing
            assert read_imatrix(tmp_path / "cut").chunks == 0
        else:
            with pytest.raises(GGUFError):
                read_imatrix(tmp_path / "cut")


def test_importances_that_are_wanting(model: Path, out: Path, tmp_path: Path) -> None:
    assert "importances" in run(model, out, "--type", "iq2_xxs", status=1).stderr
    values = importances()
    del values["blk.3.attn_v.weight"], values["output.weight"]
    write_imatrix(tmp_path / "some", values)
    refused = run(model, out, "--type", "iq2_xxs", "--pure", "--imatrix", tmp_path / "some", status=1).stderr
    assert "cannot be made iq2_xxs without importances" in refused
    write_imatrix(tmp_path / "short", importances() | {"output.weight": np.ones((1, 256), np.float32)})
    assert "256 importances for 'output.weight'" in run(model, out, "--type", "q4_k", "--imatrix", tmp_path / "short", status=1).stderr
    assert not out.exists()


def test_overrides(model: Path, out: Path) -> None:
    run(model, out, "--type", "q4_k_m", "--tensor-type", "attn_v=q8_0", "--tensor-type", r"blk\.0\.=q5_1")
    tensors, _ = read(out)
    formats = {name: tensor.format for name, tensor in tensors.items()}
    assert {formats[f"blk.{i}.attn_v.weight"] for i in range(4)} == {"q8_0"}
    assert (formats["blk.0.attn_k.weight"], formats["output.weight"], formats["blk.0.attn_norm.weight"]) == ("q5_1", "q6_k", "f32")
    for wrong in ("attn_v", "=q8_0", "attn_v=", "attn_v=q9_0", "(=q8_0"):
        run(model, out, "--force", "--type", "q4_k_m", "--tensor-type", wrong, status=2)


def test_quantized_weights_need_a_word(model: Path, out: Path, tmp_path: Path) -> None:
    run(model, out, "--type", "q8_0")
    again = tmp_path / "again.gguf"
    assert "--allow-requantize" in run(out, again, "--type", "q4_k_m", status=1).stderr
    assert not again.exists()
    run(out, again, "--type", "q4_k_m", "--allow-requantize")
    first, second = read(out)[0], read(again)[0]
    values = iq.dequantize(first["blk.1.attn_v.weight"].data.reshape(6, -1), "q8_0")
    assert np.array_equal(second["blk.1.attn_v.weight"].data, ggmls(values, "q4_k").reshape(-1))


def test_safetensors(tmp_path: Path, out: Path) -> None:
    from ml_dtypes import bfloat16

    weights = {"model.a.weight": f32(4, 256), "model.b.weight": f32(3, 512).astype(np.float16), "norm.weight": f32(256)}
    save_file(weights | {"model.c.weight": f32(2, 256).astype(bfloat16)}, tmp_path / "in.safetensors", metadata={"format": "pt"})
    run(tmp_path / "in.safetensors", out, "--type", "q8_0")
    tensors, metadata = read(out)
    assert {n: t.format for n, t in tensors.items()} == {f"model.{x}.weight": "q8_0" for x in "abc"} | {"norm.weight": "f32"}
    assert np.array_equal(tensors["model.b.weight"].data, ggmls(weights["model.b.weight"].astype(np.float32), "q8_0").reshape(-1))
    assert metadata["general.file_type"] == MIXES["q8_0"].file_type
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    assert "bad.safetensors" in run(tmp_path / "bad.safetensors", out, "--type", "q8_0", "--force", status=1).stderr
    run(tmp_path / "none.safetensors", out, "--type", "q8_0", "--force", status=1)


# ---- Nothing is lost


def test_what_cannot_be_quantized(model: Path, out: Path, tmp_path: Path) -> None:
    for kind in ("q8_1", "q9_9"):
        assert kind in run(model, out, "--type", kind, status=2).stderr
    assert "No such file" in run(tmp_path / "none.gguf", out, "--type", "q4_0", status=1).stderr
    (tmp_path / "text.gguf").write_text("text")
    run(tmp_path / "text.gguf", out, "--type", "q4_0", status=1)
    assert not out.exists()


@pytest.mark.parametrize(("value", "type", "word"), [(np.nan, "q4_k", "NaN"), (3e38, "q8_0", "too large"), (1e6, "f16", "too large")])
def test_weights_that_a_type_cannot_hold(out: Path, tmp_path: Path, value: float, type: str, word: str) -> None:
    bad = np.ones((2, 256), np.float32)
    bad[1, 3] = value
    iq.gguf.write(tmp_path / "bad.gguf", {"fine.weight": f32(4, 256), "bad.weight": bad})
    refused = run(tmp_path / "bad.gguf", out, "--type", type, "--pure", status=1).stderr
    assert "'bad.weight'" in refused
    assert word in refused
    assert [path.name for path in tmp_path.iterdir()] == ["bad.gguf"]


def test_places_that_cannot_be_written(model: Path, out: Path, tmp_path: Path) -> None:
    whole = model.read_bytes()
    for same in (model, tmp_path / "." / "in.gguf"):
        assert "replaced by what is made of it" in run(model, same, "--type", "q8_0", "--force", status=1).stderr
    link = tmp_path / "link.gguf"
    link.symlink_to(model)
    run(model, link, "--type", "q8_0", "--force", status=1)
    assert model.read_bytes() == whole
    out.write_bytes(b"mine")
    assert "--force" in run(model, out, "--type", "q8_0", status=1).stderr
    assert out.read_bytes() == b"mine"
    run(model, out, "--type", "q8_0", "--force")
    assert out.read_bytes()[:4] == b"GGUF"
    assert "no folder" in run(model, tmp_path / "none" / "out.gguf", "--type", "q8_0", status=1).stderr
    assert "is a folder" in run(model, tmp_path, "--type", "q8_0", status=1).stderr


def test_a_full_disk_is_seen_before_the_work(model: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1000, 990, 10))  # type: ignore[attr-defined]
    assert "10 free" in run(model, out, "--type", "q8_0", status=1).stderr
    assert not out.exists()


def test_nothing_to_do(out: Path, tmp_path: Path) -> None:
    iq.gguf.write(tmp_path / "norms.gguf", {"a_norm.weight": f32(512)})
    assert "'a_norm.weight' stays as it is: no matrix" in run(tmp_path / "norms.gguf", out, "--type", "q8_0", status=1).stderr
    assert not out.exists()


def test_facts(model: Path, out: Path) -> None:
    converted = json.loads(run(model, out, "--type", "q8_0", "--json").stdout)
    assert converted[0] == {
        "name": "token_embd.weight", "was": "f32", "format": "q8_0",
        "bytes_before": 40 * 512 * 4, "bytes_after": 40 * 512 // 32 * 34, "why": "",
    }  # fmt: skip
    assert len(converted) == len(WEIGHTS) + 1


def test_one_tensor_is_held_at_a_time(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor is written before the next is quantized."""
    from iq.gguf import convert

    iq.gguf.write(tmp_path / "in.gguf", {f"blk.{i}.w.weight": f32(8, 256, seed=i) for i in range(4)})
    events: list[str] = []
    quantize, write = convert.quantize_part, gguf.GGUFWriter.write_tensor_data
    monkeypatch.setattr(convert, "quantize_part", lambda *a: events.append("made") or quantize(*a))
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", lambda self, data: events.append("written") or write(self, data))
    quantize_file(tmp_path / "in.gguf", out, "q4_0")
    assert events == ["made", "written"] * 4


def test_errors_of_the_function(model: Path, out: Path) -> None:
    with pytest.raises(FormatError):
        quantize_file(model, out, "q4_9")
    with pytest.raises(GGUFError):
        quantize_file(model, model, "q4_0")
