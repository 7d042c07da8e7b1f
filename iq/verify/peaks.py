"""Peak rates of one GPU of each architecture, and what they make of the work that a kernel did: a roofline model, not a measurement.

Rates are what AMD states for each compute unit and clock, times the compute units and the highest clock of one product. Nobody reaches
them; they say which resource a kernel leans on most, and how the others compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from iq.targets import DeviceId


@dataclass(frozen=True)
class Gpu:
    """One GPU as HIP shows it.

    compute_units; clock: Hz, the highest. bandwidth: bytes of memory a second.
    Operations a compute unit does in a clock, a multiply-add counting as two: vector (f32), matrix (f16 in, f32 out, on matrix units or,
    where it has none, by dot2), dot (int8, by v_dot4).
    lanes: of vector instructions that a compute unit issues in a clock. lds: bytes that its LDS moves in a clock.
    """

    name: str
    compute_units: int
    clock: float
    bandwidth: float
    vector: int
    matrix: int
    dot: int = 512  # one v_dot4 a lane, 64 lanes, 4 multiply-adds: 8 times the rate of one f32 operation a lane
    lanes: int = 64  # GCN and CDNA: four SIMDs of 16 lanes; RDNA: two of 32, a compute unit being half a workgroup processor
    lds: int = 128  # 32 banks of 4 bytes: every ISA manual's chapter on LDS

    @property
    def clocks(self) -> float:
        """Clocks of all compute units in a second."""
        return self.compute_units * self.clock


# Compute units, clock, bandwidth and TFLOPS as AMD states them for the product. Operations a clock and compute unit follow from those.
PEAKS: Mapping[str, Gpu] = {
    # 220 CUs, 1700 MHz, 3276.8 GB/s, 47.9 TFLOPS FP32 vector, 383 FP16 matrix: of two GPUs, which HIP shows one by one.
    "gfx90a": Gpu("MI250X (one of its two GPUs)", 110, 1.700e9, 1638.4e9, vector=128, matrix=1024),
    # 304 CUs, 2100 MHz, 5.3 TB/s, 163.4 TFLOPS FP32 vector, 1307.4 FP16 matrix.
    "gfx942": Gpu("MI300X", 304, 2.100e9, 5300e9, vector=256, matrix=2048),
    # 72 CUs, boost 2250 MHz, 512 GB/s, 20.74 TFLOPS FP32, 41.47 FP16. No matrix units: v_dot2_f32_f16 does 4 operations a lane.
    "gfx1030": Gpu("RX 6800 XT", 72, 2.250e9, 512e9, vector=128, matrix=256),
    # 96 CUs, boost 2500 MHz, 960 GB/s, 61.4 TFLOPS FP32 (two instructions at once), 122.8 FP16.
    "gfx1100": Gpu("RX 7900 XTX", 96, 2.500e9, 960e9, vector=256, matrix=512),
    # 64 CUs, boost 2970 MHz, 640 GB/s, 48.7 TFLOPS FP32, 195 FP16 matrix (dense).
    "gfx1201": Gpu("RX 9070 XT", 64, 2.970e9, 640e9, vector=256, matrix=1024),
}


def peaks_of(target: str) -> Gpu | None:
    """The GPU of a target id, features included; None where it is not in the table."""
    return PEAKS.get(DeviceId.parse(target).processor)


@dataclass(frozen=True)
class Work:
    """What a kernel did: operations of its product and the unit that does them (a field of Gpu; "" where it is no product), bytes of
    memory and of LDS it moved, and the lanes of its vector instructions."""

    operations: int
    unit: str
    bytes: int
    lds_bytes: int
    lanes: int


@dataclass(frozen=True)
class Roofline:
    """A kernel under its GPU's roof.

    intensity: operations a byte of memory; ridge: the intensity from which on arithmetic and not memory is the limit; both None where it is
    no product. times: seconds that each resource alone would take at its peak, on all compute units. bound: the longest of them.
    """

    intensity: float | None
    ridge: float | None
    times: Mapping[str, float]
    bound: str


def roofline(gpu: Gpu, work: Work) -> Roofline:
    """Where work lies under the roof of a GPU. Caches, latency and how much of the GPU a small shape fills are not in the model."""
    times = {
        "memory": work.bytes / gpu.bandwidth,
        "LDS": work.lds_bytes / (gpu.lds * gpu.clocks),
        "vector instructions": work.lanes / (gpu.lanes * gpu.clocks),
    }
    intensity = ridge = None
    if work.unit:
        rate = {"vector": gpu.vector, "matrix": gpu.matrix, "dot": gpu.dot}[work.unit] * gpu.clocks
        times[f"{work.unit} arithmetic"] = work.operations / rate
        intensity = work.operations / max(work.bytes, 1)
        ridge = rate / gpu.bandwidth
    return Roofline(intensity, ridge, times, max(times, key=times.__getitem__))
