"""Models by what llama.cpp's rules ask of them: names and shapes of tensors. Its tool gave their types (tests/golden/mixes.json)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Described:
    """A model: its metadata's numbers, and which tensors its layers have."""

    architecture: str
    layers: int
    heads: int
    heads_kv: int
    tensors: tuple[str, ...]
    experts: int = 0
    tied: bool = False
    k: int = 256

    def metadata(self) -> dict[str, int | float | str]:
        a = self.architecture
        numbers: dict[str, int | float | str] = {
            "general.architecture": a,
            f"{a}.block_count": self.layers,
            f"{a}.context_length": 512,
            f"{a}.embedding_length": 64 * self.heads,
            f"{a}.feed_forward_length": 256,
            f"{a}.attention.head_count": self.heads,
            f"{a}.attention.head_count_kv": self.heads_kv,
            f"{a}.rope.dimension_count": 64,
            f"{a}.attention.layer_norm_rms_epsilon": 1e-5,
            f"{a}.attention.layer_norm_epsilon": 1e-5,
        }
        if self.experts:
            numbers |= {f"{a}.expert_count": self.experts, f"{a}.expert_used_count": 2}
        return numbers

    def shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (8, self.k), "output_norm.weight": (self.k,)}
        if not self.tied:
            shapes["output.weight"] = (8, self.k)
        for layer in range(self.layers):
            for name in self.tensors:
                experts = (self.experts,) if name.endswith("_exps") else ()
                shapes[f"blk.{layer}.{name}.weight"] = (self.k,) if "norm" in name else (*experts, 4, self.k)
        return shapes


_ATTENTION = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm")
_FFN = ("ffn_gate", "ffn_up", "ffn_down")
MODELS = {
    "llama 8B": Described("llama", 32, 32, 8, (*_ATTENTION, *_FFN)),
    "tied": Described("llama", 22, 16, 16, (*_ATTENTION, *_FFN), tied=True),
    "llama 70B": Described("llama", 80, 64, 8, ("attn_q", "attn_v", "ffn_down")),
    "mixtral": Described("llama", 16, 32, 8, (*_ATTENTION, "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"), experts=8),
    "qwen2moe": Described(
        "qwen2moe", 24, 16, 16, (*_ATTENTION, "ffn_down_exps", "ffn_down_shexp", "ffn_up_exps", "ffn_gate_shexp"), experts=60
    ),
    "falcon": Described("falcon", 32, 71, 1, ("attn_norm", "attn_qkv", "attn_output", "ffn_up", "ffn_down")),
    "rows of 576": Described("llama", 30, 9, 3, (*_ATTENTION, *_FFN), tied=True, k=576),
    "rows of 80": Described("llama", 4, 9, 3, (*_ATTENTION, *_FFN), k=80),
}
