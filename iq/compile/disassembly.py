"""Instructions of compiled kernels, sorted into classes: from llvm-objdump for AMDGPU and x86 ELFs, from the PTX text for CUDA."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

# The first LLVM that decodes all of the supported gfx targets, and the newest to look for.
OLDEST_LLVM, NEWEST_LLVM = 19, 25

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
    (r"_[us]byte|_(?:d16_(?:hi_)?)?[iu]8", lambda m: 8),
    (r"_b(\d+)", lambda m: int(m[1])),
    (r"\.v(\d)(?:\.\w+)*?\.[busf](\d+)", lambda m: int(m[1]) * int(m[2])),
    (r"\.[busf](\d+)", lambda m: int(m[1])),
)

Mix = Mapping[str, int]


@cache
def classify(mnemonic: str, family: str) -> str:
    """The class of an instruction of a target family ("rocm", "cpu", "cuda")."""
    table = {"rocm": _AMDGPU, "cpu": _X86, "cuda": _PTX}[family]
    name = next((name for pattern, name in table if re.match(pattern, mnemonic)), "unknown")
    kind, by_width, _ = name.partition(" by width")
    return f"{kind} {_width(mnemonic)}" if by_width else name


def _width(mnemonic: str) -> str:
    """Bits that a memory instruction moves for one lane."""
    return next((str(bits(found)) for pattern, bits in _WIDTHS if (found := re.search(pattern, mnemonic))), "of unknown width")


@dataclass(frozen=True)
class Objdump:
    """An llvm-objdump that can be used."""

    executable: str

    @classmethod
    def find(cls) -> Objdump | str:
        """IQ_LLVM_OBJDUMP, or the newest of LLVM 19 or later on PATH; a sentence saying why not where there is none."""
        named = os.environ.get("IQ_LLVM_OBJDUMP")
        names = [named] if named else ["llvm-objdump", *(f"llvm-objdump-{n}" for n in range(NEWEST_LLVM, OLDEST_LLVM - 1, -1))]
        unfit = []
        for name in names:
            executable = shutil.which(name)
            if executable is None:
                continue
            said = subprocess.run([executable, "--version"], capture_output=True, text=True, check=False).stdout
            version = re.search(r"LLVM version (\d+)", said)
            if version and int(version[1]) >= OLDEST_LLVM and "amdgcn" in said:
                return cls(executable)
            unfit.append(f"{executable} is {'LLVM ' + version[1] if version else 'not LLVM'}")
        return (
            f"it needs llvm-objdump of LLVM {OLDEST_LLVM} or later with AMDGPU, on PATH or named by IQ_LLVM_OBJDUMP"
            f" ({'; '.join(unfit) or 'looked for ' + ', '.join(names)})"
        )

    def listing(self, elf: bytes, family: str, encodings: bool = False) -> str:
        """The disassembly of an ELF, with `encodings` the words of each instruction too. Raises RuntimeError when it fails."""
        with tempfile.NamedTemporaryFile(suffix=".elf") as file:
            file.write(elf)
            file.flush()
            options = [] if encodings else ["--no-show-raw-insn"]
            # Without real-true16, gfx11's 16-bit instructions decode as unknown ones.
            options += ["--mattr=+real-true16"] if family == "rocm" else []
            done = subprocess.run([self.executable, "-d", *options, file.name], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{self.executable} failed: {done.stderr.strip()[:500]}")
        return done.stdout

    def mixes(self, elf: bytes, functions: Mapping[str, tuple[int, int]], family: str) -> dict[str, Mix]:
        """How many instructions of each class each function has, by its name; `functions` are (address, bytes).

        Raises RuntimeError when the disassembler fails.
        """
        starts = sorted((address, size, name) for name, (address, size) in functions.items())
        counts: dict[str, Counter[str]] = {name: Counter() for name in functions}
        for address, mnemonics in _instructions(self.listing(elf, family)):
            at = bisect_right(starts, address, key=lambda s: s[0]) - 1
            if at >= 0 and address < starts[at][0] + starts[at][1]:  # else padding between functions
                counts[starts[at][2]].update(classify(mnemonic, family) for mnemonic in mnemonics)
        return {name: dict(sorted(count.items())) for name, count in counts.items()}


def mnemonics(text: str) -> list[str]:
    """Those of an AMDGPU instruction as llvm-objdump prints it; one of dual issue has two."""
    return [half.split()[0] for half in text.split("::")]


def _instructions(listing: str) -> list[tuple[int, list[str]]]:
    """Address and mnemonics of each line; a dual-issue instruction has two."""
    found = []
    for line in listing.splitlines():
        # AMDGPU: "\tv_add ... // 000000001708: ...". x86: "    2991:      \tmovq ...".
        amdgpu = re.match(r"\t(?P<text>.*?)\s*// (?P<address>[0-9A-F]+):", line)
        instruction = amdgpu or re.match(r"\s*(?P<address>[0-9a-f]+):\s+(?P<text>\S.*)", line)
        if instruction:
            text = instruction["text"]
            found.append((int(instruction["address"], 16), mnemonics(text) if amdgpu else [text.split()[0]]))
    return found


def ptx_mixes(ptx: str) -> dict[str, Mix]:
    """How many PTX instructions of each class each kernel has, by its name. (The driver's own compiler makes the machine code of them.)"""
    mixes: dict[str, Mix] = {}
    for name, body in re.findall(r"\.entry (\w+)\(.*?\n\{(.*?)\n\}", ptx, re.DOTALL):
        instructions = re.findall(r"^\t(?:@!?%\w+ )?([a-z][\w.]*)", body, re.MULTILINE)
        mixes[name] = dict(sorted(Counter(classify(i, "cuda") for i in instructions).items()))
    return mixes
