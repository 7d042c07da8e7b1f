"""A code object made ready to run: its image in memory, its kernels' descriptors, its disassembly (kept by digest in iq's cache)."""

from __future__ import annotations

import hashlib
import io
import json
import struct
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iq.bundle.codeobject import CodeObject, Kernel
from iq.cache import Cache
from iq.emulator import decoder
from iq.emulator.decoder import Instruction
from iq.emulator.faults import DisassemblerError, EmulationError, LaunchError, Place, UnknownInstruction
from iq.inspect.disassembly import Objdump
from iq.inspect.probe import DIGEST

_PAGE = 4096
# Instructions may prefetch or be fetched past the end.
_SLACK = 4096
# Relocations of a linked code object that depend on where it is loaded (AMDGPUUsage, "Relocation Records").
_ABS64, _RELATIVE64 = 3, 13


@dataclass(frozen=True)
class Descriptor:
    """A kernel descriptor (AMDGPUUsage, "Kernel Descriptor"): what the command processor sets up before the first instruction.

    entry: address of the first instruction. user_sgprs: how many SGPRs the packet fills. properties: KERNEL_CODE_PROPERTIES.
    preload: KERNARG_PRELOAD. The rest are fields of COMPUTE_PGM_RSRC1 and 2.
    """

    entry: int
    rsrc1: int
    rsrc2: int
    properties: int
    preload: int

    @classmethod
    def parse(cls, data: bytes, address: int) -> Descriptor:
        """From the 64 bytes of a NAME.kd symbol at an address."""
        (entry,) = struct.unpack_from("<q", data, 16)
        rsrc1, rsrc2, properties, preload = struct.unpack_from("<IIHH", data, 48)
        return cls(address + entry, rsrc1, rsrc2, properties, preload)

    @property
    def user_sgprs(self) -> int:
        return self.rsrc2 >> 1 & 31

    @property
    def workgroup_ids(self) -> tuple[bool, bool, bool]:
        """Which of the workgroup's x, y, z the packet puts into SGPRs."""
        return bool(self.rsrc2 >> 7 & 1), bool(self.rsrc2 >> 8 & 1), bool(self.rsrc2 >> 9 & 1)

    @property
    def work_item_ids(self) -> int:
        """How many of the work item's x, y, z are in VGPRs."""
        return (self.rsrc2 >> 11 & 3) + 1

    @property
    def preloaded_words(self) -> tuple[int, int]:
        """Which words of the arguments go to the last user SGPRs: the first, and how many."""
        return self.preload >> 7, self.preload & 0x7F

    @property
    def float_mode(self) -> int:
        return self.rsrc1 >> 12 & 0xFF


class Program:
    """The instructions of a code object, decoded when asked for."""

    def __init__(self, listing: list[tuple[int, str]], kernels: tuple[Kernel, ...]) -> None:
        self._addresses = [address for address, _ in listing]
        self._texts = [text for _, text in listing]
        self._index = {address: index for index, address in enumerate(self._addresses)}
        self._kernels = sorted((k.address, k.address + k.code_bytes, k.name) for k in kernels)

    def __len__(self) -> int:
        return len(self._texts)

    @classmethod
    def disassemble(cls, code: CodeObject, cache: Cache | None = None) -> Program:
        """The program of a code object, from the cache or from llvm-objdump. Raises DisassemblerError."""
        cache = cache or Cache()
        # Kept only while the same disassemblers are accepted.
        path = cache.path(".isa", DIGEST, hashlib.sha256(code.elf).hexdigest())
        if path.exists():
            listing = [(int(address), str(text)) for address, text in json.loads(path.read_text())]
        else:
            listing = decoder.lines(_listing(code.elf))
            cache.store(path, json.dumps(listing).encode())
        return cls(listing, code.kernels)

    def index(self, address: int) -> int:
        """The number of the instruction at an address. Raises EmulationError where none starts."""
        if address not in self._index:
            raise EmulationError(f"jump to {address:#x}, where no instruction starts")
        return self._index[address]

    def text(self, index: int) -> str:
        return self._texts[index]

    def instruction(self, index: int) -> Instruction:
        """Raises UnknownInstruction."""
        return decoder.decode(self._addresses[index], self._texts[index])

    def place(self, index: int) -> Place:
        """Where an instruction is, for an error."""
        if index >= len(self):
            return Place("?", self._addresses[-1] if self._addresses else 0, "past the end of the code")
        address = self._addresses[index]
        at = bisect_right(self._kernels, address, key=lambda k: k[0]) - 1
        name = self._kernels[at][2] if at >= 0 and address < self._kernels[at][1] else "?"
        return Place(name, address, self._texts[index])


