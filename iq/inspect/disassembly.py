"""The disassembly of AMDGPU, x86 and aarch64 ELFs, by llvm-objdump."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from iq.inspect.classes import Mix, classify
from iq.inspect.probe import fault_of

# Debian's package with an llvm-objdump that can be used, which messages name.
PACKAGE = "llvm-22"

_NAME = re.compile(r"llvm-objdump-(\d+)")


@dataclass(frozen=True)
class Objdump:
    """An llvm-objdump that can be used."""

    executable: str

    @classmethod
    def find(cls) -> Objdump | str:
        """The one that IQ_LLVM_OBJDUMP names, or the first on PATH that decodes every generation (iq.inspect.probe), newest version first.

        Where there is none, a sentence that says why, and what to install.
        """
        named = os.environ.get("IQ_LLVM_OBJDUMP")
        unfit = []
        for name in [named] if named else _on_path():
            executable = shutil.which(name)
            if executable is None:
                unfit.append(f"there is no {name}")
                continue
            found = cls(executable)
            if not (fault := fault_of(executable, partial(found.listing, isa="rocm", encodings=True))):
                return found
            unfit.append(f"{executable} {fault}")
        why = "; ".join(unfit) or "there is none on PATH"
        return f"no llvm-objdump that decodes all kernels ({why}): apt-get install {PACKAGE}, or name one with IQ_LLVM_OBJDUMP"

    def listing(self, elf: bytes, isa: str, encodings: bool = False) -> str:
        """The disassembly of an ELF, with `encodings` the words of each instruction too. Raises RuntimeError when it fails."""
        with tempfile.NamedTemporaryFile(suffix=".elf") as file:
            file.write(elf)
            file.flush()
            options = [] if encodings else ["--no-show-raw-insn"]
            # Without real-true16, gfx11's 16-bit instructions decode as unknown ones.
            options += ["--mattr=+real-true16"] if isa == "rocm" else []
            done = subprocess.run([self.executable, "-d", *options, file.name], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{self.executable} failed: {done.stderr.strip()[:500]}")
        return done.stdout

    def mixes(self, elf: bytes, functions: Mapping[str, tuple[int, int]], isa: str) -> dict[str, Mix]:
        """How many instructions of each class each function has, by its name; `functions` are (address, bytes).

        Raises RuntimeError when the disassembler fails.
        """
        starts = sorted((address, size, name) for name, (address, size) in functions.items())
        counts: dict[str, Counter[str]] = {name: Counter() for name in functions}
        for address, mnemonics in _instructions(self.listing(elf, isa)):
            at = bisect_right(starts, address, key=lambda s: s[0]) - 1
            if at >= 0 and address < starts[at][0] + starts[at][1]:  # else padding between functions
                counts[starts[at][2]].update(classify(mnemonic, isa) for mnemonic in mnemonics)
        return {name: dict(sorted(count.items())) for name, count in counts.items()}


def _on_path() -> list[str]:
    """The names that llvm-objdump has on PATH: those with a version, newest first, then the plain one."""
    folders = [Path(folder) for folder in os.get_exec_path() if folder]
    numbered = {int(found[1]): found[0] for folder in folders for p in folder.glob("llvm-objdump-*") if (found := _NAME.fullmatch(p.name))}
    return [numbered[version] for version in sorted(numbered, reverse=True)] + ["llvm-objdump"] * bool(shutil.which("llvm-objdump"))


def mnemonics(text: str) -> list[str]:
    """Those of an AMDGPU instruction as llvm-objdump prints it; one of dual issue has two."""
    return [half.split()[0] for half in text.split("::")]


def _instructions(listing: str) -> list[tuple[int, list[str]]]:
    """Address and mnemonics of each line; a dual-issue instruction has two."""
    found = []
    for line in listing.splitlines():
        # AMDGPU: "\tv_add ... // 000000001708: ...". CPUs: "    2991:      \t{vex} vpdpbusd ...".
        amdgpu = re.match(r"\t(?P<text>.*?)\s*// (?P<address>[0-9A-F]+):", line)
        instruction = amdgpu or re.match(r"\s*(?P<address>[0-9a-f]+):\s+(?P<text>\S.*)", line)
        if instruction:
            text = instruction["text"]
            found.append((int(instruction["address"], 16), mnemonics(text) if amdgpu else [text.removeprefix("{vex}").split()[0]]))
    return found
