"""A kernel's arguments: where they go in its kernarg segment, and what goes into the hidden ones.

From the `.args` of the AMDGPU metadata note: https://llvm.org/docs/AMDGPUUsage.html, "Code Object V3 Metadata" and "V5".
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from iq.codeobject import CodeObject
from iq.emulator.faults import LaunchError

Dim3 = tuple[int, int, int]

# Hidden arguments that point at services of a runtime. They are null here: a kernel that uses one stops at address 0.
_SERVICES = frozenset(
    f"hidden_{name}"
    for name in (
        "none",
        "printf_buffer",
        "hostcall_buffer",
        "multigrid_sync_arg",
        "heap_v1",
        "default_queue",
        "completion_action",
        "private_base",
        "shared_base",
        "queue_ptr",
    )
)


@dataclass(frozen=True)
class Argument:
    """`size` bytes at `offset` of the kernarg segment. kind: what the metadata calls its `.value_kind`."""

    kind: str
    offset: int
    size: int

    @property
    def hidden(self) -> bool:
        """Whether the runtime provides it, not the caller."""
        return self.kind.startswith("hidden_")


def arguments(code: CodeObject) -> dict[str, tuple[Argument, ...]]:
    """The arguments of each kernel."""
    from elftools.elf.elffile import ELFFile
    from elftools.elf.segments import NoteSegment

    segments = ELFFile(io.BytesIO(code.elf)).iter_segments("PT_NOTE")
    notes = [n for s in segments if isinstance(s, NoteSegment) for n in s.iter_notes() if n["n_name"] == "AMDGPU"]
    kernels = {k.name: k.arguments for n in notes for k in msgspec.msgpack.decode(n["n_descdata"], type=_Metadata).kernels}
    return {name: tuple(Argument(a.kind, a.offset, a.size) for a in found) for name, found in kernels.items()}


def hidden_values(grid: Dim3, workgroup: Dim3) -> Mapping[str, int]:
    """What a launch of `grid` workgroups puts into hidden arguments, by their kind. HIP launches whole workgroups only."""
    dims = max(axis + 1 for axis in range(3) if axis == 0 or grid[axis] > 1 or workgroup[axis] > 1)
    values = {"hidden_grid_dims": dims, "hidden_dynamic_lds_size": 0} | dict.fromkeys(_SERVICES, 0)
    for axis, count, size in zip("xyz", grid, workgroup, strict=True):
        values |= {
            f"hidden_block_count_{axis}": count,
            f"hidden_group_size_{axis}": size,
            f"hidden_remainder_{axis}": 0,
            f"hidden_global_offset_{axis}": 0,
        }
    return values


def fill_hidden(kernarg: bytes, kernel_arguments: tuple[Argument, ...], grid: Dim3, workgroup: Dim3) -> bytes:
    """The kernarg segment with its hidden arguments. Raises LaunchError for one that is not known."""
    filled, values = bytearray(kernarg), hidden_values(grid, workgroup)
    for argument in kernel_arguments:
        if argument.hidden:
            if argument.kind not in values:
                raise LaunchError(f"the kernel takes a {argument.kind}, which the emulator does not have")
            filled[argument.offset : argument.offset + argument.size] = values[argument.kind].to_bytes(argument.size, "little")
    return bytes(filled)


class _Argument(msgspec.Struct):
    kind: str = msgspec.field(name=".value_kind")
    offset: int = msgspec.field(name=".offset")
    size: int = msgspec.field(name=".size")


class _Kernel(msgspec.Struct):
    name: str = msgspec.field(name=".name")
    arguments: tuple[_Argument, ...] = msgspec.field(name=".args", default=())


class _Metadata(msgspec.Struct):
    kernels: tuple[_Kernel, ...] = msgspec.field(name="amdhsa.kernels")
