"""What a host needs to launch a kernel: the dispatches of a key, as a manifest carries them.

A record stands for itself: with it and the code, neither schedules nor templates are needed, nor IREE. Sizes are arguments, so a record
serves every shape: lengths, grids and scratch follow from the sizes of a call.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import msgspec

from iq.bundle.executable import Executable
from iq.errors import BytecodeError
from iq.formats import FORMATS
from iq.kernels import KernelSpec, plan
from iq.kernels import Tensor as Declared
from iq.kernels.kernel import derived_sizes
from iq.targets import Target

# Bytes of an element.
ITEMSIZES = {"f32": 4, "i32": 4, "f16": 2, "bf16": 2, "i8": 1}

# What no GPU has more of: threads of a workgroup, bytes of shared memory for one.
_MOST_THREADS, _MOST_SHARED = 1024, 1 << 20


class Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A flat tensor: its name, its element type, and the sizes or numbers whose product is the number of its elements."""

    name: str
    dtype: str
    dims: tuple[str | int, ...]

    def nbytes(self, sizes: Mapping[str, int]) -> int:
        """Its bytes for these sizes, derived ones included."""
        return math.prod(dim if isinstance(dim, int) else sizes[dim] for dim in self.dims) * ITEMSIZES[self.dtype]


class Derived(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A size that follows from another one, `of`: `times` of it for every `over`, rounded up, plus the size `plus` if it names one."""

    name: str
    of: str
    times: int
    over: int = 1
    plus: str = ""


class Axis(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One dimension of a grid: ceil(size / tile) workgroups."""

    size: str
    tile: int


class Dispatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One launch.

    function: the name of the kernel in the code. buffers, sizes: its arguments, 64-bit pointers and then 32-bit integers, by name.
    grid: up to three dimensions, x first; where one is empty nothing is launched. block: threads of a workgroup along x, y, z.
    shared: bytes of shared memory that the launch asks for; static LDS is not among them.
    """

    function: str
    buffers: tuple[str, ...]
    sizes: tuple[str, ...]
    grid: tuple[Axis, ...]
    block: tuple[int, int, int]
    shared: int


class Launches(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the kernel of a key is run.

    inputs, sizes, outputs: the arguments of a call, in this order; they do not overlap. derived: sizes that follow from those.
    scratch: buffers between the dispatches, which the caller provides. dispatches: in order, each after the one before is done.
    """

    inputs: tuple[Tensor, ...]
    sizes: tuple[str, ...]
    outputs: tuple[Tensor, ...]
    derived: tuple[Derived, ...]
    scratch: tuple[Tensor, ...]
    dispatches: tuple[Dispatch, ...]

    def all_sizes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """The sizes of a call, and those that follow from them."""
        derived = {d.name: -(-d.times * sizes[d.of] // d.over) + (sizes[d.plus] if d.plus else 0) for d in self.derived}
        return {**sizes, **derived}

    def problems(self) -> Iterator[str]:
        """What is wrong with it, in clauses."""
        given, tensors = {*self.sizes}, (*self.inputs, *self.outputs, *self.scratch)
        sizes, names = given | {d.name for d in self.derived}, {t.name for t in tensors}
        if len(sizes) < len(self.sizes) + len(self.derived):
            yield "has a size twice"
        if len(names) < len(tensors):
            yield "has a tensor twice"
        if not self.dispatches:
            yield "launches nothing"
        for d in self.derived:
            if d.of not in given or not (0 < d.times < 1 << 31 and 0 < d.over < 1 << 31) or (d.plus and d.plus not in given):
                more = f" for every {d.over}" if d.over != 1 else "", f", and {d.plus}" if d.plus else ""
                yield f"derives {d.name} from {d.times} {d.of}" + "".join(more)
        for t in tensors:
            if t.dtype not in ITEMSIZES:
                yield f"has {t.name} of {t.dtype}; expected {', '.join(ITEMSIZES)}"
            if any(not 0 < d < 1 << 31 if isinstance(d, int) else d not in sizes for d in t.dims):
                yield f"has {t.name} of dims {list(t.dims)}; expected positive numbers, or sizes among {', '.join(sorted(sizes))}"
        for dispatch in self.dispatches:
            unknown = {*dispatch.buffers} - names | {*dispatch.sizes, *(a.size for a in dispatch.grid)} - sizes
            if unknown:
                yield f"launches {dispatch.function} with {', '.join(sorted(unknown))}, which it does not have"
            if not 1 <= len(dispatch.grid) <= 3 or any(not 0 < axis.tile < 1 << 31 for axis in dispatch.grid):
                yield f"launches {dispatch.function} on a grid of {len(dispatch.grid)} dimensions; expected 1 to 3, with tiles from 1 on"
            if min(dispatch.block) < 1 or math.prod(dispatch.block) > _MOST_THREADS or not 0 <= dispatch.shared <= _MOST_SHARED:
                yield f"launches {dispatch.function} with {dispatch.block} threads and {dispatch.shared} bytes of shared memory"

    def check(self, executable: Executable) -> None:
        """Raises BytecodeError where the code takes its kernels to be launched otherwise."""
        for dispatch in self.dispatches:
            export = executable.exports.get(dispatch.function)
            if export is None:
                raise BytecodeError(f"the code has no kernel {dispatch.function}")
            recorded = (dispatch.block, dispatch.shared, len(dispatch.buffers), len(dispatch.sizes))
            if recorded != (export.block, export.shared, export.buffers, export.constants):
                raise BytecodeError(f"the code has {export}, recorded is {dispatch}")


def launches_of(spec: KernelSpec, target: Target, executable: Executable | None) -> Launches:
    """How a kernel is launched on a target. executable: its code for a GPU, which says what shared memory it takes; None for a CPU.

    Raises KernelKeyError for a kernel that the target does not have, BytecodeError for code that is not what the target's schedules make.
    """

    def tensor(t: Declared) -> Tensor:
        return Tensor(t.name, t.dtype or spec.dtype or "", t.dims)

    op = spec.definition
    given = {t.name for t in (*op.inputs, *op.outputs)}
    scratch: dict[str, Tensor] = {}
    constants: dict[str, int] = {}
    dispatches = []
    for dispatch in plan(spec, target):
        kernel = dispatch.kernel
        scratch |= {t.name: tensor(dispatch.tensor(t)) for t in kernel.writes if t.name not in given}
        constants |= dict(dispatch.constants)
        grid = tuple(Axis(axis.size, getattr(dispatch.schedule, axis.tile) if axis.tile else 1) for axis in kernel.grid)
        export = executable.exports.get(dispatch.name) if executable else None
        dispatches.append(
            Dispatch(
                dispatch.name,
                tuple(t.name for t in (*kernel.reads, *kernel.writes)),
                kernel.sizes,
                grid,
                (dispatch.schedule.threads(target.wave), 1, 1),
                export.shared if export else 0,
            )
        )
    inputs, outputs = tuple(map(tensor, op.inputs)), tuple(map(tensor, op.outputs))
    used = {dim for t in (*inputs, *outputs, *scratch.values()) for dim in t.dims}
    used |= {name for d in dispatches for name in (*d.sizes, *(axis.size for axis in d.grid))}
    sizes = derived_sizes(FORMATS[spec.format], constants)
    derived = tuple(Derived(name, d.of, d.times, d.over, d.plus) for name, d in sizes.items() if name in used - set(op.sizes))
    found = Launches(inputs, op.sizes, outputs, derived, tuple(scratch.values()), tuple(dispatches))
    if executable:
        found.check(executable)
    return found
