"""What lies inside a vmfb: a STORED zip of `module.fb`, IREE's bytecode module as a FlatBuffer, and one file for each executable."""

from __future__ import annotations

from dataclasses import dataclass

from iq.bundle.executable import Executable, is_executable
from iq.bundle.files import unzipped
from iq.bundle.flatbuffer import Table
from iq.errors import BytecodeError

# Fields of IREE's FlatBuffer tables, by their place in runtime/src/iree/schemas/bytecode_module_def.fbs.
_MODULE_EXPORTS = 7
_MODULE_BYTECODE_VERSION = 13
_EXPORT_NAME = 0


@dataclass(frozen=True)
class BytecodeVersion:
    """The version of IREE's VM bytecode: a runtime loads its own major version, up to its own minor version."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


@dataclass(frozen=True)
class Vmfb:
    """A compiled module.

    bytecode: the version its bytecode is written in.
    functions: the public functions, in the file's order.
    executables: the device code, by file name: "<dispatch>_rocm_hsaco_fb.fb", "..._cuda_nvptx_fb.fb" (FlatBuffers with an ELF or PTX
    inside) or "..._embedded_elf_x86_64.so" (an ELF).
    """

    bytecode: BytecodeVersion
    functions: tuple[str, ...]
    executables: dict[str, bytes]

    @classmethod
    def parse(cls, data: bytes | memoryview) -> Vmfb:
        """Read a vmfb. Raises BytecodeError for bytes that are none."""
        try:
            members = unzipped(data)
            root = _root(members.pop("module.fb"))
            version = root.integer(_MODULE_BYTECODE_VERSION)
            functions = tuple(export.text(_EXPORT_NAME) for export in root.tables(_MODULE_EXPORTS))
        except (KeyError, ValueError) as error:
            raise BytecodeError(f"not a vmfb: {error}") from error
        # IREE exports its initializer and its deinitializer beside the public functions.
        return cls(BytecodeVersion(version >> 16, version & 0xFFFF), tuple(f for f in functions if not f.startswith("__")), members)

    @property
    def executable(self) -> Executable | None:
        """Its code for a GPU, None in a vmfb for CPUs. Raises BytecodeError for code that is malformed, or in several pieces."""
        found = [Executable.parse(data) for data in self.executables.values() if is_executable(data)]
        if len(found) > 1:
            raise BytecodeError(f"a vmfb with {len(found)} executables, where one is expected: {', '.join(self.executables)}")
        return found[0] if found else None


def _root(data: bytes) -> Table:
    """The root table of a FlatBuffer that is preceded by its size, as `module.fb` is."""
    if data[8:12] != b"IREE":
        raise ValueError("module.fb is no IREE bytecode module")
    return Table.root(data, 4)
