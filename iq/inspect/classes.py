"""Instructions of AMDGPU, x86, aarch64 and PTX, sorted into classes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache

# First match wins. A class that ends in " by width" becomes the class and the bits that one lane moves: "global load 128".
_AMDGPU = (
    (r"v_dot|v_dual_dot", "dot"),
    (r"v_s?mfma", "mfma"),
    (r"v_wmma|v_swmmac", "wmma"),
    (r"v_accvgpr", "agpr move"),
    (r"scratch_", "scratch"),
    (r"(global|flat|buffer)_load", "global load by width"),
    (r"(global|flat|buffer)_store", "global store by width"),
    (r"(global|flat|buffer)_atomic", "atomic"),
    (r"(global|buffer)_(gl[01]_)?(inv|wb)", "cache"),
    (r"ds_(read|load)", "lds read"),
    (r"ds_(write|store)", "lds write"),
    (r"ds_", "lds permute"),
    (r"s_(buffer_)?load", "scalar load"),
    (r"s_barrier", "barrier"),
    (r"s_(c?branch|setpc|swappc|call|endpgm)", "branch"),
    (r"s_(waitcnt|wait_|delay_alu|nop|clause|code_end)", "wait"),
    (r"v_", "valu"),
    (r"s_", "salu"),
)
_X86 = (
    (r"vpmadd|vpdp", "dot"),
    (r"vf(n?m)(add|sub)", "fma"),
    (r"call", "call"),
    (r"j|ret", "branch"),
    (r"v", "vector"),
    (r"", "scalar"),
)
_AARCH64 = (
    (r"[su]dot|usdot|[su]mmla", "dot"),
    (r"fn?m(l[as]|add|sub)", "fma"),
    (r"blr?$", "call"),
    (r"b$|b\.|br$|cbn?z|tbn?z|ret", "branch"),
    (r"ld", "load"),
    (r"st", "store"),
    (r"", "other"),
)
_PTX = (
    (r"dp[42]a", "dot"),
    (r"(wg)?mma", "mma"),
    (r"ld\.global|ld\.volatile\.global", "global load by width"),
    (r"st\.global|st\.volatile\.global", "global store by width"),
    (r"cp\.async", "global to lds"),
    (r"ld\.shared|ldmatrix", "lds read"),
    (r"st\.shared|stmatrix", "lds write"),
    (r"(ld|st)\.local", "scratch"),
    (r"ld\.param|ld\.const", "scalar load"),
    (r"atom|red\.", "atomic"),
    (r"shfl", "shuffle"),
    (r"bar|barrier", "barrier"),
    (r"bra|ret|call|exit", "branch"),
    (r"", "alu"),
)
_WIDTHS: tuple[tuple[str, Callable[[re.Match[str]], int]], ...] = (
    (r"dwordx(\d)", lambda m: 32 * int(m[1])),
    (r"dword", lambda m: 32),
    (r"_[us]?short|_(?:d16_(?:hi_)?)?[biu]16", lambda m: 16),
    (r"_[us]?byte|_(?:d16_(?:hi_)?)?[iu]8", lambda m: 8),
    (r"_b(\d+)", lambda m: int(m[1])),
    (r"\.v(\d)(?:\.\w+)*?\.[busf](\d+)", lambda m: int(m[1]) * int(m[2])),
    (r"\.[busf](\d+)", lambda m: int(m[1])),
)

Mix = Mapping[str, int]


@cache
def classify(mnemonic: str, isa: str) -> str:
    """The class of an instruction of "rocm", "cuda" or a CPU's instruction set ("x86_64", "aarch64")."""
    table = {"rocm": _AMDGPU, "x86_64": _X86, "aarch64": _AARCH64, "cuda": _PTX}[isa]
    name = next((name for pattern, name in table if re.match(pattern, mnemonic)), "unknown")
    kind, by_width, _ = name.partition(" by width")
    return f"{kind} {_width(mnemonic)}" if by_width else name


def _width(mnemonic: str) -> str:
    """Bits that a memory instruction moves for one lane."""
    return next((str(bits(found)) for pattern, bits in _WIDTHS if (found := re.search(pattern, mnemonic))), "of unknown width")


def ptx_mixes(ptx: str) -> dict[str, Mix]:
    """How many PTX instructions of each class each kernel has, by its name. (The driver's own compiler makes the machine code of them.)"""
    mixes: dict[str, Mix] = {}
    for name, body in re.findall(r"\.entry (\w+)\(.*?\n\{(.*?)\n\}", ptx, re.DOTALL):
        instructions = re.findall(r"^\t(?:@!?%\w+ )?([a-z][\w.]*)", body, re.MULTILINE)
        mixes[name] = dict(sorted(Counter(classify(i, "cuda") for i in instructions).items()))
    return mixes
