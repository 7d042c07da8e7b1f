"""How fast arrays of the host are quantized, beside ggml's own functions (libgguf): by the CPU's kernels, or by numpy where there are none.

    python benchmarks/quantize.py [--format q4_k,iq2_xs] [--imatrix] [--shape 4096x4096] [--rounds 5]

The time is that of whole calls, the check for NaN included; the two take turns, and rows have the medians. What they make is compared
first. Formats without kernels take 1/64 of the rows, which numpy leaves to one thread. Without --imatrix importances are used where a
format cannot be made without them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import libgguf
import numpy as np

import iq
from iq.formats import FORMATS, Format
from iq.formats.packing import Bytes, Floats


def ours(x: Floats, fmt: type[Format], imatrix: Floats | None, device: iq.Device) -> Bytes:
    return iq.QTensor.quantize(x, fmt.name, device, imatrix=imatrix).to_bytes()


def ggmls(x: Floats, fmt: type[Format], imatrix: Floats | None, threads: int) -> Bytes:
    os.environ["LIBGGUF_NUM_THREADS"] = str(threads)  # read anew by each call
    return np.asarray(libgguf.quantize_rows(x, fmt.type, imatrix=imatrix)).view(np.uint8)


def milliseconds(calls: Sequence[Callable[[], Bytes]], rounds: int) -> list[float]:
    """Of each call, the median. Raises AssertionError where they make different bytes."""
    first, *others = [call() for call in calls]
    for other in others:
        np.testing.assert_array_equal(first, other)
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, taken in zip(calls, times, strict=True):
            started = time.perf_counter()
            call()
            taken.append((time.perf_counter() - started) * 1e3)
    return [statistics.median(taken) for taken in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [f.name for f in FORMATS.values() if f.kind == "weights" and libgguf.row_size(f.type, f.block_size)]
    parser.add_argument("--format", default=",".join(known))
    parser.add_argument("--imatrix", action="store_true")
    parser.add_argument("--shape", default="4096x4096")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    n, k = map(int, options.shape.split("x"))
    devices = {threads: iq.Device("cpu", threads=threads) for threads in map(int, options.threads.split(","))}
    rng = np.random.default_rng(0)
    weights, importances = rng.standard_normal((n, k), dtype=np.float32), np.square(rng.standard_normal(k, dtype=np.float32))
    print("format    threads  iq ms  ggml ms  ggml / iq", flush=True)
    for fmt in (FORMATS[name] for name in options.format.split(",")):
        x = weights if fmt.quantizer else weights[: max(1, n // 64)]
        imatrix = importances if options.imatrix or fmt.imatrix == "required" else None
        for threads, device in list(devices.items())[: None if fmt.quantizer else 1]:
            calls = [partial(ours, x, fmt, imatrix, device), partial(ggmls, x, fmt, imatrix, threads)]
            mine, theirs = milliseconds(calls, options.rounds)
            print(f"{fmt.name:8} {threads if fmt.quantizer else 'numpy':>8} {mine:6.0f} {theirs:8.0f} {theirs / mine:10.2f}", flush=True)


if __name__ == "__main__":
    main()
