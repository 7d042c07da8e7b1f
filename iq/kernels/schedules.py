"""How each kernel is laid over each target: typed schedules, one class for each way to lay a kernel out, and a table an architecture.

A table is looked up by the target's id, then by what the target is `like`, then by its family (Target.lineage).
The functions at the end are what kernels refer to: the schedules on a target for a format, the default first; none for no kernel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

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


@dataclass(frozen=True)
class VecSchedule(Schedule):
    """mul_mat_vec and dequantize_mul_mat_vec. A workgroup makes tile_n results of each of tile_m rows of activations.

    waves: of a workgroup. split_k: waves that share a row of the weight and add up through LDS; else a wave takes a row alone, and the
    workgroup's waves take its tile_n rows in turn. lane_tile: weights that a lane takes at a time.
    max_n, max_m: it is chosen for at most as many rows of the weight, and of activations (see iq.kernels.choose); a max_n of 0 makes it the
    default schedule.
    """

    waves: int
    tile_n: int
    tile_m: int = 1
    lane_tile: int = 32
    split_k: int = 1
    max_n: int = 0
    max_m: int = 8

    @property
    def label(self) -> str:
        return f"m{self.tile_m}_n{self.tile_n}_w{self.waves}_t{self.lane_tile}" + (f"_k{self.split_k}" if self.split_k > 1 else "")

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
class RowSchedule(Schedule):
    """scale_rows: a workgroup of `workgroup` threads takes a row."""

    workgroup: int

    @property
    def label(self) -> str:
        return f"t{self.workgroup}"

    def threads(self, wave: int) -> int:
        return self.workgroup


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
    """mul_mat_q8_1: tile_n x tile_m results a workgroup, thread_n x thread_m of them a thread."""

    tile_n: int
    tile_m: int
    thread_n: int
    thread_m: int

    @property
    def label(self) -> str:
        return f"n{self.tile_n}_m{self.tile_m}_t{self.thread_n}x{self.thread_m}"

    def threads(self, wave: int) -> int:
        return (self.tile_n // self.thread_n) * (self.tile_m // self.thread_m)


# M that the matvecs have kernels for. On an H100, in five formats and five shapes, clamping 3, 5 and 6 to the next power of two cost 16, 28
# and 17% on average, and 7 to 8 cost 5%. On a CPU with VNNI (4096 x 4096, one thread) 3, 5, 6 and 7 cost 15 to 22%, 42 to 67%, 15 to 39%
# and 10 to 17%. On AMD GPUs nothing is measured.
MOST_VEC_COLUMNS = 8
VEC_COLUMNS: dict[str, tuple[int, ...]] = {
    "rocm": (1, 2, 4, 8),
    "cuda": (1, 2, 3, 4, 5, 6, 8),
    "cpu": (1, 2, 3, 4, 5, 6, 7, 8),
}

# Four waves a workgroup, a row each, measured best on an H200 and modelled so on gfx9 to gfx12. A CPU workgroup takes enough rows to hide
# its dispatch (about 0.1 us), few enough to spread over cores.
_ROW_A_WAVE = VecSchedule(waves=4, tile_n=4)
# Weights of few rows do not fill a GPU with a wave each. Two waves a row took 0.81 of the time (0.65 to 0.99) on an H100 for N <= 1024 and
# M <= 4, in five formats; above that they lost as often as they won. On gfx1100 this is not measured, for want of the GPU.
_TWO_WAVES_A_ROW = VecSchedule(waves=4, tile_n=2, split_k=2, max_n=1024, max_m=4)
MUL_MAT_VEC: dict[str, tuple[VecSchedule, ...]] = {
    "rocm": (_ROW_A_WAVE,),
    "gfx1100": (_ROW_A_WAVE, _TWO_WAVES_A_ROW),
    "cuda": (_ROW_A_WAVE,),
    "sm_80": (_ROW_A_WAVE, _TWO_WAVES_A_ROW),
    "cpu": (VecSchedule(waves=1, tile_n=32),),
}
DEQUANTIZE_MUL_MAT_VEC: dict[str, tuple[VecSchedule, ...]] = {
    "rocm": (_ROW_A_WAVE,),
    "cuda": (_ROW_A_WAVE,),
    "cpu": (VecSchedule(waves=1, tile_n=32),),
}

# Element-wise kernels. On a GPU each thread writes 8 values, 16 or 32 bytes.
_ELEMENT_THREADS = 256
ELEMENT_VALUES: dict[str, tuple[int, int]] = {  # threads and values of a workgroup
    "rocm": (_ELEMENT_THREADS, 8 * _ELEMENT_THREADS),
    "cuda": (_ELEMENT_THREADS, 8 * _ELEMENT_THREADS),
    "cpu": (1, 16384),
}
QUANTIZE_Q8_1: dict[str, Q8Schedule] = {
    "rocm": Q8Schedule(256, lanes=8, q8_tile=32),
    "cuda": Q8Schedule(256, lanes=8, q8_tile=32),
    "cpu": Q8Schedule(1, lanes=1, q8_tile=128),
}
SCALE_ROWS: dict[str, RowSchedule] = {"rocm": RowSchedule(256), "cuda": RowSchedule(256)}

# A wave's results (64x64 on gfx9, 64x32 where waves are 32 lanes) take 64 registers. On AMD's wave32 targets eight such waves share each
# decoded weight four ways. mma_sync: 128x128 with eight waves was 0.8 to 1.3 times as fast at M = 512 on an H200, and 0.6 to 1.0 at 32.
# Early loads on CUDA took 0.83 to 0.88 of the time for q4_0, q5_K and q6_K, 0.91 for q4_K, 1.07 for q8_0 (14336 x 4096, M = 512, an H100),
# and up to 8% less at small M. On AMD a barrier waits for the loads before it, so that early ones would not be in flight any more.
MUL_MAT_FLOAT: dict[str, MatrixSchedule] = {
    "gfx90a": MatrixSchedule(128, 128, tile_k=32, waves_n=2, waves_m=2),
    "gfx1030": MatrixSchedule(64, 64, tile_k=32, waves_n=2, waves_m=2),
    "gfx1100": MatrixSchedule(128, 128, tile_k=32, waves_n=2, waves_m=4),
    "sm_80": MatrixSchedule(128, 64, tile_k=32, waves_n=2, waves_m=2, early_loads=True),
}
MUL_MAT_Q8_1: dict[str, DotSchedule] = {
    "rocm": DotSchedule(64, 64, thread_n=4, thread_m=4),
    "cuda": DotSchedule(64, 64, thread_n=4, thread_m=4),
}

_Row = TypeVar("_Row")


def _row(table: Mapping[str, _Row], target: Target) -> tuple[_Row, ...]:
    """The target's row of a table, or nothing."""
    return next(((table[name],) for name in target.lineage if name in table), ())


