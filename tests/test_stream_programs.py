"""Random programs on several streams: what they read is what it would be if their calls had happened one by one.

A program is random but for this: where two uses of a buffer would have no order, one stream waits for the other. What gives an order, the
model knows from what is promised (docs/architecture.md): a stream's calls are in order; a buffer's first use on another stream waits for
its own one, and so does a graph's first launch there; a graph's replays follow one another. IQ_STREAM_PROGRAMS: how many programs run.

Kernels are stand-ins that compute a little arithmetic through the scratch memory; all else is as it is.
"""

import ctypes
import gc
import os
import random
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pytest
from conftest import SPEC
from crash import From
from test_streams import emulated

import iq
from iq.errors import IqError
from iq.runtime.gpu.gpu import Gpu
from iq.targets import TARGETS

pytestmark = pytest.mark.skipif(SPEC != "cpu", reason="about an emulated GPU")

PROGRAMS = int(os.environ.get("IQ_STREAM_PROGRAMS", "16"))
N, PRIME = 32, 251  # vectors hold N integers below PRIME, the weight is [N, N]


# ---- Kernels


def arithmetic(code, kernel, grid, workgroup, kernarg, memory, options):
    """y = 3 x + w modulo PRIME, by two dispatches as a product has them; -1 where x was no vector, as uninitialised memory is none."""

    def argument(number, nbytes):
        (address,) = struct.unpack_from("<Q", kernarg, 8 * number)
        regions = memory.regions()
        if not ((regions[:, 0] <= address) & (address + nbytes <= regions[:, 1])).any():
            raise memory.fault(address, nbytes, kernel)
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))

    if kernel.startswith("quantize"):
        x, quantized = argument(0, 4 * N).view(np.float32), argument(1, N)
        quantized[:] = np.where((x >= 0) & (x < PRIME), np.nan_to_num(x), 255).astype(np.uint8)
    else:
        w, quantized, y = argument(0, N), argument(1, N), argument(3, 4 * N).view(np.float32)
        y[:] = np.where(quantized == 255, -1, product(w, quantized))


def product(w, x):
    return ((3 * x.astype(np.int64) + w) % PRIME).astype(np.float32)


# ---- The model


class Clock(dict):
    """How much of each stream comes before something."""

    def join(self, other):
        for stream, count in other.items():
            self[stream] = max(self.get(stream, 0), count)


OWN, THEIRS = 0, 1  # the device's own stream, and somebody else's; the others are numbered


@dataclass(eq=False)
class Vector:
    """A buffer, what it holds, and its uses: the latest that wrote, and those that have read since, by stream."""

    buffer: iq.runtime.Buffer
    home: int
    holds: np.ndarray
    written: tuple[int, int] = (OWN, 0)
    read: Clock = field(default_factory=Clock)
    seen: set[int] = field(default_factory=set)  # the streams that have used it


@dataclass(eq=False)
class Recorded:
    """A graph. calls: what each of it does, and to which vectors. latest: where it was launched last."""

    graph: object
    calls: list
    latest: int | None = None


