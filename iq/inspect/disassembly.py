"""The disassembly of AMDGPU and x86 ELFs, by llvm-objdump."""

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

from iq.inspect.classes import Mix, classify

# The first LLVM that decodes all of the supported gfx targets, and the newest to look for.
OLDEST_LLVM, NEWEST_LLVM = 19, 25


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