def vec_columns(target: Target) -> tuple[int, ...]:
    """The M that the matvecs have kernels for, ascending; for another M the next larger one runs, its last columns clamped."""
    [columns] = _row(VEC_COLUMNS, target)
    return columns


def _vec(table: Mapping[str, tuple[VecSchedule, ...]], target: Target, tile_m: int, lane_tile: int) -> tuple[VecSchedule, ...]:
    if tile_m not in (0, *vec_columns(target)):
        return ()
    [rows] = _row(table, target)
    return tuple(replace(row, tile_m=tile_m, lane_tile=lane_tile) for row in rows if tile_m <= row.max_m)


def mul_mat_vec(target: Target, fmt: type[Format], tile_m: int) -> tuple[VecSchedule, ...]:
    # A lane takes all of a 32-weight block, or 64 weights of a super-block: two to four loads of 16 bytes.
    return _vec(MUL_MAT_VEC, target, tile_m, min(64, fmt.block_size)) if fmt.kind == "weights" else ()


def dequantize_mul_mat_vec(target: Target, fmt: type[Format], tile_m: int) -> tuple[VecSchedule, ...]:
    return _vec(DEQUANTIZE_MUL_MAT_VEC, target, tile_m, min(32, fmt.kernel_block_weights()))


def element(target: Target, fmt: type[Format], tile_m: int) -> tuple[ElementSchedule, ...]:
    [(threads, values)] = _row(ELEMENT_VALUES, target)
    return (ElementSchedule(threads, max(1, values // fmt.kernel_block_weights())),)


def quantize_q8_1(target: Target, fmt: type[Format], tile_m: int) -> tuple[Q8Schedule, ...]:
    return _row(QUANTIZE_Q8_1, target)


def scale_rows(target: Target, fmt: type[Format], tile_m: int) -> tuple[RowSchedule, ...]:
    return _row(SCALE_ROWS, target) if fmt.kind == "weights" else ()


def mul_mat_float(target: Target, fmt: type[Format], tile_m: int) -> tuple[MatrixSchedule, ...]:
    return _row(MUL_MAT_FLOAT, target) if target.matrix and fmt.kind == "weights" else ()


def mul_mat_q8_1(target: Target, fmt: type[Format], tile_m: int) -> tuple[DotSchedule, ...]:
    return _row(MUL_MAT_Q8_1, target) if fmt.kind == "weights" else ()
