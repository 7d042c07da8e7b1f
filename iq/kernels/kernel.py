"""A kernel as one value: what it reads and writes, its sizes and grid, its schedules, the arithmetic it is held to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from iq.formats import Format
from iq.kernels.schedules import Schedule
from iq.targets import Target


@dataclass(frozen=True)
class Tensor:
    """A flat tensor argument.

    name: as templates know it. dtype: its element type as MLIR spells it; "" stands for the one that the kernel's key names. dims: names of
    sizes, derived ones included, or numbers; their product is the number of elements.
    """

    name: str
    dtype: str
    dims: tuple[str | int, ...]

    def elements(self, sizes: Mapping[str, int]) -> int:
        """How many elements it has. Raises KeyError for a size that is missing."""
        n = 1
        for dim in self.dims:
            n *= dim if isinstance(dim, int) else sizes[dim]
        return n


def derived_sizes(fmt: type[Format]) -> dict[str, int]:
    """Sizes that follow from `blocks`, the blocks of a row: each is `blocks` times the number given here.

    k: weights of a row. row_bytes: its bytes. q8_blocks: the blocks of 32 activations that are multiplied with it.
    """
    return {"k": fmt.kernel_block_weights(), "row_bytes": fmt.kernel_block_bytes(), "q8_blocks": fmt.kernel_block_weights() // 32}


@dataclass(frozen=True)
class Axis:
    """One dimension of a grid: ceil(size / tile) workgroups. tile: a field of the kernel's schedule; "" is a workgroup for each."""

    size: str
    tile: str = ""


@dataclass(frozen=True)
class Kernel:
    """One function on the device.

    name: its own. reads, writes: buffers in the order of their bindings. sizes: its 32-bit push constants. grid: up to three dimensions, x
    first. schedules: of a target, a format and the M that the kernel is for (0: any), the default first; none where there is no such kernel.
    model: the numeric model that its results are held to (iq.verify). unit: what does its arithmetic, "dot", "matrix" or "vector"; "" where
    it only converts. family: the template where several kernels share one, else it is called like the kernel.
    """

    name: str
    reads: tuple[Tensor, ...]
    writes: tuple[Tensor, ...]
    sizes: tuple[str, ...]
    grid: tuple[Axis, ...]
    schedules: Callable[[Target, type[Format], int], tuple[Schedule, ...]]
    model: str
    unit: str = ""
    family: str = ""

    @property
    def template(self) -> str:
        """The path of its template, from templates/."""
        return f"kernels/{self.family or self.name}.mlir.j2"

    def binding(self, name: str) -> int:
        """The number of a buffer's binding. Raises KeyError for a buffer that it does not have."""
        return {tensor.name: number for number, tensor in enumerate((*self.reads, *self.writes))}[name]