class Program:
    """A program on a device, other than which it shares nothing with programs in other threads."""

    def __init__(self, device, seed):
        self.device, self.random = device, random.Random(seed)
        packed = np.random.default_rng(seed).integers(0, PRIME, (N, 18), np.uint8)
        self.weight, self.w = iq.QTensor.from_bytes(packed, "q4_0", (N, N), device), packed.reshape(-1)[:N]
        self.weight.matmul(self.drawn()).numpy()  # loads its kernels
        self.context = device._backend.context
        self.streams = {OWN: None, THEIRS: self.context.create_stream(), 2: device.stream(), 3: device.stream()}
        self.clocks = {stream: Clock() for stream in self.streams}  # those of streams that are gone as well
        self.done = Clock()  # what the host has waited for
        self.vectors, self.graphs = [], []

    def run(self, steps):
        calls = {
            self.make: 6, self.write: 3, self.copy: 5, self.zero: 2, self.multiply: 7, self.read: 4, self.drop: 4, self.share: 1,
            self.wait: 1, self.synchronize: 1, self.open_stream: 2, self.drop_stream: 1, gc.collect: 1,
            self.capture: 2, self.launch: 6, self.drop_graph: 1,
        }  # fmt: skip
        for call in self.random.choices(list(calls), list(calls.values()), k=steps):
            call()
        while self.vectors:
            self.check(self.vectors.pop())
        self.device.synchronize()
        self.context.destroy_stream(self.streams.pop(THEIRS))
        for name in self.random.sample(["device", "weight", "streams", "graphs"], 4):
            delattr(self, name)
            if self.random.random() < 0.3:
                gc.collect()

    # ---- What comes before what

    def use(self, stream, *uses):
        """To be called before a call that uses vectors; of each, whether it is written."""
        clock = self.clocks[stream]
        for vector, _ in uses:
            if stream not in vector.seen:
                clock.join(self.clocks[vector.home])
                vector.seen.add(stream)
        for vector, writes in uses:
            for other, count in [vector.written, *(vector.read.items() if writes else ())]:
                if clock.get(other, 0) < count:
                    self.wait(stream, other if other in self.streams else OWN)
        clock[stream] = clock.get(stream, 0) + 1
        for vector, writes in uses:
            if writes:
                vector.written, vector.read = (stream, clock[stream]), Clock()
            else:
                vector.read[stream] = clock[stream]

    def wait(self, stream=None, other=None):
        stream, other = (self.any_stream() if given is None else given for given in (stream, other))
        waits_for = self.device.stream_of(self.streams[other])
        self.device.stream_of(self.streams[stream]).wait(self.random.choice([waits_for, waits_for.handle]))
        self.clocks[stream].join(self.clocks[other])

    def waited(self, clock):
        """The host has waited for so much, and all that is enqueued from now on comes after."""
        for each in (self.done, *self.clocks.values()):
            each.join(clock)

    # ---- Calls

    def any_stream(self):
        return self.random.choice(list(self.streams))

    def any(self, count=1):
        """Vectors, none twice; none at all where there are not so many."""
        return self.random.sample(self.vectors, count) if len(self.vectors) >= count else []

    def drawn(self):
        return np.array([[self.random.randrange(PRIME) for _ in range(N)]], np.float32)

    def add(self, buffer, stream, holds):
        vector = Vector(buffer, stream, holds)
        self.use(stream, (vector, True))
        self.vectors.append(vector)

    def make(self):
        stream = self.any_stream()
        on, how = self.streams[stream], self.random.randrange(3)
        if how == 0:
            self.add(self.device.put(holds := self.drawn(), stream=on), stream, holds)
        elif how == 1:
            self.add(self.device.zeros((1, N), "f32", stream=on), stream, np.zeros((1, N), np.float32))
        for x in self.any() if how == 2 else ():
            self.use(stream, (x, False))
            self.add(self.weight.matmul(x.buffer, stream=on), stream, product(self.w, x.holds))

    def write(self):
        for vector in self.any():
            self.use(stream := self.any_stream(), (vector, True))
            given = self.drawn()
            vector.buffer.copy_from(given, stream=self.streams[stream])
            vector.holds = given.copy()
            given[:] = 0  # the array may change

    def copy(self):
        for source, target in [self.any(2)] if len(self.vectors) > 1 else ():
            self.use(stream := self.any_stream(), (source, False), (target, True))
            at, to = self.random.randrange(N), self.random.randrange(N)
            count = self.random.randint(1, N - max(at, to))  # a copy of nothing uses nothing
            part = source.buffer.reshape(N)[at : at + count]
            target.buffer.reshape(N)[to : to + count].copy_from(part, stream=self.streams[stream])
            target.holds = target.holds.copy()
            target.holds[0, to : to + count] = source.holds[0, at : at + count]

    def zero(self):
        for vector in self.any():
            self.use(stream := self.any_stream(), (vector, True))
            vector.buffer.fill_zero(stream=self.streams[stream])
            vector.holds = np.zeros((1, N), np.float32)

    def multiply(self):
        for x, y in [self.any(2)] if len(self.vectors) > 1 else ():
            self.use(stream := self.any_stream(), (x, False), (y, True))
            self.weight.matmul(x.buffer, out=y.buffer, stream=self.streams[stream])
            y.holds = product(self.w, x.holds)

    def read(self):
        for vector in self.any():
            self.check(vector)

    def check(self, vector):
        assert np.array_equal(vector.buffer.numpy(), vector.holds)
        self.waited(Clock([vector.written]))
        self.waited(vector.read)

    def drop(self):
        for vector in self.any():
            self.vectors.remove(vector)

    def share(self):
        """Taken in through DLPack, which waits for all uses, and copied from there."""
        for vector in self.any():
            self.use(stream := self.any_stream(), (vector, False))
            duplicate = self.device.from_dlpack(vector.buffer).copy(stream=self.streams[stream])
            self.add(duplicate, stream, vector.holds)

    def synchronize(self):
        if stream := self.any_stream():
            self.device.stream_of(self.streams[stream]).synchronize()
            self.waited(self.clocks[stream])
        else:
            self.device.synchronize()
            for clock in list(self.clocks.values()):
                self.waited(clock)

    def open_stream(self):
        if len(self.streams) < 6:
            self.streams[len(self.clocks)] = self.device.stream()
            self.clocks[len(self.clocks)] = Clock(self.done)

    def drop_stream(self):
        if (stream := self.any_stream()) not in (OWN, THEIRS):
            self.wait(OWN, stream)
            del self.streams[stream]

    # ---- Graphs

    def capture(self):
        """A few calls on one stream or two; sometimes an error ends it."""
        second = self.device.stream() if self.random.random() < 0.5 else None
        fails, calls, vectors, used = self.random.random() < 0.2, [], list(self.vectors), {}
        try:
            with self.device.capture(self.streams[stream] if (stream := self.any_stream()) != THEIRS else None) as graph:
                first = self.device.stream_of(None)
                if second:
                    second.wait(first)
                for _ in range(self.random.randrange(1, 7) if vectors else 0):
                    stream = second if second and self.random.random() < 0.5 else first
                    x, y = self.random.choice(vectors), self.random.choice([*vectors, None])
                    if any(used.get(vector, stream) is not stream for vector in (x, y)):
                        first.wait(second), second.wait(first)
                        used.clear()
                    if y is None:
                        y = Vector(self.weight.matmul(x.buffer, stream=stream), OWN, None)
                        vectors.append(y)
                        calls.append(("multiply", x, y))
                    elif x is y:
                        x.buffer.fill_zero(stream=stream)
                        calls.append(("zero", x, y))
                    elif self.random.random() < 0.5:
                        self.weight.matmul(x.buffer, out=y.buffer, stream=None if stream is first else stream)
                        calls.append(("multiply", x, y))
                    else:
                        y.buffer.copy_from(x.buffer, stream=stream)
                        calls.append(("copy", x, y))
                    used[x] = used[y] = stream
                if second:
                    first.wait(second)
                if fails:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            return
        self.graphs.append(Recorded(graph, calls))

    def launch(self):
        if not self.graphs:
            return
        recorded, stream = self.random.choice(self.graphs), self.any_stream()
        if recorded.latest is not None:
            self.clocks[stream].join(self.clocks[recorded.latest])
        recorded.latest = stream
        written = dict.fromkeys(y for _, _, y in recorded.calls)
        self.use(stream, *((vector, vector in written) for vector in dict.fromkeys([*(x for _, x, _ in recorded.calls), *written])))
        recorded.graph.launch(self.streams[stream])
        for what, x, y in recorded.calls:
            y.holds = {"multiply": product(self.w, x.holds), "copy": x.holds, "zero": np.zeros_like(x.holds)}[what]
        made = [vector for vector in written if vector not in self.vectors]  # in the capture; or by now only the graph's
        self.vectors += [vector for vector in made if self.random.random() < 0.2]

    def drop_graph(self):
        if self.graphs:
            self.graphs.pop(self.random.randrange(len(self.graphs)))


