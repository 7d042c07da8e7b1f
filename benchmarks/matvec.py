"""Time of the matvec kernels alone, without the stage that quantizes activations and without the host, for bundles side by side.

    python benchmarks/matvec.py --device cuda before/ after/ [--op mul_mat_vec] [--format q4_0,q4_k] [--columns 1,8] [--shape 14336x4096]

Launches are captured in a graph and read weights from one place after another in 1.2 GB, so that none are in a cache; the median of several
replays is divided by the launches. On CUDA the ceiling is a kernel that only reads as many bytes. Compare rows of one run with one another.
"""

import argparse
import statistics
import time

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

import iq
from iq.formats import FORMATS
from iq.kernels import Problem, choose
from iq.runtime.gpu.plans import Planner
from iq.runtime.launching import Step, pack

SHAPES = "4096x4096,14336x4096,4096x14336,32768x8192"
WEIGHT_BYTES = 1_200_000_000
REPLAY_SECONDS, REPLAYS = 4e-3, 9

# A workgroup of 256 threads reads 32 KB; what it reads is used, as far as the compiler knows.
READ = """
.version 7.0
.target sm_80
.address_size 64
.visible .entry read(.param .u64 source, .param .u64 target)
{
  .reg .pred %p; .reg .b32 %r<40>; .reg .b64 %a<6>;
  ld.param.u64 %a0, [source]; ld.param.u64 %a1, [target];
  mov.u32 %r0, %ctaid.x; mov.u32 %r1, %tid.x;
  mul.wide.u32 %a2, %r0, 32768; mul.wide.u32 %a3, %r1, 16; add.s64 %a4, %a0, %a2; add.s64 %a4, %a4, %a3;
LOADS
  mov.u32 %r2, %r4;
XORS
  setp.eq.u32 %p, %r2, 305419896;
  @%p st.global.u32 [%a1], %r2;
  ret;
}
"""
LOADS = "\n".join(
    f"  ld.global.nc.v4.u32 {{%r{4 + 4 * i}, %r{5 + 4 * i}, %r{6 + 4 * i}, %r{7 + 4 * i}}}, [%a4+{4096 * i}];" for i in range(8)
)
XORS = "\n".join(f"  xor.b32 %r2, %r2, %r{i};" for i in range(5, 36))


class Bench:
    """A device, and weights to read."""

    def __init__(self, device: iq.Device) -> None:
        self.device = device
        piece = device.put(np.random.default_rng(0).integers(0, 64, 1 << 26, dtype=np.uint8))
        self.weights = device.alloc(WEIGHT_BYTES, "u8")
        for at in range(0, WEIGHT_BYTES, piece.size):
            part = self.weights[at : at + piece.size]
            part.copy_from(piece[: part.size])

    def microseconds(self, launch, nbytes: int) -> float:
        """Of `launch(weight)`, which enqueues it for the address of a weight of so many bytes."""
        stride = -(-(nbytes + 64) // 256) * 256
        places = max(1, WEIGHT_BYTES // stride)
        count = max(8, int(REPLAY_SECONDS / max(2e-6, nbytes / 3e12)))
        launch(self.weights.address)
        with self.device.capture() as graph:
            for i in range(count):
                launch(self.weights.address + i % places * stride)
        times = []
        for _ in range(REPLAYS + 2):
            self.device.synchronize()
            start = time.perf_counter()
            graph.launch()
            self.device.synchronize()
            times.append((time.perf_counter() - start) / count)
        return statistics.median(times[2:]) * 1e6

    def ceiling(self, nbytes: int) -> float:
        """Microseconds of a kernel that only reads so many bytes; NaN where there is none."""
        gpu, groups = self.device._backend, nbytes // 32768
        if gpu.context.driver.api.name != "cuda":
            return float("nan")
        module = gpu.context.load_module(READ.replace("LOADS", LOADS).replace("XORS", XORS).encode() + b"\0")
        step = Step(gpu.context.function(module, "read"), (groups, 1, 1), (256, 1, 1), 0, ((0, 0), (1, 0)), ())
        plan = _Plan(pack(gpu.context.entry_points, [step], 2))
        out = self.device.alloc(4, "u8")
        return self.microseconds(lambda weight: gpu.stream(None).launch(plan, [weight, out.address]), groups * 32768)


class _Plan:
    """As much of a plan as a launch takes."""

    key, scratch = "read", 0

    def __init__(self, packed: bytes) -> None:
        self.packed = packed


def matvec(bench: Bench, device: iq.Device, op: str, fmt, m: int, n: int, k: int) -> tuple[str, float]:
    """The dispatch that multiplies, and its microseconds; activations are whatever lies in memory."""
    choice = choose("mul_mat", fmt, device.target, Problem(m, n, k), "q8_1" if op == "mul_mat_vec" else "float")
    device.library.kernel(choice.spec)
    module, code = device.library._modules[fmt.name]
    launches = module.launches[choice.spec.key]
    last = msgspec.structs.replace(launches, dispatches=launches.dispatches[-1:])
    gpu = bench.device._backend
    plan = Planner(choice.spec.key, last, code._functions, gpu.context.entry_points).plan((m, n, k // fmt.kernel_block_weights()))
    x, y = bench.device.zeros((m, k), "f32"), bench.device.zeros((m, n), "f32")
    scratch = bench.device.zeros(plan.scratch + 1, "u8")
    plain = _Plan(plan.packed)
    addresses = [x.address, y.address, *([scratch.address] if plan.scratch else [])]
    us = bench.microseconds(lambda weight: gpu.stream(None).launch(plain, [weight, *addresses]), n * fmt.row_bytes(k))
    return last.dispatches[0].function, us


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--op", choices=["mul_mat_vec", "dequantize_mul_mat_vec"], default="mul_mat_vec")
    parser.add_argument("--format", default=",".join(f.name for f in FORMATS.values() if f.kind == "weights"))
    parser.add_argument("--columns", default="1,2,3,4,5,6,8")
    parser.add_argument("--shape", default=SHAPES)
    options = parser.parse_args()

    devices = [iq.Device(options.device, bundle=bundle) for bundle in options.bundles]
    bench = Bench(devices[0])
    titles = [f"{bundle}: us, GB/s, of ceiling" for bundle in options.bundles]
    table = Table("N x K", "format", "M", *titles, "last / first", title=f"{options.op} on {devices[0]._backend.context.name}")
    for shape in options.shape.split(","):
        n, k = map(int, shape.split("x"))
        for fmt in (FORMATS[name] for name in options.format.split(",")):
            nbytes = n * fmt.row_bytes(k)
            ceiling = nbytes // 32768 * 32768 / bench.ceiling(nbytes)
            for m in map(int, options.columns.split(",")):
                found = [matvec(bench, device, options.op, fmt, m, n, k)[1] for device in devices]
                cells = [f"{us:.1f} {nbytes / us / 1e3:.0f} {nbytes / us / ceiling:.0%}" for us in found]
                table.add_row(shape, fmt.name, str(m), *cells, f"{found[-1] / found[0]:.2f}")
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
