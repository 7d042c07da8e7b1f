"""What the compiler made of the kernels: registers, memory and instructions of every dispatch in a vmfb.

The public functions of a module share its dispatches (`mul_mat_vec.q4_0.1` and `.2` both call `quantize_q8_1_soa_...`).
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from iq.bundle import Bundle, Vmfb, codeobject, find
from iq.bundle.executable import Executable
from iq.errors import BytecodeError
from iq.inspect.classes import Mix, ptx_mixes
from iq.inspect.disassembly import Objdump
from iq.targets import AARCH64, X86_64


@dataclass(frozen=True)
class Dispatch:
    """A kernel as the device runs it.

    facts: what the executable records, by the names of iq.bundle.codeobject.Kernel.
    mix: its instructions by class (iq.inspect.classes), each counted once however often it runs; None where nothing was disassembled.
    """

    name: str
    facts: dict[str, int | tuple[int, ...]]
    mix: Mix | None


@dataclass(frozen=True)
class Report:
    """A vmfb: where it lies, the processor its code is for, its public functions, its dispatches, and what could not be found out."""

    file: str
    processor: str
    functions: tuple[str, ...]
    dispatches: tuple[Dispatch, ...]
    notes: tuple[str, ...] = ()


@dataclass
class _Reader:
    """Reads the executables of one vmfb, and notes what it cannot tell."""

    objdump: Objdump | str | None
    processors: list[str] = field(default_factory=list)
    dispatches: list[Dispatch] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)

    def read(self, name: str, executable: bytes) -> None:
        if name.endswith("_rocm_hsaco_fb.fb"):
            for elf in codeobject.find(executable):
                self._rocm(elf)
        elif name.endswith("_cuda_nvptx_fb.fb"):
            self._cuda(executable)
        elif isa := isa_of(name):
            self._cpu(executable, isa)
        else:
            self.notes[f"{name}: not a kind of executable that can be read"] = None

    def _rocm(self, elf: bytes) -> None:
        code = codeobject.CodeObject.parse(elf)
        self.processors.append(str(code.device_id))
        mixes = self._mixes(elf, {k.name: (k.address, k.code_bytes) for k in code.kernels}, "rocm")
        for kernel in code.kernels:
            facts = {name: value for name, value in vars(kernel).items() if name not in ("name", "address")}
            self.dispatches.append(Dispatch(kernel.name, facts, mixes.get(kernel.name)))

    def _cuda(self, executable: bytes) -> None:
        parsed = Executable.parse(executable)
        ptx = b"".join(image.rstrip(b"\0") for image in parsed.images).decode()
        self.processors += re.findall(r"\.target (\w+)", ptx)
        workgroups = {
            name: tuple(map(int, sizes.split(","))) for name, sizes in re.findall(r"\.entry (\w+)\([^)]*\)\s*\.maxntid ([\d, ]+)", ptx)
        }
        for name, mix in ptx_mixes(ptx).items():
            facts: dict[str, int | tuple[int, ...]] = {"lds": parsed.exports[name].shared}
            self.dispatches.append(Dispatch(name, {"workgroup": workgroups[name], **facts} if name in workgroups else facts, mix))
        self.notes["PTX: the driver chooses registers and instructions when it loads it"] = None

    def _cpu(self, elf: bytes, isa: str) -> None:
        functions = functions_of(elf)
        if not functions:
            self.notes["no debug information: the code cannot be told apart by dispatch"] = None
        self.processors.append(isa)
        mixes = self._mixes(elf, functions, isa)
        for name, (_, size) in functions.items():
            self.dispatches.append(Dispatch(name, {"code_bytes": size}, mixes.get(name)))

    def _mixes(self, elf: bytes, functions: Mapping[str, tuple[int, int]], isa: str) -> Mapping[str, Mix]:
        if self.objdump is None:
            return {}
        if isinstance(self.objdump, str):
            self.notes[f"no instruction mix: there is {self.objdump}"] = None
            return {}
        try:
            return self.objdump.mixes(elf, functions, isa)
        except RuntimeError as error:
            self.notes[f"no instruction mix: {error}"] = None
            return {}


def isa_of(executable: str) -> str:
    """The instruction set of a CPU's executable (iq.targets.Isa), by the name that it has in a vmfb; "" for one that is no CPU's."""
    return next((isa.name for isa in (X86_64, AARCH64) if executable.endswith(f"_embedded_elf_{isa.elf}.so")), "")


def functions_of(elf: bytes) -> dict[str, tuple[int, int]]:
    """Address and bytes of each function in an ELF's debug information (its symbols are stripped)."""
    from elftools.elf.elffile import ELFFile

    entries = (entry for unit in ELFFile(io.BytesIO(elf)).get_dwarf_info().iter_CUs() for entry in unit.iter_DIEs())
    functions = (entry.attributes for entry in entries if entry.tag == "DW_TAG_subprogram" and "DW_AT_low_pc" in entry.attributes)
    return {f["DW_AT_name"].value.decode(): (f["DW_AT_low_pc"].value, f["DW_AT_high_pc"].value) for f in functions}


def inspect_vmfb(data: bytes | memoryview, file: str, pattern: str = "*", objdump: Objdump | str | None = None) -> Report:
    """What is in a vmfb; of its functions and dispatches those whose names match a shell-style pattern. Raises BytecodeError.

    objdump: what Objdump.find gave. Without it no instruction mixes are made, which take far longer than all else.
    """
    vmfb = Vmfb.parse(data)
    reader = _Reader(objdump)
    for name, executable in vmfb.executables.items():
        reader.read(name, executable)
    return Report(
        file,
        ", ".join(dict.fromkeys(reader.processors)),
        tuple(f for f in vmfb.functions if fnmatchcase(f, pattern)),
        tuple(d for d in reader.dispatches if fnmatchcase(d.name, pattern)),
        tuple(reader.notes),
    )


def inspect(path: str | Path, pattern: str = "*") -> list[Report]:
    """The reports of a vmfb, or of every vmfb in the bundles at `path`; those without a match are left out.

    Raises BytecodeError for a file that is no vmfb, and what iq.bundle.Bundle.open raises.
    """
    path, objdump = Path(path), Objdump.find()
    if path.suffix == ".vmfb":
        if not path.is_file():
            raise BytecodeError(f"{path}: no such file")
        reports = [inspect_vmfb(path.read_bytes(), str(path), pattern, objdump)]
    else:
        bundles = [Bundle.open(p) for p in find(path)]
        reports = [inspect_vmfb(b.data(f.name), f"{b.path}/{f.name}", pattern, objdump) for b in bundles for f in b.manifest.files]
    return [r for r in reports if r.functions or r.dispatches]
