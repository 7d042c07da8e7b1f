"""How the kernels that quantize weights, and rotate what a cache takes, are laid over each target; the others: iq.kernels.schedules."""

from __future__ import annotations

from dataclasses import dataclass

from iq.formats import Format
from iq.kernels.schedule import Schedule
from iq.targets import Target


@dataclass(frozen=True)
class QuantizeSchedule(Schedule):
    """quantize, quantize_imatrix, set_rows: a workgroup of `workgroup` threads takes block_tile blocks, a lane sub_blocks at a time.

    sub_blocks: elements of a lane's vectors; whole blocks where it is more than one.
    """

    workgroup: int
    block_tile: int
    sub_blocks: int

    @property
    def label(self) -> str:
        return f"b{self.block_tile}_t{self.workgroup}_s{self.sub_blocks}"

    def threads(self, wave: int) -> int:
        return self.workgroup


@dataclass(frozen=True)
class HadamardSchedule(QuantizeSchedule):
    """hadamard: as quantize, with runs of 32 values for sub-blocks and blocks. block_weights: values of a workgroup's tile of a row."""

    @property
    def block_weights(self) -> int:
        return 32 * self.block_tile


# Sub-blocks of a lane's vectors, and how often a workgroup, of one wave, takes as many. Rows may be short, and searches take many
# registers: GPUs have a sub-block a lane, once. A CPU's vectors hold 8, or all sub-blocks of a block that has more.
QUANTIZE: dict[str, tuple[int, int]] = {"rocm": (1, 1), "cuda": (1, 1), "cpu": (8, 64)}


def _columns_and_turns(target: Target) -> tuple[int, int]:
    return next(QUANTIZE[name] for name in target.lineage if name in QUANTIZE)


def quantize(target: Target, fmt: type[Format], tile_m: int) -> tuple[QuantizeSchedule, ...]:
    if not fmt.quantizer:
        return ()
    per_block = fmt.kernel_block_weights() // (fmt.sub_block or 8)
    columns, turns = _columns_and_turns(target)
    sub_blocks = columns if columns == 1 else max(columns, per_block)
    return (QuantizeSchedule(target.wave, target.wave * sub_blocks * turns // per_block, sub_blocks),)


def quantize_imatrix(target: Target, fmt: type[Format], tile_m: int) -> tuple[QuantizeSchedule, ...]:
    return quantize(target, fmt, tile_m) if fmt.imatrix != "ignored" else ()


def set_rows(target: Target, fmt: type[Format], tile_m: int) -> tuple[QuantizeSchedule, ...]:
    # For caches, whose rows are too short for super-blocks.
    return quantize(target, fmt, tile_m) if fmt.block_size <= 32 else ()


def hadamard(target: Target, fmt: type[Format], tile_m: int) -> tuple[HadamardSchedule, ...]:
    columns, turns = _columns_and_turns(target)
    runs = columns if columns == 1 else 16  # a CPU's vectors hold those of the widest transform
    return (HadamardSchedule(target.wave, target.wave * runs * turns, runs),)
