"""What lies inside a vmfb: a STORED zip of `module.fb`, IREE's bytecode module as a FlatBuffer, and one file for each executable."""

from __future__ import annotations

import io
import struct
import zipfile
from dataclasses import dataclass

from iq.errors import BytecodeError

# Fields of IREE's FlatBuffer tables, by their place in runtime/src/iree/schemas/bytecode_module_def.fbs.
_MODULE_EXPORTS = 7
_MODULE_BYTECODE_VERSION = 13
_EXPORT_NAME = 0
# Of cuda_executable_def.fbs.
_CUDA_EXPORTS = 0
_CUDA_KERNEL_NAME = 1
_CUDA_SHARED_MEMORY = 3


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
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                members = {name: archive.read(name) for name in archive.namelist()}
            root = _root(members.pop("module.fb"))
            version = root.integer(_MODULE_BYTECODE_VERSION)
            functions = tuple(export.text(_EXPORT_NAME) for export in root.tables(_MODULE_EXPORTS))
        except (zipfile.BadZipFile, KeyError, ValueError, struct.error) as error:
            raise BytecodeError(f"not a vmfb: {error}") from error
        # IREE exports its initializer and its deinitializer beside the public functions.
        return cls(BytecodeVersion(version >> 16, version & 0xFFFF), tuple(f for f in functions if not f.startswith("__")), members)


def shared_memory(executable: bytes) -> dict[str, int]:
    """Bytes of shared memory that each kernel of a CUDA executable is launched with, by its name. Raises BytecodeError.

    IREE 3.13 puts a header of 64 bytes before the FlatBuffer (runtime/src/iree/schemas/cuda_executable_def.fbs).
    """
    if executable[:4] != b"CDA1":
        raise BytecodeError("not a CUDA executable of IREE")
    try:
        (size,) = struct.unpack_from("<Q", executable, 8)
        data = executable[64 : 64 + size]
        exports = _Table(data, struct.unpack_from("<I", data)[0]).tables(_CUDA_EXPORTS)
        return {export.text(_CUDA_KERNEL_NAME): export.integer(_CUDA_SHARED_MEMORY) for export in exports}
    except (ValueError, struct.error) as error:
        raise BytecodeError(f"not a CUDA executable of IREE: {error}") from error


@dataclass(frozen=True)
class _Table:
    """A FlatBuffer table. Fields are addressed by their place in the schema; absent ones read as 0 or empty, FlatBuffers' defaults."""

    data: bytes
    at: int

    def _field(self, place: int) -> int:
        vtable = self.at - self._number("<i", self.at)
        if 4 + 2 * place >= self._number("<H", vtable):
            return 0
        offset = self._number("<H", vtable + 4 + 2 * place)
        return self.at + offset if offset else 0

    def _number(self, code: str, at: int) -> int:
        if at < 0:  # struct would count from the end
            raise ValueError("offset outside the FlatBuffer")
        value: int = struct.unpack_from(code, self.data, at)[0]
        return value

    def _target(self, at: int) -> int:
        return at + self._number("<I", at)

    def integer(self, place: int) -> int:
        field = self._field(place)
        return self._number("<I", field) if field else 0

    def text(self, place: int) -> str:
        field = self._field(place)
        if not field:
            return ""
        start = self._target(field)
        return self.data[start + 4 : start + 4 + self._number("<I", start)].decode()

    def tables(self, place: int) -> list[_Table]:
        field = self._field(place)
        if not field:
            return []
        start = self._target(field)
        return [_Table(self.data, self._target(start + 4 + 4 * i)) for i in range(self._number("<I", start))]


def _root(data: bytes) -> _Table:
    """The root table of a FlatBuffer that is preceded by its size, as `module.fb` is."""
    if data[8:12] != b"IREE":
        raise ValueError("module.fb is no IREE bytecode module")
    start = 4
    return _Table(data, start + struct.unpack_from("<I", data, start)[0])
