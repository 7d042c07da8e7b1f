"""Time of products with experts, a matvec a pick against picks grouped by expert: what PICKS_TO_GROUP in iq/kernels/schedules.py goes by.

    python benchmarks/moe.py [--device cuda] [--bundle artifacts/] [--format q4_k,q8_0] [--via float] [--shape 128x768x2048,8x14336x4096]

Activations, ids and results are on the device; calls follow one another without a wait between them, and the median of several batches is
divided by their number. Picks are random, as many for each expert on average as the rows say. Compare rows of one run with one another.
"""

import argparse
import statistics
import time

import numpy as np
from rich.console import Console
from rich.table import Table

import iq
from iq.formats import FORMATS
from iq.kernels import KernelSpec, Problem, choose

PICKS_EACH = (0.25, 1, 2, 3, 4, 6, 8, 16, 32, 64)
PICKS_A_TOKEN = 8
CALLS, BATCHES = 10, 7


def microseconds(device: iq.Device, call) -> float:
    """Of a call, in the median batch after two."""
    times = []
    for _ in range(BATCHES + 2):
        device.synchronize()
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        device.synchronize()
        times.append((time.perf_counter() - start) / CALLS)
    return statistics.median(times[2:]) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default=None)
    parser.add_argument("--bundle", default=None)
    parser.add_argument("--format", default="q4_k,q8_0")
    parser.add_argument("--via", choices=["q8_1", "float"], default=None, help="of both; by default what each is chosen with")
    parser.add_argument("--shape", default="128x768x2048,8x14336x4096", help="experts x N x K")
    options = parser.parse_args()

    device = iq.Device(options.device, bundle=options.bundle)
    rng = np.random.default_rng(0)
    columns = ("E x N x K", "format", "picks an expert", "a matvec a pick, us", "grouped, us", "ratio", "chosen")
    table = Table(*columns, title=f"moe on {device.name}, {device.target.id}")
    for shape in options.shape.split(","):
        experts, n, k = map(int, shape.split("x"))
        for fmt in (FORMATS[name] for name in options.format.split(",")):
            weight = device.put(rng.integers(0, 64, experts * n * fmt.row_bytes(k), dtype=np.uint8))
            few, many = (choose("mul_mat_id", fmt, device.target, Problem(m, n, k, experts), options.via).spec for m in (1, 1 << 20))
            for each in PICKS_EACH:
                tokens = max(1, round(each * experts / PICKS_A_TOKEN))
                picks = tokens * PICKS_A_TOKEN
                ids = device.put(rng.integers(0, experts, picks, dtype=np.int32))
                x = device.put(rng.standard_normal((tokens, k), dtype=np.float32))
                y = device.alloc((picks, n), "float32")
                sizes = {"m": tokens, "share": PICKS_A_TOKEN, "picks": picks, "experts": experts, "n": n}
                sizes["blocks"] = k // fmt.kernel_block_weights()

                def of(spec: KernelSpec, buffers=(weight, x, ids), sizes=sizes, y=y) -> float:
                    kernel = device.library.kernel(spec)
                    return microseconds(device, lambda: kernel(buffers, sizes, (y,)))

                one, grouped = of(few), of(many)
                chosen = choose("mul_mat_id", fmt, device.target, Problem(picks, n, k, experts), options.via).spec
                figures = (f"{picks / experts:g}", f"{one:.1f}", f"{grouped:.1f}", f"{one / grouped:.2f}", chosen.op)
                table.add_row(shape, fmt.name, *figures)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
