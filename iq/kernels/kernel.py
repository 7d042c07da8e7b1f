"""A kernel as one value: what it reads and writes, its sizes and grid, its schedules, the arithmetic it is held to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from iq.formats import Format
from iq.kernels.schedule import Schedule
from iq.targets import Target

# Bytes of an element.
_BYTES = {"f32": 4, "i32": 4, "f16": 2, "bf16": 2, "i8": 1}

# The schedules of a kernel on a target, for a format and the M that the kernel is for (0: any).
Schedules = Callable[[Target, type[Format], int], tuple[Schedule, ...]]


@dataclass(frozen=True)
class Tensor:
    """A flat tensor argument.

    name: as templates know it. dtype: its element type as MLIR spells it; "" stands for the one that the kernel's key names. dims: names of
    sizes, derived ones included, names of constants of the dispatch that writes it (Schedule.constants), or numbers; their product is the
    number of elements.
    """

    name: str
    dtype: str
    dims: tuple[str | int, ...]

    def nbytes(self, sizes: Mapping[str, int], dtype: str = "") -> int:
        """Its bytes for these sizes (see `all_sizes`); dtype: of a tensor that has none of its own."""
        return math.prod(dim if isinstance(dim, int) else sizes[dim] for dim in self.dims) * _BYTES[self.dtype or dtype]


@dataclass(frozen=True)
class Derived:
    """A size that follows from another one, `of`: `times` of it for every `over`, rounded up, plus the size `plus` if it names one."""

    of: str
    times: int
    over: int = 1
    plus: str = ""


def derived_sizes(fmt: type[Format], constants: Mapping[str, int]) -> dict[str, Derived]:
    """Sizes that follow from those of a call.

    k: weights of a row. row_bytes: its bytes. q8_blocks: the blocks of 32 activations that are multiplied with it.
    Where activations are laid out in tiles (`constants` has tile_m and tile_k): m_tiles, k_tiles: how many there are.
    Where picks are grouped by expert (`constants` has pick_tile): pick_tiles: room for tiles of so many, the last of each expert not full.
    """
    weights = fmt.kernel_block_weights()
    sizes = {
        "k": Derived("blocks", weights),
        "row_bytes": Derived("blocks", fmt.kernel_block_bytes()),
        "q8_blocks": Derived("blocks", weights // 32),
    }
    if "tile_k" in constants:
        common = math.gcd(weights, constants["tile_k"])
        sizes["k_tiles"] = Derived("blocks", weights // common, constants["tile_k"] // common)
        sizes["m_tiles"] = Derived("m", 1, constants["tile_m"])
    if "pick_tile" in constants:
        sizes["pick_tiles"] = Derived("picks", 1, constants["pick_tile"], plus="experts")
    return sizes


def all_sizes(fmt: type[Format], sizes: Mapping[str, int], constants: Mapping[str, int] = MappingProxyType({})) -> dict[str, int]:
    """Sizes, and those that follow from them."""
    derived = derived_sizes(fmt, constants).items()
    found = {name: -(-sizes[d.of] * d.times // d.over) + (sizes[d.plus] if d.plus else 0) for name, d in derived if d.of in sizes}
    return {**found, **constants, **sizes}


@dataclass(frozen=True)
class Axis:
    """One dimension of a grid: ceil(size / tile) workgroups. tile: a field of the kernel's schedule; "" is a workgroup for each."""

    size: str
    tile: str = ""


@dataclass(frozen=True)
class Kernel:
    """One function on the device.

    name: its own. reads, writes: buffers in the order of their bindings. sizes: its 32-bit push constants.
    grid: up to three dimensions, x first.
    schedules: those of a target, a format and the M that the kernel is for (0: any), the default first; none where there is no such kernel.
    model: the numeric model that its results are held to (iq.verify.cases); "" where it is only ever a part of an op.
    unit: what does its arithmetic, "dot", "matrix" or "vector"; "" where it only converts.
    family: the template where several kernels share one, else it is called like the kernel.
    """

    name: str
    reads: tuple[Tensor, ...]
    writes: tuple[Tensor, ...]
    sizes: tuple[str, ...]
    grid: tuple[Axis, ...]
    schedules: Schedules
    model: str = ""
    unit: str = ""
    family: str = ""

    @property
    def template(self) -> str:
        """The path of its template, from templates/."""
        return f"kernels/{self.family or self.name}.mlir.j2"

    def binding(self, name: str) -> int:
        """The number of a buffer's binding. Raises KeyError for a buffer that it does not have."""
        return {tensor.name: number for number, tensor in enumerate((*self.reads, *self.writes))}[name]
