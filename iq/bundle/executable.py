"""The device code of a GPU as it lies in a vmfb: images that a driver loads, and how each of their kernels is launched.

IREE 3.13 writes a header of 64 bytes (magic, u32 version, u64 size) and a FlatBuffer of cuda_executable_def.fbs ("CDA1") or of
hip_executable_def.fbs ("HIP1"), both in runtime/src/iree/schemas. The two have the same tables:

    ExecutableDef { exports: [ExportDef]; modules: [ModuleDef]; source_files }
    ExportDef { module_ordinal: u32; kernel_name: string; block_dims: struct { x, y, z: u32 }; block_shared_memory_size: u32;
                constant_count: u32; binding_flags: [u64]; debug_info }
    ModuleDef { image: string }

A kernel takes its bindings as 64-bit pointers, in the order of its pipeline layout and unused ones included, then its constants as 32-bit
integers (native_executable.c of both drivers).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from iq.bundle.flatbuffer import Table
from iq.errors import BytecodeError

_HEADER = struct.Struct("<4sIQ48x")
_APIS = {b"CDA1": "cuda", b"HIP1": "hip"}

_EXPORTS, _MODULES = 0, 1  # of ExecutableDef
_MODULE, _NAME, _BLOCK, _SHARED, _CONSTANTS, _BINDINGS = range(6)  # of ExportDef
_IMAGE = 0  # of ModuleDef


@dataclass(frozen=True)
class Export:
    """A kernel.

    name: its symbol. image: the number of the image that holds it. block: the threads of a workgroup along x, y, z. shared: bytes of
    shared memory that a launch has to ask for (on AMD none: LDS is static). buffers, constants: how many pointers and integers it takes.
    """

    name: str
    image: int
    block: tuple[int, ...]
    shared: int
    buffers: int
    constants: int


@dataclass(frozen=True)
class Executable:
    """api: "cuda" or "hip". images: PTX that a zero byte ends, or AMDGPU ELFs. exports: the kernels by name."""

    api: str
    images: tuple[bytes, ...]
    exports: dict[str, Export]

    @classmethod
    def parse(cls, data: bytes) -> Executable:
        """Read an executable. Raises BytecodeError for bytes that are none."""
        if not is_executable(data):
            raise BytecodeError("not a GPU executable of IREE: it starts with neither CDA1 nor HIP1")
        try:
            magic, version, size = _HEADER.unpack_from(data)
            if version or size > len(data) - _HEADER.size:
                raise ValueError(f"version {version}, {size} bytes of {len(data) - _HEADER.size}")
            root = Table.root(bytes(data[_HEADER.size : _HEADER.size + size]))
            # A driver takes PTX up to the zero byte that FlatBuffers put behind a string.
            images = tuple(module.bytes(_IMAGE) + b"\0" for module in root.tables(_MODULES))
            exports = [_export(table) for table in root.tables(_EXPORTS)]
        except (struct.error, ValueError) as error:
            raise BytecodeError(f"not a GPU executable of IREE: {error}") from error
        if unplaced := [export.name for export in exports if export.image >= len(images)]:
            raise BytecodeError(f"not a GPU executable of IREE: {unplaced[0]!r} is in an image that is not there")
        by_name = {export.name: export for export in exports}
        if len(by_name) < len(exports):
            raise BytecodeError("not a GPU executable of IREE: two of its kernels have the same name")
        return cls(_APIS[magic], images, by_name)


def is_executable(data: bytes) -> bool:
    """Whether these bytes start as an executable for a GPU does."""
    return len(data) >= _HEADER.size and bytes(data[:4]) in _APIS


def _export(table: Table) -> Export:
    return Export(
        name=table.text(_NAME),
        image=table.integer(_MODULE),
        block=table.integers(_BLOCK, 3),
        shared=table.integer(_SHARED),
        buffers=table.count(_BINDINGS, 8),
        constants=table.integer(_CONSTANTS),
    )