# ---- Tests


def opened(seed, keep):
    return emulated(seed=seed, keep=keep, provider=From(TARGETS["gfx1100"], lambda module: module()), launch=arithmetic)


def left(gpu):
    gc.collect()
    return gpu.handles, gpu.memory.allocations()


@pytest.mark.parametrize("keep", [False, True])
def test_programs(environment, keep):
    for seed in range(1, PROGRAMS + 1):
        device, gpu = opened(seed, keep)
        Program(device, seed).run(120)
        del device
        assert left(gpu) == (0, []), seed


@pytest.mark.parametrize("keep", [False, True])
def test_programs_in_threads(environment, keep):
    """Of one device. They order themselves on its own stream more than they need."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for seed in range(1, PROGRAMS // 8 + 1):
            device, gpu = opened(seed, keep)
            with ThreadPoolExecutor(3) as threads:
                programs = [threads.submit(Program(device, 3 * seed + thread).run, 60) for thread in range(3)]
                for program in programs:
                    program.result()
            del device, programs, program
            assert left(gpu) == (0, []), seed
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize("keep", [False, True])
def test_a_program_finds_that_streams_do_not_wait(environment, monkeypatch, keep):
    monkeypatch.setattr(Gpu, "order", lambda self, first, then: None)
    wrong = 0
    for seed in range(1, 6):
        try:
            Program(opened(seed, keep)[0], seed).run(120)
        except (AssertionError, IqError):
            wrong += 1
    assert wrong >= 4
