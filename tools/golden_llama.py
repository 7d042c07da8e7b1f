"""Writes tests/golden/smollm2*: what llama.cpp itself makes of the model of examples/llm.py.

    .venv/bin/pip install xllamacpp==2026.10.11549
    .venv/bin/python tools/golden_llama.py demo/SmolLM2-135M-Instruct.Q4_1.gguf

The package is llama.cpp in one library (its build 11549), whose C functions are called here. The model runs twice: "quantized", as the
file and llama.cpp's defaults have it (activations rounded to 8 bits, a cache of f16, flash attention); and "float", with the same weights
as f32, a cache of f32 and plain attention, so that nothing is rounded but by f32 arithmetic.
"""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import iq

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "golden"

# 32 tokens.
PROMPT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nExplain gravity<|im_end|>\n<|im_start|>assistant\n"
)
ANSWER = 32  # tokens

# Contractions, digits, spaces, lines, other scripts, signs; tokens that steer, and what only looks like one.
TEXTS = (
    "It's 2024, we've paid $1,234.50 -- they'LL pay the rest.",
    "  two spaces,\ta tab \n\n and  three   lines\r\n\n",
    "naïve café, Größe, Ελλάδα, мир, 東京, 한국어, العربية, हिन्दी ½ ²",
    "🙂👩‍👩‍👧 → ∑ x_i ≤ 10e-3; f(x)=x**2",
    "<|im_start|>user\nx<|im_end|><|im_end|> <|im_start <|endoftext|>!",
    "",
)


class Structure(ctypes.Structure):
    """Any of llama.cpp's: they go in and out whole, so that it only has to be as large as the largest."""

    _fields_ = (("words", ctypes.c_int32 * 128),)


# 32-bit words of llama_context_params, and what they hold by default.
FLASH_ATTENTION, TYPE_K, TYPE_V = 13, 26, 27
DEFAULTS = {FLASH_ATTENTION: -1, TYPE_K: 1, TYPE_V: 1}  # as llama.cpp sees fit; f16

# Results and arguments of what is called.
FUNCTIONS = {
    "llama_backend_init": (None, ()),
    "llama_model_default_params": (Structure, ()),
    "llama_context_default_params": (Structure, ()),
    "llama_model_load_from_file": (ctypes.c_void_p, (ctypes.c_char_p, Structure)),
    "llama_init_from_model": (ctypes.c_void_p, (ctypes.c_void_p, Structure)),
    "llama_model_get_vocab": (ctypes.c_void_p, (ctypes.c_void_p,)),
    "llama_vocab_n_tokens": (ctypes.c_int32, (ctypes.c_void_p,)),
    "llama_tokenize": (
        ctypes.c_int32,
        (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool, ctypes.c_bool),
    ),
    "llama_batch_get_one": (Structure, (ctypes.c_void_p, ctypes.c_int32)),
    "llama_decode": (ctypes.c_int32, (ctypes.c_void_p, Structure)),
    "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), (ctypes.c_void_p, ctypes.c_int32)),
}


class Llama:
    """A model of llama.cpp's, with one context."""

    def __init__(self, path: Path, context: dict[int, int]) -> None:
        import xllamacpp.xllamacpp as extension

        self.lib = ctypes.CDLL(extension.__file__)
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(self.lib, name)
            function.restype, function.argtypes = result, arguments
        self.lib.llama_backend_init()
        model = self.lib.llama_model_load_from_file(str(path).encode(), self.lib.llama_model_default_params())
        assert model, f"llama.cpp cannot load {path}"
        settings = self.lib.llama_context_default_params()
        assert {word: settings.words[word] for word in DEFAULTS} == DEFAULTS, "llama_context_params has another layout"
        for word, value in context.items():
            settings.words[word] = value
        self.context = self.lib.llama_init_from_model(model, settings)
        self.vocab = self.lib.llama_model_get_vocab(model)

    def tokens(self, text: str) -> list[int]:
        """Without a token for the beginning; what is written as <|...|> is a token."""
        encoded, tokens = text.encode(), np.empty(1024, np.int32)
        count = self.lib.llama_tokenize(self.vocab, encoded, len(encoded), tokens.ctypes.data, tokens.size, False, True)
        return tokens[:count].tolist()

    def logits(self, tokens: list[int]) -> NDArray[np.float32]:
        """Of what follows these tokens, which come after those of earlier calls."""
        held = np.array(tokens, np.int32)
        assert self.lib.llama_decode(self.context, self.lib.llama_batch_get_one(held.ctypes.data, held.size)) == 0
        found = self.lib.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(found, (self.lib.llama_vocab_n_tokens(self.vocab),)).copy()


def as_floats(path: Path, floats: Path) -> None:
    """A GGUF file with the same weights in f32."""
    with iq.gguf.open(path) as file:
        tensors = {}
        for name in file.names:
            packed, format, shape = file.packed(name)
            tensors[name] = iq.dequantize(packed.reshape(*shape[:-1], -1), format)
        iq.gguf.write(floats, tensors, file.metadata)


def run(llama: Llama, name: str) -> dict[str, object]:
    """The tokens most likely to follow the prompt, one by one: the likeliest two each, with their logits. Saves the first's logits, all."""
    logits = llama.logits(llama.tokens(PROMPT))
    np.save(FOLDER / f"smollm2_{name}.npy", logits)
    answer, top = [], []
    for _ in range(ANSWER):
        best = np.argsort(logits)[:-3:-1].tolist()
        answer.append(best[0])
        top.append({token: round(float(logits[token]), 4) for token in best})
        logits = llama.logits(best[:1])
    return {"answer": answer, "top": top}


def main() -> None:
    path = Path(sys.argv[1])
    quantized = Llama(path, {})
    with tempfile.TemporaryDirectory() as scratch:
        as_floats(path, Path(scratch) / "f32.gguf")
        float_ = Llama(Path(scratch) / "f32.gguf", {FLASH_ATTENTION: 0, TYPE_K: 0, TYPE_V: 0})
        found = {
            "made_by": "tools/golden_llama.py",
            "texts": [{"text": text, "tokens": quantized.tokens(text)} for text in (PROMPT, *TEXTS)],
            "quantized": run(quantized, "quantized"),
            "float": run(float_, "float"),
        }
    (FOLDER / "smollm2.json").write_text(json.dumps(found, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
