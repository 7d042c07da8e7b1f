"""A schedule: how a kernel is laid over a target. One typed class for each way to lay a kernel out; the tables are iq.kernels.schedules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from iq.formats import Format
from iq.targets import Target


@dataclass(frozen=True)
class Schedule(ABC):
    """How a kernel is laid over a target."""

    @property
    @abstractmethod
    def label(self) -> str:
        """Part of the dispatch's name. Two schedules of one kernel differ in it."""

    @property
    def key(self) -> str:
        """The last part of the kernel's key; "" for the default schedule."""
        return ""

    @abstractmethod
    def threads(self, wave: int) -> int:
        """Threads of a workgroup whose waves have `wave` lanes."""

    def constants(self, target: Target, fmt: type[Format]) -> dict[str, int]:
        """Numbers that dims of the kernel's tensors name; none for most."""
        return {}


@dataclass(frozen=True)
class VecSchedule(Schedule):
    """mul_mat_vec and dequantize_mul_mat_vec. A workgroup makes tile_n results of each of tile_m rows of activations.

    waves: of a workgroup. rows: of the weight that a wave takes at a time, which share the activations it loads. split_k: waves that share
    rows and add up through LDS; else the workgroup's waves take its tile_n rows in turn. lane_tile: weights that a lane takes at a time.
    spread: whether the lanes of a wave end with a sum each, rather than all with all of them. row_loop: whether the rows of a workgroup are
    taken in a loop; without it tile_n is what its waves take at a time.
    max_n, max_m: it is chosen for at most as many rows of the weight, and of activations (see iq.kernels.choose); a max_n of 0 makes it the
    default schedule.
    """

    waves: int
    tile_n: int
    tile_m: int = 1
    lane_tile: int = 32
    rows: int = 1
    split_k: int = 1
    spread: bool = False
    row_loop: bool = True
    max_n: int = 0
    max_m: int = 8

    @property
    def label(self) -> str:
        parts = f"m{self.tile_m}_n{self.tile_n}_w{self.waves}_t{self.lane_tile}"
        more = (f"_r{self.rows}" if self.rows > 1 else ""), (f"_k{self.split_k}" if self.split_k > 1 else ""), "_s" if self.spread else ""
        return parts + "".join(more)

    @property
    def key(self) -> str:
        return f"split_k{self.split_k}" if self.max_n else ""

    def threads(self, wave: int) -> int:
        return self.waves * wave


@dataclass(frozen=True)
class ElementSchedule(Schedule):
    """dequantize and get_rows: a workgroup of `workgroup` threads takes block_tile blocks, 8 weights a thread at a time."""

    workgroup: int
    block_tile: int

    @property
    def label(self) -> str:
        return f"b{self.block_tile}_t{self.workgroup}"

    def threads(self, wave: int) -> int:
        return self.workgroup


@dataclass(frozen=True)
class Q8Schedule(Schedule):
    """quantize_q8_1: a workgroup of `workgroup` threads takes q8_tile blocks of 32 activations, `lanes` lanes a block."""

    workgroup: int
    lanes: int
    q8_tile: int

    @property
    def label(self) -> str:
        return f"b{self.q8_tile}_l{self.lanes}"

    def threads(self, wave: int) -> int:
        return self.workgroup


@dataclass(frozen=True)
class Q8TilesSchedule(Q8Schedule):
    """quantize_q8_1_tiles: as quantize_q8_1, into tiles of tile_m rows for lanes that take lane_tile weights at a time."""

    tile_m: int = 1
    lane_tile: int = 32

    @property
    def label(self) -> str:
        return f"m{self.tile_m}_t{self.lane_tile}_{super().label}"

    def constants(self, target: Target, fmt: type[Format]) -> dict[str, int]:
        # What a wave's lanes take at a time, and how many scales and sums go with it.
        tile_k = self.lane_tile * target.wave
        return {"tile_m": self.tile_m, "tile_k": tile_k, "tile_sums": tile_k // fmt.sub_block}


@dataclass(frozen=True)
class RowSchedule(Schedule):
    """scale_rows: a workgroup of `workgroup` threads takes a row."""

    workgroup: int

    @property
    def label(self) -> str:
        return f"t{self.workgroup}"

    def threads(self, wave: int) -> int:
        return self.workgroup


@dataclass(frozen=True)
class GroupSchedule(Schedule):
    """group_picks: one workgroup of `workgroup` threads makes tiles of up to pick_tile picks that share one of most_experts experts."""

    workgroup: int
    pick_tile: int
    most_experts: int

    @property
    def label(self) -> str:
        return f"p{self.pick_tile}_t{self.workgroup}"

    def threads(self, wave: int) -> int:
        return self.workgroup

    def constants(self, target: Target, fmt: type[Format]) -> dict[str, int]:
        return {"pick_tile": self.pick_tile}


@dataclass(frozen=True)
class MatrixSchedule(Schedule):
    """mul_mat_float: tile_n x tile_m results a workgroup of waves_n x waves_m waves, tile_k weights of every row a step.

    tile_k divides every block and 32, so that rows end with a whole step. early_loads: the next step's loads are issued before the barrier
    that the tiles wait for, rather than after it.
    """

    tile_n: int
    tile_m: int
    tile_k: int
    waves_n: int
    waves_m: int
    early_loads: bool = False

    @property
    def label(self) -> str:
        return f"n{self.tile_n}_m{self.tile_m}_k{self.tile_k}_w{self.waves_n}x{self.waves_m}" + ("_e" if self.early_loads else "")

    def threads(self, wave: int) -> int:
        return self.waves_n * self.waves_m * wave


@dataclass(frozen=True)
class DotSchedule(Schedule):
    """mul_mat_q8_1: tile_n x tile_m results a workgroup, thread_n x thread_m of them a thread.

    Four threads stage a row of each tile, so tile_n and tile_m are both 4 * thread_n * thread_m.
    """

    tile_n: int
    tile_m: int
    thread_n: int
    thread_m: int

    @property
    def label(self) -> str:
        return f"n{self.tile_n}_m{self.tile_m}_t{self.thread_n}x{self.thread_m}"

    def threads(self, wave: int) -> int:
        return (self.tile_n // self.thread_n) * (self.tile_m // self.thread_m)
