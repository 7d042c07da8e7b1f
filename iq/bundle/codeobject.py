"""AMDGPU code objects: the ELF that a ROCm executable carries, and what it says of itself.

The target comes from the ELF header's e_flags (which is what the HIP runtime goes by), the kernels from the AMDGPU metadata note and
the symbol table: https://llvm.org/docs/AMDGPUUsage.html, code object version 4 and later.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

import msgspec

from iq.errors import BytecodeError
from iq.targets import DeviceId

# An AMDGPU ELF: 64-bit, little endian, OS ABI AMDGPU_HSA.
_MAGIC = b"\x7fELF\x02\x01\x01\x40"
_ELF_HEADER = 64
_METADATA_NOTE = ("32", "NT_AMDGPU_METADATA")  # by number, until pyelftools has a name for it

# EF_AMDGPU_MACH of e_flags, both ways.
_PROCESSORS = {
    0x02C: "gfx900", 0x02F: "gfx906", 0x030: "gfx908", 0x032: "gfx90c", 0x03F: "gfx90a", 0x04C: "gfx942", 0x04F: "gfx950",
    0x033: "gfx1010", 0x034: "gfx1011", 0x035: "gfx1012", 0x036: "gfx1030", 0x037: "gfx1031", 0x038: "gfx1032", 0x039: "gfx1033",
    0x03E: "gfx1034", 0x03D: "gfx1035", 0x045: "gfx1036", 0x041: "gfx1100", 0x046: "gfx1101", 0x047: "gfx1102", 0x044: "gfx1103",
    0x043: "gfx1150", 0x04A: "gfx1151", 0x055: "gfx1152", 0x058: "gfx1153", 0x048: "gfx1200", 0x04E: "gfx1201", 0x049: "gfx1250",
}  # fmt: skip
MACHINES = {processor: number for number, processor in _PROCESSORS.items()}

# What e_flags say of a feature, in two bits each: xnack from bit 8, sramecc from bit 10.
_SETTINGS = ("unsupported", "any", "off", "on")


class Argument(msgspec.Struct, frozen=True):
    """`size` bytes at `offset` of the arguments' segment. kind: what the metadata calls its `.value_kind`."""

    kind: str = msgspec.field(name=".value_kind")
    offset: int = msgspec.field(name=".offset")
    size: int = msgspec.field(name=".size")

    @property
    def hidden(self) -> bool:
        """Whether the runtime provides it, not the caller."""
        return self.kind.startswith("hidden_")


@dataclass(frozen=True)
class Kernel:
    """A kernel of a code object.

    address: where its code starts; code_bytes: its length. Registers are counts per lane (vgprs, agprs) or per wave (sgprs), spills the
    registers that went to memory. lds: static LDS in bytes. scratch: bytes of private memory per lane.
    wave: lanes of a wave. kernarg: bytes of arguments; arguments: what lies in them. workgroup: the work items it must be launched with,
    (0, 0, 0) where it does not say.
    """

    name: str
    address: int
    code_bytes: int
    vgprs: int
    agprs: int
    sgprs: int
    vgpr_spills: int
    sgpr_spills: int
    lds: int
    scratch: int
    wave: int
    kernarg: int
    workgroup: tuple[int, int, int]
    arguments: tuple[Argument, ...]


