"""Which format each tensor of a model is quantized to: llama.cpp's mixes, the rules of its quantization tool.

Source: llama.cpp, src/llama-quant.cpp (commits 007dbbf and 0c1e570). A rule names mixes, when it applies, and a format; of those for a
tensor's kind the first that applies decides, else the mix's own format.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from iq.errors import FormatError
from iq.formats import FORMATS, Format, format_of


@dataclass(frozen=True)
class Mix:
    """A mix by llama.cpp's name in lower case: the number that files of it carry as general.file_type, and the format of most tensors."""

    name: str
    file_type: int
    format: str


MIXES: dict[str, Mix] = {
    mix.name: mix
    for mix in (
        Mix("f32", 0, "f32"),
        Mix("f16", 1, "f16"),
        Mix("bf16", 32, "bf16"),
        Mix("q4_0", 2, "q4_0"),
        Mix("q4_1", 3, "q4_1"),
        Mix("q5_0", 8, "q5_0"),
        Mix("q5_1", 9, "q5_1"),
        Mix("q8_0", 7, "q8_0"),
        Mix("q2_k", 10, "q2_k"),
        Mix("q2_k_s", 21, "q2_k"),
        Mix("q3_k_s", 11, "q3_k"),
        Mix("q3_k_m", 12, "q3_k"),
        Mix("q3_k_l", 13, "q3_k"),
        Mix("q4_k_s", 14, "q4_k"),
        Mix("q4_k_m", 15, "q4_k"),
        Mix("q5_k_s", 16, "q5_k"),
        Mix("q5_k_m", 17, "q5_k"),
        Mix("q6_k", 18, "q6_k"),
        Mix("iq1_s", 24, "iq1_s"),
        Mix("iq1_m", 31, "iq1_m"),
        Mix("iq2_xxs", 19, "iq2_xxs"),
        Mix("iq2_xs", 20, "iq2_xs"),
        Mix("iq2_s", 28, "iq2_xs"),
        Mix("iq2_m", 29, "iq2_s"),
        Mix("iq3_xxs", 23, "iq3_xxs"),
        Mix("iq3_xs", 22, "iq3_s"),
        Mix("iq3_s", 26, "iq3_s"),
        Mix("iq3_m", 27, "iq3_s"),
        Mix("iq4_nl", 25, "iq4_nl"),
        Mix("iq4_xs", 30, "iq4_xs"),
        Mix("tq1_0", 36, "tq1_0"),
        Mix("tq2_0", 37, "tq2_0"),
        Mix("mxfp4_moe", 38, "mxfp4"),
        Mix("nvfp4", 39, "nvfp4"),
        Mix("q1_0", 40, "q1_0"),
        Mix("q2_0", 41, "q2_0"),
    )
}
# llama.cpp's short names.
_ALIASES = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m", "mxfp4": "mxfp4_moe"}


def mix_of(name: str) -> Mix:
    """The mix of that name, in either case; q3_k, q4_k and q5_k are the medium ones. Raises FormatError for another."""
    lower = name.lower()
    if mix := MIXES.get(_ALIASES.get(lower, lower)):
        return mix
    raise FormatError(f"models cannot be quantized to {name!r}; use one of {', '.join((*MIXES, *_ALIASES))}")


class Kind(Enum):
    """What a tensor is to the rules; the value is a pattern of its name. The first that is found decides."""

    OUTPUT = r"^output\.weight$"
    TOKEN_EMBEDDING = r"^(per_layer_)?token_embd\.weight$"  # noqa: S105 - a pattern
    ATTENTION_V = r"attn_qkv\.weight|attn_kv_b\.weight|attn_v\.weight"
    ATTENTION_K = r"attn_k\.weight"
    ATTENTION_Q = r"attn_q\.weight"
    ATTENTION_OUTPUT = r"attn_output\.weight"
    FFN_UP = r"ffn_up"
    FFN_GATE = r"ffn_gate"
    FFN_DOWN = r"ffn_down"
    OTHER = r""

    @classmethod
    def of(cls, name: str) -> Kind:
        return next(kind for kind in cls if re.search(kind.value, name))


