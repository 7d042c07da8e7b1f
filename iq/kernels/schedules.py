"""Which schedules each kernel has on each target: a table a kernel, a row an architecture, a reason beside each number.

A table is looked up by the target's id, then by what the target is `like`, then by its family (Target.lineage).
The functions at the end are what kernels refer to: the schedules on a target for a format, the default first; none for no kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from iq.formats import Format
from iq.kernels.schedule import (
    DotSchedule,
    ElementSchedule,
    GroupSchedule,
    MatrixSchedule,
    Q8Schedule,
    Q8TilesSchedule,
    RowSchedule,
    Schedule,
    VecSchedule,
)
from iq.targets import Target

# M that the matvecs have kernels for. On an H100, in five formats and five shapes, clamping 3 and 5 to the next power of two cost 16 and
# 28% on average, and 7 to 8 cost 5%; with activations in tiles a kernel for 6 is slower than that for 8 (H200, q4_0, 32768 x 8192: 90 us
# against 73). On a CPU with VNNI (4096 x 4096, one thread) 3, 5, 6 and 7 cost 15 to 22%, 42 to 67%, 15 to 39% and 10 to 17%. On AMD GPUs
# nothing is measured.
MOST_VEC_COLUMNS = 8
VEC_COLUMNS: dict[str, tuple[int, ...]] = {
    "rocm": (1, 2, 4, 8),
    "cuda": (1, 2, 3, 4, 5, 8),
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

# Rows of the weight that a wave takes at a time, up to an M, by format ("" for those that are not named): they share the activations that
# the wave loads, and take registers. On an H200, in five formats at 32768 x 8192, 4 rows took 0.24 to 0.50 of the time of one with M = 8;
# with M = 2 q8_0 does best with 1. On AMD by counting: instructions of the loop per 32 weights and row of activations, and waves that a
# SIMD has room for. gfx1100, M = 8, with 1, 2, 4 rows: q4_0 23.2, 18.2, 15.3 (12, 12, 9 waves), q4_K 24.4, 20.8, 18.4 (12, 10, 6), q6_K
# 29.0, 23.9 (9, 7), which spills with 4, as do q2_K, q3_K, iq1_m and on gfx1201 tq1_0 (8, 26, 20 and 3 VGPRs). gfx942: q4_0 20.0, 15.7,
# 14.0 (5, 4, 4), q4_K 22.8, 18.6, 16.4 (4, 4, 2). More rows are taken where they save a tenth and do not halve the waves; with M = 8,
# where instructions set the pace, not memory, also where they do. On gfx1030 tq1_0, iq2_xs, iq2_s and iq1_m spill with 4 (8, 29, 7 and 4
# VGPRs). Kernels for CPUs take a row at a time.
_TWO_AT_MOST = {1: 1, 8: 2}
MUL_MAT_VEC_ROWS: dict[str, dict[str, dict[int, int]]] = {
    "rocm": {"": {1: 1, 4: 2, 8: 4}},
    # 256 registers to a lane, half of what gfx90a has: iq1_M, iq2_S and tq1_0 spill with 4 rows, q3_K and tq1_0 with 2.
    "gfx906": {"": _TWO_AT_MOST, "q3_k": {8: 1}, "tq1_0": {8: 1}},
    "gfx90a": {"": {1: 1, 4: 2, 8: 4}, "q5_k": {2: 1, 4: 2, 8: 4}, "q6_k": {2: 1, 8: 2}},
    "gfx1010": {"": {8: 1}},  # without v_dot4 bytes are taken apart in registers: q6_K spills with 2 rows
    "gfx1030": {"": {1: 1, 4: 2, 8: 4}}
    | dict.fromkeys(("q5_k", "q6_k", "tq1_0", "iq4_xs", "nvfp4", "iq2_xs", "iq2_s", "iq1_m"), _TWO_AT_MOST),
    "gfx1100": {"": {1: 1, 4: 2, 8: 4}} | dict.fromkeys(("q4_0", "q2_k", "q3_k", "q6_k", "tq1_0", "iq1_m"), _TWO_AT_MOST),
    "cuda": {"": {1: 1, 2: 2, 8: 4}, "q8_0": {2: 1, 8: 4}},
}
DEQUANTIZE_MUL_MAT_VEC_ROWS: dict[str, dict[str, dict[int, int]]] = {"rocm": {"": {1: 1, 8: 2}}, "cuda": {"": {1: 1, 8: 2}}}
# Spread sums, 16 or 32 a wave, are for lane tiles of at least so many weights: on an H200 they took 0.87 to 0.96 of the time for K-quants,
# and 0.92 to 1.2 for q4_0 and q8_0, more with longer rows. On AMD, whose sums over a wave end in scalar registers, they are not tried.
SPREAD_SUMS: dict[str, int] = {"cuda": 64}
# For these M, by format, waves take their rows without a loop around it, which turns once where tile_n is as many rows as they take at a
# time. On AMD a loop only costs instructions. On an H200 ptxas orders the loads otherwise, for better or worse: without a loop kernels
# took 0.77 to 1.7 of the time, so the table has what did best over four shapes in five formats.
_ANY_M = tuple(range(1, MOST_VEC_COLUMNS + 1))
MUL_MAT_VEC_NO_LOOP: dict[str, dict[str, tuple[int, ...]]] = {
    "rocm": {"": _ANY_M},
    "cuda": {"q4_0": (1, 2, 4, 5), "q8_0": (2, 5), "q4_k": (1, 2, 4, 8), "q5_k": (2, 3), "q6_k": (1,), "": ()},
}
DEQUANTIZE_MUL_MAT_VEC_NO_LOOP: dict[str, dict[str, tuple[int, ...]]] = {"rocm": {"": _ANY_M}, "cuda": {"": ()}}

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
# With early loads CUDA takes 0.83 to 0.88 of the time that it takes without them for q4_0, q5_K and q6_K, 0.91 for q4_K, 1.07 for q8_0
# (14336 x 4096, M = 512, an H100), 0.93 to 1 at M = 16. On AMD a barrier waits for the loads before it: early ones would not be in flight.
MUL_MAT_FLOAT: dict[str, MatrixSchedule] = {
    "gfx906": MatrixSchedule(128, 64, tile_k=32, waves_n=2, waves_m=2),
    "gfx90a": MatrixSchedule(128, 128, tile_k=32, waves_n=2, waves_m=2),
    "gfx1030": MatrixSchedule(64, 64, tile_k=32, waves_n=2, waves_m=2),
    "gfx1100": MatrixSchedule(128, 128, tile_k=32, waves_n=2, waves_m=4),
    "sm_80": MatrixSchedule(128, 64, tile_k=32, waves_n=2, waves_m=2, early_loads=True),
}
MUL_MAT_Q8_1: dict[str, DotSchedule] = {
    "gfx1010": DotSchedule(32, 32, thread_n=2, thread_m=4),  # 4 x 4 spills, as in mul_mat_vec
    "rocm": DotSchedule(64, 64, thread_n=4, thread_m=4),
    "cuda": DotSchedule(64, 64, thread_n=4, thread_m=4),
}

# Products with experts. A tile of picks shares an expert, and experts have few picks each, so that tiles are half as wide as dense ones:
# with 512 tokens, 8 of 128 experts each, an expert has 32 picks.
GROUPED_MUL_MAT_FLOAT: dict[str, MatrixSchedule] = {
    "gfx90a": MatrixSchedule(128, 64, tile_k=32, waves_n=2, waves_m=2),
    "gfx1030": MatrixSchedule(64, 64, tile_k=32, waves_n=2, waves_m=2),
    "gfx1100": MatrixSchedule(128, 64, tile_k=32, waves_n=4, waves_m=2),
    "sm_80": MatrixSchedule(128, 64, tile_k=32, waves_n=2, waves_m=2, early_loads=True),
}
# Picks for each expert, on average, above which they are grouped. By counting bytes of weights: a matvec a pick reads an expert's matrix
# for each pick, r times for r picks of each expert; tiles read those of the experts that have a pick once, 1 - e^-r of them. That is 1.6
# times as much at r = 1 and 4.1 times at r = 4, where a matvec reads at most three times as fast as tiles that are mostly empty. On CPUs a
# tile of 8 picks costs the same however few are in it: on one with VNNI, weights in its cache (8 experts, 512 x 512), matvecs took 0.4 to
# 0.7 of the time for r = 3, for r = 8 1.3 (q4_K), 0.9 (q6_K, q8_0) and 0.6 (f16).
PICKS_TO_GROUP: dict[str, int] = {"rocm": 3, "cuda": 3, "cpu": 8}
# The most experts that are grouped: two numbers in LDS for each.
MOST_EXPERTS = 1024
GROUP_PICKS_THREADS: dict[str, int] = {"rocm": 1024, "cuda": 1024, "cpu": 1}

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


def mul_mat_vec_tiles(target: Target, fmt: type[Format], tile_m: int) -> tuple[VecSchedule, ...]:
    schedules = _with_rows(mul_mat_vec(target, fmt, tile_m), target, fmt, MUL_MAT_VEC_ROWS, MUL_MAT_VEC_NO_LOOP)
    least = next(iter(_row(SPREAD_SUMS, target)), None)
    return tuple(replace(s, spread=least is not None and s.lane_tile >= least and s.rows * s.tile_m in (16, 32)) for s in schedules)


def quantize_q8_1_tiles(target: Target, fmt: type[Format], tile_m: int) -> tuple[Q8TilesSchedule, ...]:
    schedules = mul_mat_vec_tiles(target, fmt, tile_m)[:1]
    return tuple(
        Q8TilesSchedule(q.workgroup, q.lanes, q.q8_tile, tile_m=s.tile_m, lane_tile=s.lane_tile)
        for s in schedules
        for q in quantize_q8_1(target, fmt, tile_m)
    )


def _with_rows(
    schedules: tuple[VecSchedule, ...],
    target: Target,
    fmt: type[Format],
    rows_up_to_m: Mapping[str, Mapping[str, Mapping[int, int]]],
    no_loop: Mapping[str, Mapping[str, tuple[int, ...]]],
) -> tuple[VecSchedule, ...]:
    """The schedules with as many rows a wave as the tables have for the target; none where they have none."""
    found = []
    for rows_by_format, by_format in zip(_row(rows_up_to_m, target), _row(no_loop, target), strict=True):
        by_m, without = rows_by_format.get(fmt.name, rows_by_format[""]), by_format.get(fmt.name, by_format[""])
        for s in schedules:
            rows = 1 if s.split_k > 1 else next(rows for m, rows in by_m.items() if s.tile_m <= m)
            found.append(replace(s, rows=rows, tile_n=s.waves * rows // s.split_k, row_loop=s.tile_m not in without))
    return tuple(found)


def dequantize_mul_mat_vec(target: Target, fmt: type[Format], tile_m: int) -> tuple[VecSchedule, ...]:
    schedules = _vec(DEQUANTIZE_MUL_MAT_VEC, target, tile_m, min(32, fmt.kernel_block_weights()))
    return _with_rows(schedules, target, fmt, DEQUANTIZE_MUL_MAT_VEC_ROWS, DEQUANTIZE_MUL_MAT_VEC_NO_LOOP) or schedules


def element(target: Target, fmt: type[Format], tile_m: int) -> tuple[ElementSchedule, ...]:
    [(threads, values)] = _row(ELEMENT_VALUES, target)
    return (ElementSchedule(threads, max(1, values // fmt.kernel_block_weights())),)


def quantize_q8_1(target: Target, fmt: type[Format], tile_m: int) -> tuple[Q8Schedule, ...]:
    return _row(QUANTIZE_Q8_1, target)


def scale_rows(target: Target, fmt: type[Format], tile_m: int) -> tuple[RowSchedule, ...]:
    return _row(SCALE_ROWS, target) if fmt.kind == "weights" else ()


def mul_mat_float(target: Target, fmt: type[Format], tile_m: int) -> tuple[MatrixSchedule, ...]:
    return _row(MUL_MAT_FLOAT, target) if target.matrix and fmt.kind == "weights" else ()


def for_picks(schedules: Callable[[Target, type[Format], int], tuple[Schedule, ...]]) -> Callable[..., tuple[Schedule, ...]]:
    """Those of a matvec that is run once for each pick: for one row of activations, the default alone."""
    return lambda target, fmt, tile_m: schedules(target, fmt, 1)[:1]


def group_picks(target: Target, fmt: type[Format], tile_m: int) -> tuple[GroupSchedule, ...]:
    return tuple(GroupSchedule(threads, tile_m, MOST_EXPERTS) for threads in _row(GROUP_PICKS_THREADS, target))


def grouped_mul_mat_float(target: Target, fmt: type[Format], tile_m: int) -> tuple[MatrixSchedule, ...]:
    return _row(GROUPED_MUL_MAT_FLOAT, target) if mul_mat_float(target, fmt, tile_m) else ()


def picks_to_group(target: Target) -> int:
    """Picks for each expert, on average, above which they are grouped by expert."""
    [picks] = _row(PICKS_TO_GROUP, target)
    return picks


def mul_mat_q8_1(target: Target, fmt: type[Format], tile_m: int) -> tuple[DotSchedule, ...]:
    return _row(MUL_MAT_Q8_1, target) if fmt.kind == "weights" else ()
