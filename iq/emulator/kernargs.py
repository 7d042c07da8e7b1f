"""The hidden arguments of a kernel, which the runtime fills in (AMDGPUUsage, "Code Object V3 Metadata" and "V5 Metadata")."""

from __future__ import annotations

from collections.abc import Mapping

from iq.bundle.codeobject import Argument
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
