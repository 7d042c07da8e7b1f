"""The dispatches that a kernel's key stands for on a target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from iq.errors import KernelKeyError
from iq.formats import FORMATS, Format
from iq.kernels.kernel import Kernel, Tensor
from iq.kernels.schedule import Schedule
from iq.kernels.schedules import MOST_VEC_COLUMNS
from iq.kernels.spec import KernelSpec
from iq.targets import Target


@dataclass(frozen=True)
class Dispatch:
    """A kernel with its schedule and the element type of its results ("" where it has only one). Keys that need the same one share it.

    constants: numbers that dims of its tensors name.
    """

    kernel: Kernel
    schedule: Schedule
    dtype: str
    constants: tuple[tuple[str, int], ...] = ()

    def tensor(self, declared: Tensor) -> Tensor:
        """One of the tensors that it writes, with numbers in the place of constants."""
        numbers: dict[str | int, int] = dict(self.constants)
        return replace(declared, dims=tuple(numbers.get(dim, dim) for dim in declared.dims))

    @property
    def name(self) -> str:
        """The name of the function on the device; the schedule is part of it."""
        return "_".join(part for part in (self.kernel.name, self.dtype, self.schedule.label) if part)

    def workgroups(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The workgroups along x, y and z for these sizes."""
        return tuple(-(-sizes[axis.size] // (getattr(self.schedule, axis.tile) if axis.tile else 1)) for axis in self.kernel.grid)


def plan(spec: KernelSpec, target: Target) -> tuple[Dispatch, ...]:
    """The dispatches of a kernel on a target, in order. Raises KernelKeyError for a kernel that the target does not have."""
    if not spec.exists(target):
        raise KernelKeyError(f"{target.id} has no kernel {spec.key}; `iq explain` shows which one it takes for a shape")
    fmt = FORMATS[spec.format]
    *before, last = spec.definition.kernels(spec.variant, target, fmt)
    # mul_mat over a matvec kernel takes the largest one, a tile of columns after the other.
    multiply = _dispatch(last, spec, target, fmt, spec.columns or MOST_VEC_COLUMNS)
    # What comes before it prepares tiles of as many rows of activations as it takes.
    tile_m = getattr(multiply.schedule, "tile_m", 0)
    return (*(_dispatch(kernel, spec, target, fmt, tile_m) for kernel in before), multiply)


def _dispatch(kernel: Kernel, spec: KernelSpec, target: Target, fmt: type[Format], m: int) -> Dispatch:
    schedules = kernel.schedules(target, fmt, m)
    schedule = next((s for s in schedules if s.key == spec.schedule), schedules[0])
    takes_dtype = any(not tensor.dtype for tensor in kernel.writes)
    return Dispatch(kernel, schedule, spec.dtype or "" if takes_dtype else "", tuple(schedule.constants(target, fmt).items()))
