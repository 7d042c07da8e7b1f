"""Graphs: what is enqueued within `with device.capture() as graph` is recorded, and run as often as `graph.launch()` is called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import RLock, get_ident
from typing import TYPE_CHECKING

from iq.errors import DeviceError

if TYPE_CHECKING:
    from iq.runtime.driver import Context
    from iq.runtime.gpu.gpu import Gpu
    from iq.runtime.gpu.pool import GpuMemory
    from iq.runtime.gpu.streams import Stream


class Graph:
    """Launches that were captured together. It reads and writes the same buffers each time, and keeps them alive."""

    def __init__(self, gpu: Gpu) -> None:
        """For this package: see Device.capture."""
        self._gpu = gpu
        self._memories: dict[int, GpuMemory] = {}
        self.streams: list[Stream] = []  # those that are captured
        self._executable = 0
        self._streams: set[Stream] = set()  # on which it was launched
        self._latest: Stream | None = None
        self._launching = RLock()

    def __del__(self) -> None:
        if self._executable:
            self._gpu.dropped_graphs.append(self._executable)

    def launch(self, stream: Stream | int | None = None) -> None:
        """Enqueue all of it on a stream, by default the device's own; returns at once. Replays follow one another.

        Raises DeviceError for a graph whose capture failed or goes on, for a stream of another device, and on a lost device.
        """
        gpu = self._gpu
        on = gpu.stream(stream)
        if not self._executable:
            raise DeviceError("a graph cannot be launched before its capture has ended, or after that has failed")
        if on.graph is not None:
            raise DeviceError(f"a graph cannot be launched on {on!r}, which is being captured")
        with gpu.calls("the launch of a graph") as context, self._launching:
            if on not in self._streams:
                for memory in self._memories.values():
                    memory.use(on)
                self._streams.add(on)
            if self._latest is not None and self._latest is not on:
                gpu.order(self._latest, on)
            self._latest = on
            context.launch_graph(self._executable, on.raw)

    # ---- For the capture

    def keep(self, memory: GpuMemory) -> None:
        """Memory that what is captured uses."""
        self._memories[id(memory)] = memory

    def join(self, stream: Stream, other: Stream) -> None:
        """Let a stream wait for one that is captured: it is so as well from now on. Raises DeviceError."""
        gpu = self._gpu
        gpu.check_capturable(stream)
        with self._beginning(stream) as context, gpu.ordering:
            # The others take it that what a captured stream was given before is done.
            context.synchronize_stream(stream.raw)
            self._add(stream)
            gpu.order(other, stream)

    def _add(self, stream: Stream) -> None:
        stream.graph = self
        self.streams.append(stream)

    @contextmanager
    def _beginning(self, stream: Stream) -> Iterator[Context]:
        """Where the capture of a stream begins: what other threads have found of it does not change before they are done with that."""
        gpu = self._gpu
        with gpu.calls("the capture of a graph") as context, gpu.pool.lock, gpu.capturing:
            gpu.detach(stream.raw)
            yield context

    @contextmanager
    def capturing(self, stream: Stream) -> Iterator[None]:
        """Capture what is enqueued on a stream, which is this thread's default meanwhile."""
        gpu, thread = self._gpu, get_ident()
        try:
            with self._beginning(stream) as context, gpu.ordering:
                gpu.captures[thread] = stream  # first, so that an interrupt leaves no stream captured that nobody knows of
                self._add(stream)
                context.begin_capture(stream.raw)
            yield
            graph = self._end(stream, thread)
        except BaseException:
            with suppress(DeviceError):  # of a capture that failed; what made it fail is on its way
                if gpu.captures.get(thread) is stream:
                    gpu.context.destroy_graph(self._end(stream, thread))
            raise
        with gpu.calls("the making of a graph") as context:
            try:
                self._executable = context.instantiate(graph)
                gpu.graphs.add(self._executable)
            finally:
                context.destroy_graph(graph)

    def _end(self, stream: Stream, thread: int) -> int:
        gpu = self._gpu
        if gpu.unusable:
            self._forget(thread)  # without a lock: in a forked child nobody may be there to release it
            gpu.check_usable()
        with gpu.pool.lock, gpu.capturing:
            try:
                with gpu.calls("the end of a capture") as context:
                    graph = context.end_capture(stream.raw)
            except Exception:  # but for an interrupt, after which it is ended once more
                with suppress(DeviceError):  # of a device that is lost
                    gpu.renew(stream)
                self._forget(thread)
                raise
            self._forget(thread)
            return graph

    def _forget(self, thread: int) -> None:
        for joined in self.streams:
            joined.graph = None
        self.streams = []
        del self._gpu.captures[thread]