@dataclass(frozen=True)
class CodeObject:
    """An AMDGPU ELF.

    processor: "gfx942". sramecc, xnack: "unsupported", "any", "on" or "off". kernels: in the order of the metadata. elf: its bytes.
    """

    processor: str
    sramecc: str
    xnack: str
    kernels: tuple[Kernel, ...]
    elf: bytes

    @classmethod
    def parse(cls, elf: bytes) -> CodeObject:
        """Read a code object. Raises BytecodeError when it is malformed, or for a processor that is not in the table."""
        # Here, because only iq[compile] installs it, and `device_id` does without.
        from elftools.common.exceptions import ELFError
        from elftools.construct import ConstructError
        from elftools.elf.elffile import ELFFile
        from elftools.elf.sections import SymbolTableSection
        from elftools.elf.segments import NoteSegment

        processor, sramecc, xnack = _target(elf)
        try:
            file = ELFFile(io.BytesIO(elf))
            tables = [s for s in file.iter_sections("SHT_SYMTAB") if isinstance(s, SymbolTableSection)]
            symbols = {s.name: s.entry for table in tables for s in table.iter_symbols()}
            notes = [n for segment in file.iter_segments("PT_NOTE") if isinstance(segment, NoteSegment) for n in segment.iter_notes()]
            [text] = [n["n_descdata"] for n in notes if n["n_name"] == "AMDGPU" and str(n["n_type"]) in _METADATA_NOTE]
            metadata = msgspec.msgpack.decode(text, type=_Metadata)
            kernels = tuple(k.kernel(symbols[k.name]["st_value"], symbols[k.name]["st_size"]) for k in metadata.kernels)
        except (ELFError, ConstructError, KeyError, ValueError, OverflowError, msgspec.MsgspecError) as error:
            raise BytecodeError(f"malformed code object: {error}") from error
        return cls(processor, sramecc, xnack, kernels, elf)

    @property
    def device_id(self) -> DeviceId:
        return device_id(self.elf)


def device_id(elf: bytes) -> DeviceId:
    """The processor of a code object, with the features that it pins. Raises BytecodeError as `parse` does."""
    processor, sramecc, xnack = _target(elf)
    pinned = {
        f"{name}{'+' if setting == 'on' else '-'}" for name, setting in (("sramecc", sramecc), ("xnack", xnack)) if setting in ("on", "off")
    }
    return DeviceId(processor, frozenset(pinned))


def _target(elf: bytes) -> tuple[str, str, str]:
    if len(elf) < 52 or not elf.startswith(_MAGIC):
        raise BytecodeError("malformed code object: no AMDGPU ELF header")
    (flags,) = struct.unpack_from("<I", elf, 48)
    if flags & 0xFF not in _PROCESSORS:
        raise BytecodeError(f"code object for a processor that iq does not know: EF_AMDGPU_MACH {flags & 0xFF:#x}")
    return _PROCESSORS[flags & 0xFF], _SETTINGS[flags >> 10 & 3], _SETTINGS[flags >> 8 & 3]


def find(executable: bytes) -> list[bytes]:
    """The AMDGPU ELFs in a ROCm executable of a vmfb, whose FlatBuffer holds them as they are. Raises BytecodeError for a truncated one."""
    found, at = [], executable.find(_MAGIC)
    while at >= 0:
        header = executable[at : at + _ELF_HEADER]
        if len(header) < _ELF_HEADER:
            raise BytecodeError("malformed code object: its header is cut off")
        # The section headers are the last thing in the file.
        (sections,) = struct.unpack_from("<Q", header, 40)
        size, count = struct.unpack_from("<HH", header, 58)
        end = at + sections + size * count
        if not at + _ELF_HEADER <= end <= len(executable):
            raise BytecodeError("malformed code object: its section headers lie outside of it")
        found.append(executable[at:end])
        at = executable.find(_MAGIC, end)
    return found


class _KernelMetadata(msgspec.Struct):
    name: str = msgspec.field(name=".name")
    vgprs: int = msgspec.field(name=".vgpr_count")
    sgprs: int = msgspec.field(name=".sgpr_count")
    lds: int = msgspec.field(name=".group_segment_fixed_size")
    scratch: int = msgspec.field(name=".private_segment_fixed_size")
    wave: int = msgspec.field(name=".wavefront_size")
    kernarg: int = msgspec.field(name=".kernarg_segment_size")
    agprs: int = msgspec.field(name=".agpr_count", default=0)
    vgpr_spills: int = msgspec.field(name=".vgpr_spill_count", default=0)
    sgpr_spills: int = msgspec.field(name=".sgpr_spill_count", default=0)
    workgroup: tuple[int, int, int] = msgspec.field(name=".reqd_workgroup_size", default=(0, 0, 0))
    arguments: tuple[Argument, ...] = msgspec.field(name=".args", default=())

    def kernel(self, address: int, code_bytes: int) -> Kernel:
        return Kernel(address=address, code_bytes=code_bytes, **msgspec.structs.asdict(self))


class _Metadata(msgspec.Struct):
    kernels: tuple[_KernelMetadata, ...] = msgspec.field(name="amdhsa.kernels")