@dataclass(frozen=True)
class Model:
    """What the rules ask of a model.

    architecture: "llama". layers, heads, heads_kv, experts: its metadata's numbers, 0 for one that is not there. attention_vs: how many
    tensors are of kind ATTENTION_V. tied: whether the token embedding serves as output too. imatrix: whether importances are given.
    """

    architecture: str = ""
    layers: int = 0
    heads: int = 0
    heads_kv: int = 0
    experts: int = 0
    attention_vs: int = 0
    tied: bool = True
    imatrix: bool = False

    @property
    def gqa(self) -> int:
        """Heads of queries for each of keys and values."""
        return self.heads // self.heads_kv if self.heads_kv else 0

    @property
    def falcon(self) -> bool:
        return self.architecture == "falcon"

    @property
    def llama_70b(self) -> bool:
        return self.architecture == "llama" and self.layers == 80 and self.heads != self.heads_kv


@dataclass(frozen=True)
class Place:
    """A tensor among those of its kind: its number, of how many, and in which model."""

    number: int
    count: int
    model: Model

    @property
    def more_bits(self) -> bool:
        """In the first and last eighth of the layers, and every third between."""
        eighth = self.count // 8
        return self.number < eighth or self.number >= 7 * self.count // 8 or (self.number - eighth) % 3 == 2

    @property
    def first_eighth(self) -> bool:
        return self.number < self.count // 8

    @property
    def middle(self) -> bool:
        return self.count // 8 <= self.number < 7 * self.count // 8


class Rule(NamedTuple):
    mixes: str
    format: str
    when: Callable[[Place], bool] = lambda _: True


_LOW = "iq2_xxs iq2_xs iq2_s iq2_m iq1_s iq1_m"
_EIGHT_EXPERTS = "q2_k iq3_xs iq3_xxs q3_k_s q3_k_m iq4_nl q4_k_s q4_k_m iq3_s iq3_m iq4_xs"


def _gqa_4(p: Place) -> bool:
    return p.model.gqa >= 4


def _eight_experts(p: Place) -> bool:
    return p.model.experts == 8


