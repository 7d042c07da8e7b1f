"""How each kernel is laid over each target: threads and tiles, as data.

A schedule answers the names that `iq.ops.Stage.grid` uses (`row_tile`, `column_tile`, `block_tile`, `span_tile`) and those that the
kernel's template uses (`threads`, `waves`, ...).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from iq.formats import Format
from iq.targets import Target


@dataclass(frozen=True)
class Schedule:
    """Threads of a workgroup, and the tiles that the kernel's template and grid ask for by name."""

    threads: int
    tiles: dict[str, int]

    def __getattr__(self, name: str) -> int:
        try:
            return self.tiles[name]
        except KeyError:
            raise AttributeError(name) from None


# Waves of a matvec workgroup; each takes one row. Four measured best on an H200 and modelled so on gfx9 to gfx12.
VEC_WAVES = 4

# Rows of the weight that a CPU workgroup takes: enough to hide its dispatch (about 0.1 us), few enough to spread over cores.
CPU_ROWS = 32

# Threads of the element-wise kernels on a GPU; each writes 8 values, 16 or 32 bytes.
ELEMENT_THREADS = 256

# Values that a CPU workgroup of an element-wise kernel handles.
CPU_VALUES = 16384

# Lanes that share one 32-value block when activations are quantized.
Q8_LANES = {"rocm": 8, "cuda": 8, "cpu": 1}


@dataclass(frozen=True)
class MatrixTile:
    """A float mul_mat workgroup: its tile of the result, how its waves split it, and what the matrix instruction has a lane hold.

    row_tile x column_tile of the result; waves_n x waves_m waves; k weights of every row a step.
    A fragment is 16 rows or columns by fragment_k: a lane holds fragment_w and fragment_x halfs of it, and `results` f32 of 16x16 results.
    """

    row_tile: int
    column_tile: int
    waves_n: int
    waves_m: int
    k: int
    fragment_k: int
    fragment_w: int
    fragment_x: int
    results: int


# By target.matrix. A wave's results (64x64 on gfx9, 64x32 where waves are 32 lanes) take 64 registers. On AMD's wave32 targets eight such
# waves share each decoded weight four ways. mma_sync: 128x128 with eight waves was 0.8 to 1.3 times as fast at 512 columns on an H200, and
# 0.6 to 1.0 at 32. k divides every block and 32: rows end with a whole step.
MATRIX_TILES: dict[str, MatrixTile] = {
    "mfma": MatrixTile(128, 128, 2, 2, k=32, fragment_k=32, fragment_w=8, fragment_x=8, results=4),
    "wmma_gfx11": MatrixTile(128, 128, 2, 4, k=32, fragment_k=32, fragment_w=32, fragment_x=32, results=8),
    "wmma_gfx12": MatrixTile(128, 128, 2, 4, k=32, fragment_k=32, fragment_w=16, fragment_x=16, results=8),
    "mma_sync": MatrixTile(128, 64, 2, 2, k=32, fragment_k=32, fragment_w=16, fragment_x=16, results=8),
    "dot2": MatrixTile(64, 64, 2, 2, k=32, fragment_k=8, fragment_w=16, fragment_x=32, results=8),
}

# The dot4 tile of mul_mat via q8_1 on GPUs: results of a workgroup, and of one thread.
DOT_TILE = {"row_tile": 64, "column_tile": 64, "thread_rows": 4, "thread_columns": 4}


def schedule(kernel: str, target: Target, fmt: type[Format], columns: int) -> Schedule:
    """The schedule of a kernel on a target. Pure: the same arguments always give the same schedule."""
    cpu = target.family == "cpu"
    match kernel:
        case "mul_mat_vec" | "dequantize_mul_mat_vec":
            waves = 1 if cpu else VEC_WAVES
            rows = CPU_ROWS if cpu else VEC_WAVES
            return Schedule(target.wave * waves, {"waves": waves, "row_tile": rows, "column_tile": columns})
        case "dequantize" | "get_rows":
            threads = 1 if cpu else ELEMENT_THREADS
            values = CPU_VALUES if cpu else 8 * ELEMENT_THREADS
            return Schedule(threads, {"block_tile": max(1, values // fmt.weights()), "one": 1})
        case "quantize_q8_1" | "quantize_q8_1_soa":
            lanes = Q8_LANES[target.family]
            threads = 1 if cpu else ELEMENT_THREADS
            return Schedule(threads, {"lanes": lanes, "span_tile": 128 if cpu else threads // lanes, "one": 1})
        case "scale_rows":
            return Schedule(ELEMENT_THREADS, {"waves": ELEMENT_THREADS // target.wave, "one": 1})
        case "mul_mat_float":
            assert target.matrix is not None
            tile = MATRIX_TILES[target.matrix]
            return Schedule(target.wave * tile.waves_n * tile.waves_m, asdict(tile))
        case "mul_mat_q8_1":
            threads = (DOT_TILE["row_tile"] // DOT_TILE["thread_rows"]) * (DOT_TILE["column_tile"] // DOT_TILE["thread_columns"])
            return Schedule(threads, dict(DOT_TILE))
    raise KeyError(kernel)
