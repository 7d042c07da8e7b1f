"""The whole way once: a GGUF file, a bundle of kernels, every op on the CPU, every result checked. `make demo` runs it.

Writes demo/model.gguf (weights in every quantized format; large ones in some), compiles a bundle of all kernels for this CPU, and of some
formats for two AMD GPUs, into demo/artifacts/, loads the file as a deployment host would (kernels from the bundle only), and prints each
op's error and time.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

import iq
from iq.formats import FORMATS

FOLDER = Path("demo")
LARGE, SMALL = (4096, 4096), (64, 4096)
LARGE_FORMATS = ("q4_0", "q8_0", "q4_k", "q6_k", "iq4_xs", "mxfp4")
GPUS = ["gfx942", "gfx1100"]
GPU_FORMATS = (*LARGE_FORMATS, "q4_1", "f32", "q8_1")  # q4_1, q8_0 and f32: those of the language model in examples/llm.py
MUL_MAT_NMSE = 5e-4  # llama.cpp's bound for mul_mat against float64
REPEAT = 3

console = Console(width=110)


def write_model(path: Path) -> None:
    """A GGUF file with a tensor in each quantized format."""
    rng = np.random.default_rng(0)
    tensors = {}
    todo = [f for f in FORMATS.values() if f.kind == "weights"]
    for fmt in track(todo, description="quantizing", console=console):
        shape = LARGE if fmt.name in LARGE_FORMATS else SMALL
        array = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
        importances = np.ones(shape[1], np.float32) if fmt.imatrix == "required" else None
        tensors[f"{fmt.name}.weight"] = (iq.quantize(array, fmt.name, importances), fmt.name, shape)
    iq.gguf.write(path, tensors, {"general.architecture": "demo", "general.name": "random weights"})


def reference(w: iq.QTensor) -> np.ndarray:
    """The weights as gguf-py has them; as iq has them for the two formats that gguf-py does not know."""
    try:
        return np.asarray(gguf.quants.dequantize(w.to_bytes(), gguf.GGMLQuantizationType[w.format.upper()]))
    except (KeyError, NotImplementedError):
        return iq.dequantize(w.to_bytes(), w.format)


def median_time(call: Callable[[], object]) -> float:
    """Median seconds of a few calls, after one to load and warm up."""
    call()
    times = []
    for _ in range(REPEAT):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def check_tensor(w: iq.QTensor, table: Table) -> bool:
    """Run every op on a large tensor, some on a small one; add a row each; whether all results are within bounds."""
    rng = np.random.default_rng(1)
    n, k = w.shape
    values = reference(w)
    fine = True

    def row(op: str, call: Callable[[], iq.Buffer], error: Callable[[np.ndarray], float], bound: float) -> None:
        nonlocal fine
        worst = error(call().numpy())
        seconds = median_time(call)
        good = worst <= bound
        fine &= good
        shown = "bit-exact" if bound == 0 and good else f"NMSE {worst:.1e}"
        table.add_row(f"{n} x {k}", w.format, op, f"[{'green' if good else 'red'}]{shown}", f"{seconds * 1e3:.2f} ms")

    def differing(want: np.ndarray) -> Callable[[np.ndarray], float]:
        return lambda got: float(np.count_nonzero(got.view(np.uint8) != np.ascontiguousarray(want).view(np.uint8)))

    def product(op: str, m: int, via: str) -> None:
        x = rng.standard_normal((m, k), dtype=np.float32)
        want = x.astype(np.float64) @ values.T.astype(np.float64)
        on_device = w.device.put(x)

        def nmse(got: np.ndarray) -> float:
            return float(np.square(got - want).sum() / np.square(want).sum())

        row(f"{op}, {m} x {k}", lambda: w.matmul(on_device, via=via), nmse, MUL_MAT_NMSE)

    row("dequantize to f32", w.dequantize, differing(values), 0)
    if w.shape == SMALL:
        product("mul_mat_vec via q8_1", 1, "q8_1")
        return fine
    row("dequantize to f16", lambda: w.dequantize("float16"), differing(values.astype(np.float16)), 0)
    ids = rng.integers(0, n, 64)
    row("get_rows, 64 rows", lambda: w.get_rows(ids), differing(values[ids]), 0)

    product("mul_mat_vec via q8_1", 1, "q8_1")
    product("mul_mat_vec via q8_1", 8, "q8_1")
    product("dequantize_mul_mat_vec", 1, "float")
    product("mul_mat via q8_1", 32, "q8_1")
    product("mul_mat, float", 32, "float")
    return fine


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    model, artifacts = FOLDER / "model.gguf", FOLDER / "artifacts"
    if not model.exists():
        write_model(model)
    console.print(f"[bold]{model}[/], {model.stat().st_size / 1e6:.0f} MB")

    start = time.perf_counter()
    with console.status("compiling") as status:

        def progress(done: int, total: int, running: tuple[str, ...]) -> None:
            status.update(f"compiling: {done} of {total} modules done, now {', '.join(running)}")

        bundles = iq.compile.bundle(iq.Device("cpu").target.id, out=artifacts, progress=progress)
        bundles += iq.compile.bundle(GPUS, GPU_FORMATS, out=artifacts, progress=progress)
    kilobytes = sum(f.stat().st_size for b in bundles for f in Path(b).iterdir()) / 1e3
    console.print(
        f"[bold]{artifacts}[/]: {', '.join(Path(b).name for b in bundles)}, {kilobytes:.0f} kB, {time.perf_counter() - start:.1f} s"
    )

    device = iq.Device("cpu", bundle=artifacts)
    q8_1 = iq.quantize_q8_1(np.linspace(-1, 1, 4 * 4096, dtype=np.float32).reshape(4, 4096), device=device).numpy()
    fine = np.array_equal(q8_1, iq.quantize(np.linspace(-1, 1, 4 * 4096, dtype=np.float32).reshape(4, 4096), "q8_1"))
    table = Table("shape", "format", "op", "error", "time", title=f"{device.name}: {device.target.id}")
    table.add_row("4 x 4096", "q8_1", "quantize_q8_1", "[green]bit-exact" if fine else "[red]wrong bytes", "")
    with iq.gguf.open(model) as m:
        for name in m.names:
            fine &= check_tensor(m.load(name, device=device), table)
    console.print(table)
    console.print("[green]All results are right." if fine else "[red]Some results are wrong.")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