_RULES: dict[Kind, tuple[Rule, ...]] = {
    Kind.TOKEN_EMBEDDING: (
        Rule("iq2_xxs iq2_xs iq1_s iq1_m", "q2_k"),
        Rule("iq2_s iq2_m iq3_xxs", "iq3_s"),
        Rule("tq1_0 tq2_0 q2_0", "q4_k"),
    ),
    Kind.ATTENTION_V: (
        Rule(_LOW, "q4_k", lambda p: p.model.gqa >= 4 or p.model.experts >= 4),
        Rule("iq2_s iq2_m", "iq3_s"),
        Rule("iq2_xxs iq2_xs iq1_s iq1_m", "q2_k"),
        Rule("", "q8_0", _eight_experts),
        Rule("q2_k q2_k_s iq3_xxs iq3_xs iq3_s", "q4_k", _gqa_4),
        Rule("q2_k", "q3_k"),
        Rule("iq3_xxs", "iq3_s", lambda p: not p.model.imatrix),
        Rule("iq3_m", "q4_k"),
        Rule("q3_k_m", "q5_k", lambda p: p.number < 2),
        Rule("q3_k_m", "q4_k"),
        Rule("q3_k_l", "q5_k"),
        Rule("iq4_nl iq4_xs", "q5_k", _gqa_4),
        Rule("q4_k_m q5_k_m", "q6_k", lambda p: p.more_bits),
        Rule("q4_k_s", "q5_k", lambda p: p.number < 4),
    ),
    Kind.ATTENTION_K: (
        Rule(_LOW, "q4_k", _eight_experts),
        Rule("", "q8_0", _eight_experts),
        Rule("iq3_xs", "iq3_xxs"),
        Rule("iq3_xxs", "iq2_s"),
    ),
    Kind.ATTENTION_Q: (Rule("iq3_xs", "iq3_xxs"), Rule("iq3_xxs", "iq2_s")),
    Kind.ATTENTION_OUTPUT: (
        Rule(_LOW, "q5_k", _eight_experts),
        Rule("iq1_s iq1_m", "iq2_xxs"),
        Rule("iq2_s iq2_m", "iq3_s"),
        Rule("q3_k_l", "q4_k", lambda p: p.model.falcon),
        Rule(_EIGHT_EXPERTS, "q5_k", lambda p: _eight_experts(p) and not p.model.falcon),
        Rule("q2_k", "q3_k", lambda p: not (p.model.falcon or _eight_experts(p))),
        Rule("iq3_xxs", "iq3_s", lambda p: not (p.model.falcon or _eight_experts(p))),
        Rule("q3_k_m iq3_m", "q4_k", lambda p: not (p.model.falcon or _eight_experts(p))),
        Rule("q3_k_l", "q5_k", lambda p: not _eight_experts(p)),
    ),
    Kind.FFN_UP: (Rule("iq3_xs", "iq3_xxs", lambda p: p.middle),),
    Kind.FFN_GATE: (Rule("iq3_xs", "iq3_xxs", lambda p: p.middle),),
    Kind.FFN_DOWN: (
        Rule("iq2_s iq2_m", "iq3_s", lambda p: p.first_eighth),
        Rule("iq2_xxs iq2_xs iq1_s iq1_m", "q2_k", lambda p: p.first_eighth),
        Rule("q2_k", "q3_k"),
        Rule("q2_k_s", "q4_k", lambda p: p.first_eighth),
        Rule("iq3_xxs", "q4_k", lambda p: p.first_eighth and not p.model.imatrix),
        Rule("iq3_xxs", "q3_k", lambda p: not p.model.imatrix),
        Rule("q3_k_m", "q5_k", lambda p: p.number < p.count // 16),
        Rule("q3_k_m", "q4_k", lambda p: p.more_bits or not p.model.falcon),
        Rule("iq3_m", "q4_k", lambda p: p.first_eighth or (_eight_experts(p) and p.more_bits)),
        Rule("q3_k_l", "q4_k", lambda p: p.model.falcon),
        Rule("q3_k_l", "q5_k"),
        Rule("q4_k_m", "q6_k", lambda p: p.number < p.count // 16 if p.model.falcon else p.more_bits),
        Rule("q4_k_m", "q5_k", lambda p: p.model.falcon and p.more_bits),
        Rule("iq4_nl iq4_xs", "q5_k", lambda p: p.first_eighth and not p.model.imatrix),
        Rule("q5_k_m", "q6_k", lambda p: p.more_bits),
        Rule("q4_k_s", "q5_k", lambda p: p.first_eighth and not p.model.falcon),
        Rule("q4_0", "q4_1", lambda p: p.first_eighth and p.model.imatrix),
        Rule("q5_0", "q5_1", lambda p: p.first_eighth and p.model.imatrix),
    ),
}

# What takes the place of a format whose blocks do not fit a row; where nothing is named, or that does not fit either, f16.
_NARROWER = {
    **dict.fromkeys(("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_xs"), "iq4_nl"),
    **dict.fromkeys(("q2_0", "q2_k", "q3_k", "tq1_0", "tq2_0"), "q4_0"),
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
}

# Names of matrices that stay as they are, parts of names mostly, and why.
_KEPT: tuple[tuple[str, str], ...] = (
    (r"_norm\.weight", "a norm"),
    (r"ffn_gate_inp\.weight|ffn_gate_tid2eid\.weight", "it chooses experts"),
    (r"altup|laurel|per_layer_model_proj|ssm_conv1d|shortconv\.conv\.weight|indexer\.[kq]_proj\.weight", "small, and sensitive"),
    (r"time_mix_(first|[wv][012]|a[012]|g[12]|decay_w[12]|lerp_fused)\.weight", "small, and sensitive"),
    (
        r"^position_embd\.weight$|^token_types\.weight$|attn_rel_b\.weight|\.position_embd|sam\.pos_embd|\.rel_pos",
        "positions or token types",
    ),
    (r"sam\.neck\.|sam\.net_|\.patch_embd|\.patch_merger|a\.rvq\.codebook|mm\.a\.code_embd", "of the vision or audio encoder"),
)


class Shaped(NamedTuple):
    """A tensor by name and shape, rows last."""

    name: str
    shape: tuple[int, ...]


class Choice(NamedTuple):
    """The format that a tensor is to have, and a remark: why it is another than the mix's, or None and why it stays as it is."""

    format: type[Format] | None
    why: str = ""


def choose_formats(
    tensors: Sequence[Shaped],
    mix: Mix,
    model: Model,
    overrides: Iterable[tuple[str, str]] = (),
    pure: bool = False,
) -> dict[str, Choice]:
    """The format of each tensor of a model, by name.

    overrides: patterns of names (regular expressions) and formats; the first whose pattern is found in a name decides. pure: every matrix
    gets the mix's format. Raises FormatError for a format or a pattern that is none.
    """
    patterns = [(_pattern(text), format_of(name)) for text, name in overrides]
    counts: dict[Kind, int] = {}
    chosen: dict[str, Choice] = {}
    # By layers, then by name: a rule's "first layers" are counted in this order, whatever the file's.
    for tensor in sorted(tensors, key=lambda t: (_layer(t.name), t.name)):
        if why := _why_kept(tensor):
            chosen[tensor.name] = Choice(None, why)
            continue
        given = next((fmt for pattern, fmt in patterns if pattern.search(tensor.name)), None)
        fmt = given or FORMATS[mix.format]
        if given is None and not pure and fmt.kind == "weights":
            kind = Kind.of(tensor.name)
            fmt = FORMATS[_by_rules(kind, counts.get(kind, 0), tensor, mix, model)]
            counts[kind] = counts.get(kind, 0) + 1
        chosen[tensor.name] = _fitting(fmt, tensor.shape[-1])
    return chosen


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise FormatError(f"{text!r} is no pattern of tensors' names: {error}") from None


def _layer(name: str) -> int:
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _why_kept(tensor: Shaped) -> str:
    if len(tensor.shape) < 2:
        return "no matrix"
    if len(tensor.shape) > 3:
        return f"of {len(tensor.shape)} dimensions"
    if not tensor.name.endswith("weight"):
        return "its name does not end in weight"
    return next((why for part, why in _KEPT if re.search(part, tensor.name)), "")


def _by_rules(kind: Kind, number: int, tensor: Shaped, mix: Mix, model: Model) -> str:
    """The format by the rules of a tensor's kind. number: how many of its kind have come before it."""
    default = FORMATS[mix.format]
    if kind is Kind.OUTPUT or (kind is Kind.TOKEN_EMBEDDING and model.tied):
        if mix.name == "mxfp4_moe" or model.falcon or tensor.shape[-1] % default.block_size:
            return "q8_0"
        return "q5_k" if mix.name in {*_LOW.split(), "iq3_xxs"} else "q8_0" if mix.format == "q8_0" else "q6_k"
    if mix.name == "mxfp4_moe":
        return "mxfp4" if len(tensor.shape) > 2 and tensor.shape[0] > 1 else "q8_0"
    low = mix.name in _LOW.split()
    # Tensors of experts come in any order, so their own number counts.
    if model.experts > 1 and not low and kind in (Kind.FFN_UP, Kind.FFN_GATE, Kind.FFN_DOWN):
        number = _layer(tensor.name)
    place = Place(number, model.attention_vs if kind is Kind.ATTENTION_V else model.layers, model)
    rules = (r for r in _RULES.get(kind, ()) if (mix.name in r.mixes.split() if r.mixes else not low))
    name = next((rule.format for rule in rules if rule.when(place)), mix.format)
    if kind is Kind.ATTENTION_V and model.llama_70b and not low and name in ("q3_k", "q4_k"):
        return "q5_k"
    return name


def _fitting(fmt: type[Format], k: int) -> Choice:
    """The format, or what takes its place where rows of k are no whole blocks of it."""
    if k % fmt.block_size == 0:
        return Choice(fmt)
    narrower = FORMATS[_NARROWER.get(fmt.name, "f16")]
    return Choice(narrower if k % narrower.block_size == 0 else FORMATS["f16"], f"rows of {k} are no whole blocks of {fmt.name}")
