"""What calls cost on the host: one product of a weight and a vector in several ways, and the chain of a model's layers.

Weights are q4_0. Figures are medians; those of one run can be compared with one another, not with another machine's.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from iq.device import Device
from iq.errors import DeviceError, IqError, ShapeError
from iq.extras import missing
from iq.formats import format_of
from iq.qtensor import QTensor
from iq.runtime.buffer import Buffer

FORMAT = "q4_0"

# Calls of a batch that nothing waits for; with about a thousand launches pending, drivers wait themselves.
_BATCH = 100


class Call(msgspec.Struct, frozen=True):
    """A way to call. host_us: until it returns, in batches. wait_us: until its result is there, one call at a time. None: see `note`."""

    way: str
    host_us: float | None
    wait_us: float | None
    note: str = ""


class Chain(msgspec.Struct, frozen=True):
    """The matvecs of a model's layers, each with the results of the one before.

    products: how many. weight_bytes: of the weights that are read, all different unless `small`. eager_host_us: until all are enqueued;
    eager_ms: until the last result is there. graph_host_us, graph_ms: of a replay of the captured graph, None on devices without graphs.
    """

    layers: int
    products: int
    small: bool
    weight_bytes: int
    eager_host_us: float
    eager_ms: float
    graph_host_us: float | None
    graph_ms: float | None


class Report(msgspec.Struct, frozen=True):
    """device: its name; id: what it says it is; description: its maker's name of it.

    launcher: "extension" or "ctypes"; "" for a device that runs through IREE. calls: of a weight [n, k] with one row.
    """

    device: str
    id: str
    description: str
    target: str
    launcher: str
    n: int
    k: int
    calls: tuple[Call, ...]
    chain: Chain | None


def bench(
    name: str | None = None,
    bundle: str | Path | None = None,
    n: int = 4096,
    k: int = 4096,
    layers: int = 32,
    repeat: int = 300,
    small: bool = False,
) -> Report:
    """Time calls on a device.

    name, bundle: as of `iq.Device`. n, k: the weight's rows and columns; `k` is also the model's width, 4096 for one of 8B parameters.
    layers: of the chain, 0 for none. repeat: how often a call is timed. small: all layers share the weights of one, which takes less
    memory, and may be faster than a model where they fit a cache.
    Raises ShapeError for a `k` that is no multiple of 64, or what the device and its calls raise.
    """
    if k % 64:
        raise ShapeError(f"bench: k is {k}; the widths of the chain's weights take a multiple of 64")
    torch = _torch()  # before a device is opened: a process can have one HIP library, and torch may bring its own
    device = Device(name, bundle=bundle)
    calls = _calls(device, n, k, repeat, torch)
    chain = _chain(device, k, layers, max(3, repeat // 30), small) if layers else None
    launcher = _launcher(device)
    if launcher == "extension" and not os.environ.get("IQ_LAUNCH"):
        calls += _by_ctypes(device, bundle, n, k, repeat)
    return Report(device.name, str(device.id), _description(device), device.target.id, launcher, n, k, tuple(calls), chain)


def _launcher(device: Device) -> str:
    if device.runtime != "launch":
        return ""
    from iq.runtime.launching import IMPLEMENTATION

    return IMPLEMENTATION


def _description(device: Device) -> str:
    kind, _, number = device.name.partition(":")
    if kind not in ("hip", "cuda") or device.runtime != "launch":
        return ""
    from iq.runtime.driver import CUDA, HIP, load

    return load(HIP if kind == "hip" else CUDA).device_name(int(number))


# ---- One call


def _calls(device: Device, n: int, k: int, repeat: int, torch: Any) -> list[Call]:
    rng = np.random.default_rng(0)
    w = QTensor.from_bytes(_weights(rng, n, k), FORMAT, (n, k), device)
    array = rng.standard_normal((1, k), dtype=np.float32)
    x, y = device.put(array), device.alloc((1, n), "float32")

    def timed(way: str, call: Callable[[], object]) -> Call:
        return Call(way, *_time(device, call, repeat))

    calls = [
        timed("w.matmul(x, out=y)", lambda: w.matmul(x, out=y)),
        timed("w.matmul(x)", lambda: w.matmul(x)),
        timed("w.matmul(numpy x, out=y)", lambda: w.matmul(array, out=y)),
        timed('w.matmul(x, via="float", out=y), one dispatch', lambda: w.matmul(x, via="float", out=y)),
    ]
    if device.runtime == "launch":
        with device.capture() as graph:
            w.matmul(x, out=y)
        calls.append(timed("graph.launch(), a graph of the first", graph.launch))
    if (tensors := _tensors(torch, device, array, n)) is not None:
        given, out = tensors
        way = "w.matmul(torch x, out=torch y)"
        try:
            calls.append(timed(way, lambda: w.matmul(given, out=out)))
        except IqError as error:
            calls.append(Call(way, None, None, f"not taken: {error}"))
    return calls


def _torch() -> Any:
    """The module torch; None where it cannot be imported."""
    try:
        return import_module("torch")
    except (ImportError, OSError):  # OSError: a library of it that does not load
        return None


def _tensors(torch: Any, device: Device, array: Any, n: int) -> tuple[Any, Any] | None:
    """x and y as tensors of torch on the device; None where there is no torch, or it does not have the device."""
    kind, _, number = device.name.partition(":")
    if torch is None:
        return None
    if kind in ("hip", "cuda"):
        # Built for ROCm, torch calls AMD's GPUs cuda as well.
        if not torch.cuda.is_available() or bool(torch.version.hip) is not (kind == "hip"):
            return None
        kind = f"cuda:{number}"
    elif kind != "cpu":
        return None
    return torch.from_numpy(array).to(kind), torch.empty(1, n, device=kind)


def _by_ctypes(device: Device, bundle: str | Path | None, n: int, k: int, repeat: int) -> list[Call]:
    """The same calls where a process launches through ctypes rather than the extension: another process, for it is chosen once."""
    if missing("cli"):
        return []
    command = [sys.executable, "-m", "iq", "bench", "--calls", "--device", device.name, "--json", "--layers", "0"]
    command += ["--n", str(n), "--k", str(k), "--repeat", str(repeat)]
    environment = {**os.environ, "IQ_LAUNCH": "ctypes", **({"IQ_BUNDLE_PATH": str(bundle)} if bundle else {})}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DeviceError(f"the calls through ctypes failed in a process of their own: {done.stderr.strip()[-500:]}")
    calls = msgspec.convert(json.loads(done.stdout)["calls"], list[Call])
    return [msgspec.structs.replace(call, way=f"ctypes: {call.way}") for call in calls if call.host_us is not None]


def _time(device: Device, call: Callable[[], object], repeat: int) -> tuple[float, float]:
    """Microseconds of a call on the host, and with the wait for the device."""
    for _ in range(3):  # loads the kernels, and makes what is kept
        call()
    device.synchronize()
    batch, hosts = min(_BATCH, repeat), []
    for _ in range(max(1, repeat // 30)):
        start = time.perf_counter()
        for _ in range(batch):
            call()
        hosts.append((time.perf_counter() - start) / batch)
        device.synchronize()
    waits = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        device.synchronize()
        waits.append(time.perf_counter() - start)
    return statistics.median(hosts) * 1e6, statistics.median(waits) * 1e6


# ---- The chain of a model


def _chain(device: Device, width: int, layers: int, repeat: int, small: bool) -> Chain:
    """q, k, v, o, gate, up and down of each layer, as wide as a model of 8B parameters is where `width` is 4096."""
    wide = 7 * width // 2
    shapes = {"q": (width, width), "k": (width // 4, width), "v": (width // 4, width), "o": (width, width)}
    shapes |= {"gate": (wide, width), "up": (wide, width), "down": (width, wide)}
    rng = np.random.default_rng(0)
    first = {name: device.put(_weights(rng, *shape)) for name, shape in shapes.items()}
    stacks = [first] + [first if small else {name: packed.copy() for name, packed in first.items()} for _ in range(layers - 1)]
    model = [{name: QTensor.from_bytes(packed, FORMAT, shapes[name]) for name, packed in stack.items()} for stack in stacks]
    out = {name: device.alloc((1, n), "float32") for name, (n, _) in shapes.items()}
    x = device.put(rng.standard_normal((1, width), dtype=np.float32))

    def run() -> None:
        _layers(model, x, out)

    run()
    device.synchronize()
    hosts, totals = [], []
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        hosts.append(time.perf_counter() - start)
        device.synchronize()
        totals.append(time.perf_counter() - start)
    graph_host, graph_total = _replays(device, run, repeat) if device.runtime == "launch" else (None, None)
    nbytes = layers * sum(weight.nbytes for weight in model[0].values())
    eager_host, eager_total = statistics.median(hosts) * 1e6, statistics.median(totals) * 1e3
    return Chain(layers, layers * len(shapes), small, nbytes, eager_host, eager_total, graph_host, graph_total)


def _layers(model: Sequence[dict[str, QTensor]], x: Buffer, out: dict[str, Buffer]) -> None:
    for layer in model:
        for name in ("q", "k", "v"):
            layer[name].matmul(x, out=out[name])
        layer["o"].matmul(out["q"], out=out["o"])
        for name in ("gate", "up"):
            layer[name].matmul(out["o"], out=out[name])
        x = layer["down"].matmul(out["gate"], out=out["down"])


def _replays(device: Device, run: Callable[[], None], repeat: int) -> tuple[float, float]:
    """Microseconds on the host and milliseconds on the device of a replay of what `run` enqueues, captured; replays follow one another."""
    with device.capture() as graph:
        run()
    graph.launch()
    device.synchronize()
    hosts = []
    begin = time.perf_counter()
    for _ in range(repeat):
        start = time.perf_counter()
        graph.launch()
        hosts.append(time.perf_counter() - start)
    device.synchronize()
    return statistics.median(hosts) * 1e6, (time.perf_counter() - begin) / repeat * 1e3


def _weights(rng: np.random.Generator, n: int, k: int) -> Any:
    """Random blocks whose scales keep the size of activations from layer to layer: uint8 [n, bytes of a row]."""
    fmt = format_of(FORMAT)
    fmt.row_bytes(k)  # raises where rows are not whole blocks
    blocks = rng.integers(0, 256, (n, k // fmt.block_size, fmt.type_size), dtype=np.uint8)
    # A block begins with its scale; quants from -8 to 7 have a standard deviation of 4.6.
    blocks[:, :, :2] = np.frombuffer(np.float16(1 / (4.6 * k**0.5)).tobytes(), np.uint8)
    return blocks.reshape(n, -1)
