"""How fast the emulator is: wave instructions a second of a matvec and of tiled products, on each GPU.

    python benchmarks/emulation.py [gfx1100 ...]

The time is that of a whole call w.matmul(x), the best of three, after one that compiles what is missing. It grows with the waves that run
together: numpy is called once an instruction, whether for 32 waves or for 500.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import iq
from iq.targets import GROUPS

# Format, columns, rows, row length, activations.
CALLS = (
    ("q4_0", 1, 4096, 4096, "q8_1"),
    ("q4_k", 1, 4096, 4096, "q8_1"),
    ("q8_0", 128, 512, 512, "q8_1"),
    ("q8_0", 1024, 1024, 256, "q8_1"),
    ("q4_0", 256, 512, 512, "float"),
    ("q4_0", 1024, 2048, 256, "float"),
)


def rate(device: iq.Device, fmt: str, columns: int, rows: int, k: int, via: str) -> tuple[int, int, float]:
    """Waves and wave instructions of a call, and the best time."""
    rng = np.random.default_rng(0)
    packed = iq.quantize(rng.standard_normal((64, k), dtype=np.float32), fmt)
    w = iq.QTensor.from_bytes(np.tile(packed.reshape(-1), rows // 64), fmt, shape=(rows, k), device=device)
    x = device.put(rng.standard_normal((columns, k), dtype=np.float32))
    assert device.emulated is not None
    best = float("inf")
    for _ in range(4):
        before = len(device.emulated.launches)
        started = time.perf_counter()
        w.matmul(x, via=via).numpy()
        best = min(best, time.perf_counter() - started)
    done = [launch.statistics for launch in device.emulated.launches[before:]]
    return sum(s.waves for s in done), sum(s.wave_instructions for s in done), best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", default=GROUPS["rocm"])
    for target in parser.parse_args().targets:
        device = iq.Device(f"emulated:{target}")
        for fmt, columns, rows, k, via in CALLS:
            waves, instructions, seconds = rate(device, fmt, columns, rows, k, via)
            print(
                f"{target:8} {fmt} {rows:5} x {k:4}, {columns:4} columns via {via:5}: {waves:6} waves,"
                f" {instructions:9} instructions in {seconds:.2f} s, {instructions / seconds / 1e6:.1f} million a second",
                flush=True,
            )


if __name__ == "__main__":
    main()
