"""Time of one call w.matmul(x), activations and result on the device: median over repeats, side by side for every format.

    python benchmarks/matmul.py [--device cuda] [--bundle artifacts/] [--repeat 50] [--via float]

The time includes the call from Python and the wait for the device (about 40 us on a GPU), as a caller sees it; weights are rotated over
several copies, so that small ones are not read from a cache. Compare rows of one run with one another, not with those of another machine.
"""

import argparse
import statistics
import time

import numpy as np
from rich.console import Console
from rich.table import Table

import iq
from iq.formats import FORMATS

SHAPES = [(4096, 4096), (14336, 4096), (4096, 14336), (32768, 8192)]
COLUMNS = [1, 2, 4, 8, 32, 512]
FORMATS_TIMED = [f for f in FORMATS.values() if f.kind == "weights"]
ROTATE_BYTES = 512 << 20


def measure(weights: list[iq.QTensor], x: iq.Buffer, out: iq.Buffer, via: str | None, repeat: int) -> float:
    """Median seconds of a call."""
    times = []
    for i in range(repeat + 3):
        w = weights[i % len(weights)]
        start = time.perf_counter()
        w.matmul(x, via=via, out=out)
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default=None)
    parser.add_argument("--bundle", default=None)
    parser.add_argument("--repeat", type=int, default=50)
    parser.add_argument("--via", choices=["q8_1", "float"], default=None)
    parser.add_argument("--max-columns", type=int, default=max(COLUMNS))
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="the first so many of " + str(SHAPES))
    options = parser.parse_args()

    device = iq.Device(options.device, bundle=options.bundle)
    rng = np.random.default_rng(0)
    table = Table("N x K", "format", "columns", "us", "GB/s of weight", "TFLOP/s", title=f"matmul on {device.name}, {device.target.id}")
    for n, k in SHAPES[: options.shapes]:
        for fmt in FORMATS_TIMED:
            packed = rng.integers(0, 64, (n, fmt.row_bytes(k)), dtype=np.uint8)
            copies = max(1, min(8, ROTATE_BYTES // packed.nbytes))
            weights = [iq.QTensor.from_bytes(packed, fmt.name, shape=(n, k), device=device) for _ in range(copies)]
            for m in (c for c in COLUMNS if c <= options.max_columns):
                x = device.put(rng.standard_normal((m, k), dtype=np.float32))
                seconds = measure(weights, x, device.alloc((m, n), "float32"), options.via, options.repeat)
                bandwidth, rate = packed.nbytes / seconds / 1e9, 2 * m * n * k / seconds / 1e12
                table.add_row(f"{n} x {k}", fmt.name, str(m), f"{seconds * 1e6:.1f}", f"{bandwidth:.0f}", f"{rate:.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