class LoadedCode:
    """A code object at an address of this process, with what the machine has made of its instructions so far: for one launch at a time."""

    def __init__(self, code: CodeObject, program: Program) -> None:
        self.code = code
        self.program = program
        self.kernels: Mapping[str, Kernel] = {k.name: k for k in code.kernels}
        image, symbols, relocations = _image(code.elf)
        self.image = aligned(image, _PAGE, _SLACK)
        self.base = int(self.image.ctypes.data)
        for offset, value in relocations:
            self.image[offset : offset + 8] = np.frombuffer(struct.pack("<Q", self.base + value), np.uint8)
        starts = {name: symbols[f"{name}.kd"] for name in self.kernels}
        self.descriptors = {name: Descriptor.parse(image[start : start + 64], start) for name, start in starts.items()}
        # Compiled instructions, by lanes of a wave; the machine fills them in.
        self.compiled: dict[int, list[Any]] = {lanes: [None] * len(program) for lanes in (32, 64)}

    def kernel(self, name: str) -> Kernel:
        """The kernel of a name. Raises LaunchError where there is none."""
        if name not in self.kernels:
            raise LaunchError(f"the code object has no kernel {name}; it has {', '.join(self.kernels)}")
        return self.kernels[name]

    @classmethod
    def load(cls, elf: bytes, cache: Cache | None = None) -> LoadedCode:
        """Load a code object. Raises BytecodeError for a malformed one, DisassemblerError without a usable llvm-objdump."""
        code = CodeObject.parse(elf)
        return cls(code, Program.disassemble(code, cache))


def aligned(data: bytes, boundary: int, slack: int) -> NDArray[np.uint8]:
    """A copy that starts on a boundary, with `slack` zeros after it."""
    storage = np.zeros(len(data) + slack + boundary, np.uint8)
    first = -storage.ctypes.data % boundary
    copy = storage[first : first + len(data) + slack]
    copy[: len(data)] = np.frombuffer(data, np.uint8)
    return copy


def _listing(elf: bytes) -> str:
    found = Objdump.find()
    if isinstance(found, str):
        raise DisassemblerError(f"the emulator needs a disassembler, but there is {found}")
    try:
        return found.listing(elf, "rocm")
    except RuntimeError as error:
        raise DisassemblerError(str(error)) from error


def _image(elf: bytes) -> tuple[bytes, dict[str, int], list[tuple[int, int]]]:
    """The loaded image, the symbols' addresses in it, and (offset, addend) of the 64-bit words that hold an address of it."""
    from elftools.elf.elffile import ELFFile
    from elftools.elf.relocation import RelocationSection
    from elftools.elf.sections import SymbolTableSection

    file = ELFFile(io.BytesIO(elf))
    segments = [s for s in file.iter_segments() if s["p_type"] == "PT_LOAD"]
    image = bytearray(max(s["p_vaddr"] + s["p_memsz"] for s in segments))
    for s in segments:
        image[s["p_vaddr"] : s["p_vaddr"] + s["p_filesz"]] = s.data()
    tables = [s for s in file.iter_sections() if isinstance(s, SymbolTableSection)]
    symbols = {s.name: int(s["st_value"]) for table in tables for s in table.iter_symbols() if s.name}
    relocations = []
    for section in file.iter_sections():
        if not isinstance(section, RelocationSection):
            continue
        for r in section.iter_relocations():
            value = r["r_addend"]
            if r["r_info_type"] == _ABS64:
                table = file.get_section(section["sh_link"])
                assert isinstance(table, SymbolTableSection)
                value += table.get_symbol(r["r_info_sym"])["st_value"]
            elif r["r_info_type"] != _RELATIVE64:
                raise UnknownInstruction(f"relocation of type {r['r_info_type']} in the code object")
            relocations.append((int(r["r_offset"]), int(value)))
    return bytes(image), symbols, relocations
