"""The machine code of the dispatches in a vmfb, and what it costs: registers, memory, instructions by class, waves of a processor that fit.

It reads vmfb files rather than bundles, so that those of other revisions of iq, whose manifests may differ, are read alike.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from elftools.elf.elffile import ELFFile

from iq.bundle import Executable as GpuExecutable
from iq.bundle import Vmfb, codeobject
from iq.bundle.codeobject import CodeObject
from iq.errors import BytecodeError
from iq.inspect import Objdump
from iq.inspect.classes import Mix, ptx_mixes
from iq.inspect.facts import functions_of, isa_of

Figures = dict[str, int]

_EXECUTABLE = 4  # SHF_EXECINSTR


@dataclass(frozen=True)
class Registers:
    """The register file that the waves of a SIMD (of a warp scheduler's SM on CUDA) share.

    total: registers for each lane; granule: a wave gets a multiple of it; waves: slots there are.
    """

    total: int
    granule: int
    waves: int


# First match wins; the waves are of 64 lanes on gfx9, of 32 elsewhere. AMD: LLVM's AMDGPUBaseInfo.cpp (getTotalNumVGPRs,
# getVGPRAllocGranule, getMaxWavesPerEU) and the ISA guides; where VGPRs and AGPRs are one file (gfx90a, gfx94x, gfx950), the code object's
# count of VGPRs is of both. CUDA: table "Technical Specifications per Compute Capability", 65536 registers an SM.
_REGISTERS = (
    (r"gfx9(0a|4\w|50)", Registers(512, 8, 8)),
    (r"gfx9", Registers(256, 4, 10)),
    (r"gfx101", Registers(1024, 8, 20)),
    (r"gfx103|gfx110[23]|gfx115[023]", Registers(1024, 16, 16)),
    (r"gfx11|gfx12", Registers(1536, 24, 16)),
    (r"sm_(75|86|87|89|12\d)", Registers(2048, 8, 48)),
    (r"sm_", Registers(2048, 8, 64)),
)


def waves_that_fit(processor: str, registers: int) -> int | None:
    """Waves that a SIMD of the processor (warps that an SM) has registers for; None for a processor without such a limit, a CPU."""
    file = next((file for pattern, file in _REGISTERS if re.match(pattern, processor)), None)
    if file is None:
        return None
    granules = max(1, -(-registers // file.granule))
    return min(file.waves, file.total // (granules * file.granule))


@dataclass(frozen=True)
class Dispatch:
    """A kernel as the device runs it: its code, to be compared, and what it is made of, found out when asked for."""

    name: str
    processor: str
    code: bytes
    executable: Executable

    @cached_property
    def figures(self) -> Figures:
        """By name: vgprs, agprs, sgprs, spills, scratch, lds, code bytes and instructions, as far as they are known, and each class."""
        return self.executable.figures(self.name)

    @property
    def waves(self) -> int | None:
        return waves_that_fit(self.processor, self.figures["vgprs"]) if "vgprs" in self.figures else None


class Executable:
    """One executable of a vmfb: its dispatches. Nothing is disassembled until a dispatch's figures are asked for."""

    def __init__(self, objdump: Objdump | None) -> None:
        self._objdump = objdump

    def dispatches(self) -> list[Dispatch]:
        raise NotImplementedError

    def figures(self, name: str) -> Figures:
        raise NotImplementedError


class _Rocm(Executable):
    def __init__(self, elf: bytes, objdump: Objdump | None) -> None:
        super().__init__(objdump)
        self._code = CodeObject.parse(elf)
        self._kernels = {k.name: k for k in self._code.kernels}

    def dispatches(self) -> list[Dispatch]:
        bytes_at = _bytes_at(self._code.elf)
        return [Dispatch(k.name, self._code.processor, bytes_at(k.address, k.code_bytes), self) for k in self._code.kernels]

    @cached_property
    def _mixes(self) -> dict[str, Mix]:
        return _mixes(self._objdump, self._code.elf, {k.name: (k.address, k.code_bytes) for k in self._code.kernels}, "rocm")

    def figures(self, name: str) -> Figures:
        kernel = self._kernels[name]
        facts = {
            "vgprs": kernel.vgprs,
            "agprs": kernel.agprs,
            "sgprs": kernel.sgprs,
            "spills": kernel.vgpr_spills + kernel.sgpr_spills,
            "scratch": kernel.scratch,
            "lds": kernel.lds,
            "code bytes": kernel.code_bytes,
        }
        return facts | _counts(self._mixes.get(name, {}))


class _Cpu(Executable):
    def __init__(self, elf: bytes, isa: str, objdump: Objdump | None) -> None:
        super().__init__(objdump)
        self._isa = isa
        self._elf = elf
        self._functions = functions_of(elf)

    def dispatches(self) -> list[Dispatch]:
        bytes_at = _bytes_at(self._elf)
        return [Dispatch(name, self._isa, bytes_at(*where), self) for name, where in self._functions.items()]

    @cached_property
    def _mixes(self) -> dict[str, Mix]:
        return _mixes(self._objdump, self._elf, self._functions, self._isa)

    def figures(self, name: str) -> Figures:
        return {"code bytes": self._functions[name][1]} | _counts(self._mixes.get(name, {}))


class _Cuda(Executable):
    def __init__(self, data: bytes, objdump: Objdump | None) -> None:
        super().__init__(objdump)
        start = data.find(b".version ")
        self._ptx = data[start : data.index(b"\0", start)].decode()
        self._lds = {name: export.shared for name, export in GpuExecutable.parse(data).exports.items()}
        found = re.search(r"\.target (\w+)", self._ptx)
        self._processor = found[1] if found else "sm_unknown"

    def dispatches(self) -> list[Dispatch]:
        entries = re.findall(r"\.entry (\w+)(\(.*?\n\{.*?\n\})", self._ptx, re.DOTALL)
        return [Dispatch(name, self._processor, self._comparable(name, body), self) for name, body in entries]

    def _comparable(self, name: str, body: str) -> bytes:
        """A kernel's text without its name and without the numbers that labels have by its place in the executable; and its LDS."""
        text = re.sub(rf"\b{name}_param_|\$L__BB\d+_", "_", body)
        return f"{text} {self._lds.get(name, 0)}".encode()

    @cached_property
    def _mixes(self) -> dict[str, Mix]:
        return ptx_mixes(self._ptx)

    @cached_property
    def _assembled(self) -> dict[str, Figures]:
        return _ptxas(self._ptx, self._processor)

    def figures(self, name: str) -> Figures:
        return self._assembled.get(name, {}) | {"lds": self._lds.get(name, 0)} | _counts(self._mixes.get(name, {}))


def dispatches_of(vmfb: bytes, objdump: Objdump | None) -> list[Dispatch]:
    """All dispatches of a vmfb; without `objdump` those for ROCm and CPUs have no counts of instructions.

    Raises BytecodeError for bytes that are no vmfb, or an executable of a kind that cannot be read.
    """
    executables: list[Executable] = []
    for name, data in Vmfb.parse(vmfb).executables.items():
        if name.endswith("_rocm_hsaco_fb.fb"):
            executables += [_Rocm(elf, objdump) for elf in codeobject.find(data)]
        elif isa := isa_of(name):
            executables.append(_Cpu(data, isa, objdump))
        elif name.endswith("_cuda_nvptx_fb.fb"):
            executables.append(_Cuda(data, objdump))
        else:
            raise BytecodeError(f"{name}: not a kind of executable that can be read; known are those of ROCm, CUDA and CPUs")
    return [dispatch for executable in executables for dispatch in executable.dispatches()]


def _counts(mix: Mix) -> Figures:
    return {"instructions": sum(mix.values()), **mix} if mix else {}


def _mixes(objdump: Objdump | None, elf: bytes, functions: dict[str, tuple[int, int]], isa: str) -> dict[str, Mix]:
    return objdump.mixes(elf, functions, isa) if objdump else {}


def _bytes_at(elf: bytes) -> Callable[[int, int], bytes]:
    """What gives the bytes of an ELF's sections by address and length."""
    sections = [s for s in ELFFile(io.BytesIO(elf)).iter_sections() if s["sh_flags"] & _EXECUTABLE and s["sh_type"] == "SHT_PROGBITS"]

    def bytes_at(address: int, length: int) -> bytes:
        section = next(s for s in sections if 0 <= address - s["sh_addr"] < s["sh_size"])
        at = section["sh_offset"] + address - section["sh_addr"]
        return elf[at : at + length]

    return bytes_at


def _ptxas(ptx: str, processor: str) -> dict[str, Figures]:
    """What ptxas says of each kernel, by its name; nothing where there is no ptxas. Raises BytecodeError where it fails."""
    ptxas = shutil.which("ptxas")
    if ptxas is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder) / "kernels.ptx", Path(folder) / "kernels.cubin"
        source.write_text(ptx)
        done = subprocess.run([ptxas, "-v", f"-arch={processor}", "-o", cubin, source], capture_output=True, text=True, check=False)
        if done.returncode:
            raise BytecodeError(f"ptxas refuses the PTX for {processor}: {done.stderr.strip()[:500]}")
        with cubin.open("rb") as file:
            sizes = {s.name.removeprefix(".text."): s["sh_size"] for s in ELFFile(file).iter_sections() if s.name.startswith(".text.")}
    figures = {}
    for name, said in re.findall(r"entry function '(\w+)' for .*?\n(.*?Used [^\n]*)", done.stderr, re.DOTALL):
        number = {what: int(n) for n, what in re.findall(r"(\d+) (?:bytes )?(registers|stack frame|spill stores|spill loads)", said)}
        figures[name] = {
            "vgprs": number.get("registers", 0),
            "spills": number.get("spill stores", 0) + number.get("spill loads", 0),
            "scratch": number.get("stack frame", 0),
            "code bytes": sizes[name],
        }
    return figures
