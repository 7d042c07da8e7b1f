"""One GPU, driven through its driver: its streams, memory, modules and captures, and what becomes of it when something fails."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from threading import get_ident
from typing import NoReturn

from iq.bundle import Module, Vmfb
from iq.errors import BytecodeError, DeviceError, NoKernelError
from iq.runtime.arrays import Array
from iq.runtime.driver import Context, DriverError
from iq.runtime.gpu.graphs import Graph
from iq.runtime.gpu.plans import Plan, Planner
from iq.runtime.gpu.pool import Block, GpuMemory, Pool
from iq.runtime.gpu.staging import Staging
from iq.runtime.gpu.streams import Stream
from iq.targets import DeviceId

# Kernels take pointers on this boundary (`.ptr .align 16` in PTX): their widest loads.
ALIGNMENT = 16

# Dynamic shared memory beyond this has to be asked for (cuFuncSetAttribute).
_SHARED_UNASKED = 48 << 10

_FORKED = "it was opened by the process that this one was forked from: open devices after the fork, or start processes with spawn"

_gpus: weakref.WeakValueDictionary[int, Gpu] = weakref.WeakValueDictionary()


def _all_gpus() -> list[Gpu]:
    """Those that are open. Others may be opened meanwhile, which a loop over `_gpus` itself would not bear."""
    return [gpu for reference in _gpus.valuerefs() if (gpu := reference()) is not None]


class Gpu:
    """A GPU. Safe to use from several threads.

    own: the stream of calls that name none. captures: the streams that threads are capturing, by thread. unusable: why it cannot be used
    any more, "" while it can. fresh_scratch: whether every call gets scratch memory of its own, rather than its stream's workspace.

    Locks, in the order in which a thread takes them, each after it has found the device usable: pool.lock, of memory; capturing, where
    the device as a whole is waited for, which would break a capture; ordering, where a stream waits for another. Where a capture begins all
    are held: whether a stream is captured does not change meanwhile.
    """

    runtime = "launch"
    alignment = ALIGNMENT
    cpu_flags: frozenset[str] = frozenset()

    def __init__(self, name: str, context: Context, pending_error: Callable[[], BaseException | None] | None = None) -> None:
        """pending_error: of an emulated GPU, why a call failed; asking takes the error.

        An emulated GPU checks every access against allocations, so memory and scratch are not shared out there but taken from the driver.
        """
        self.name = name
        self.id = DeviceId.parse(context.arch)
        self.context = context
        self.unusable = ""
        self.captures: dict[int, Stream] = {}
        self.capturing = threading.RLock()
        self.ordering = threading.RLock()
        self.fresh_scratch = pending_error is not None
        self._pending_error = pending_error or (lambda: None)
        self._foreign: dict[int | tuple[int, int], Stream] = {}
        self._modules: list[int] = []
        self._images: list[bytes] = []  # HIP makes no copy of what a module is loaded from (FatBinaryInfo::AddDevProgram of hip_fatbin.cpp)
        self._streams: set[int] = set()
        self._ours: weakref.WeakValueDictionary[int, Stream] = weakref.WeakValueDictionary()
        self.graphs: set[int] = set()  # those that can be launched
        # Dropped in any thread, at any time: their handles, to be destroyed in the next call.
        self.dropped_streams: deque[tuple[int, list[Block]]] = deque()
        self.dropped_graphs: deque[int] = deque()
        self.pool = Pool(self, keep=pending_error is None)
        self.staging = Staging(self)
        self.own = self.create_stream()
        _gpus[id(self)] = self

    def __del__(self) -> None:
        if not sys.is_finalizing() and getattr(self, "unusable", _FORKED) != _FORKED:
            with suppress(Exception):  # of a GPU that is lost
                self._close()

    # ---- When something fails

    def check_usable(self) -> None:
        """Raises DeviceError where the device can no longer be used."""
        if self.unusable:
            raise DeviceError(f"{self.name} cannot be used: {self.unusable}")

    @contextmanager
    def calls(self, what: str) -> Iterator[Context]:
        """For calls of the driver. Their errors are raised as `failed` says, with `what` failed."""
        self.check_usable()
        try:
            yield self.context
        except DriverError as error:
            error.add_note(f"in {what} on {self.name}")
            self.failed(error)
        if self.fresh_scratch and (pending := self._pending_error()) is not None:
            raise pending  # of what returns no error, such as hipFreeAsync

    def failed(self, error: DriverError) -> NoReturn:
        """Raises the error; in its place what stopped an emulated GPU. An error that the device does not recover from makes it unusable."""
        if self.lost_by(error):
            self.unusable = f"the device is lost, with all that is on it: {error}"
        pending = self._pending_error()
        if pending is not None:
            raise pending from error
        if self.unusable:
            raise DeviceError(
                f"{error}. {self.name} is lost: a kernel or a copy that was enqueued before has failed; open it in a new process"
            ) from error
        raise error

    def lost_by(self, error: DriverError) -> bool:
        return self.context.driver.is_sticky(error.code)

    # ---- Streams

    def create_stream(self) -> Stream:
        with self.calls("the making of a stream") as context:
            handle = context.create_stream()
        self._streams.add(handle)
        stream = self._ours[handle] = Stream(self, handle)
        return stream

    def stream(self, given: Stream | int | None) -> Stream:
        """The stream that a caller named. Raises DeviceError for what is none of this device."""
        if given is None:
            return self.captures.get(get_ident(), self.own) if self.captures else self.own
        if isinstance(given, Stream):
            if given.gpu is not self:
                raise DeviceError(f"{given!r} is a stream of another device than {self.name}")
            return given
        if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given < 1 << 64:
            raise DeviceError(f"{given!r} is no stream: expected one of Device.stream(), or the driver's handle as an integer")
        # 2 stands for another stream in each thread: cudaStreamPerThread and hipStreamPerThread.
        key = (given, get_ident()) if given == 2 else given
        found = self._ours.get(given) or self._foreign.get(key)
        return found or self._foreign.setdefault(key, Stream(self, given, foreign=True))

    def order(self, first: Stream, then: Stream) -> None:
        """Let a stream wait for what has been enqueued on another one so far."""
        if first is then:
            return
        with self.calls("ordering two streams") as context, self.ordering:
            if then.graph is None and first.graph is not None:
                return  # what is captured does not run; what was enqueued before has been waited for
            if then.graph is not first.graph:
                what = "which is captured in another graph" if first.graph else "which is not: let it wait before the capture"
                raise DeviceError(f"{then!r} is being captured and cannot wait for {first!r}, {what}")
            if then.foreign and context.is_capturing(then.raw):
                # An event from outside must not be in somebody else's graph.
                with context.relaxed():
                    context.synchronize_stream(first.raw)
                return
            event = context.create_event()
            try:
                context.record_event(event, first.raw)
                context.wait_event(then.raw, event)
            finally:
                context.destroy_event(event)

    def detach(self, handle: int) -> None:
        """To be called before a stream, which is not the device's own, ends or is captured: the device's own waits for it, and its events
        become those of that one.

        hipEventQuery and hipEventSynchronize look at the stream that an event was recorded on, though that be gone (ROCm/clr, issue 157),
        and HIP 6.2 and 6.3 invalidate its capture, though the event be older (ihipEventQuery of clr/hipamd/src/hip_event.cpp).
        """
        with self.calls("ordering two streams") as context:
            # HIP keeps what waits for an event, not the event (Event::streamWait): it may be destroyed at once, as with CUDA.
            event = context.create_event()
            try:
                context.record_event(event, handle)
                context.wait_event(self.own.raw, event)
            finally:
                context.destroy_event(event)
        self.staging.rehome(handle)
        self.pool.rehome_events(handle)

    def renew(self, stream: Stream) -> None:
        """Give a stream another handle if the driver still takes it for captured, which has failed; those that joined it are then free.

        hipStreamEndCapture leaves them so after an invalid capture and after one whose streams did not join, and launches would go nowhere
        (hip_graph.cpp of clr/hipamd/src, HIP 5.7 to 7; half of it is mended by ROCm/rocm-systems, pull request 6509). hipStreamDestroy
        ends it for all of them (hip_stream.cpp).
        """
        if not self.is_capturing(stream):
            return
        gone = stream.raw
        with self.calls("the end of a capture") as context:
            handle = context.create_stream()
            self._streams.add(handle)
            self._ours[handle] = stream
            stream.raw = handle
            # It was waited for before the capture, and nothing has run since.
            self._ours.pop(gone, None)
            self._streams.discard(gone)
            self.pool.rehome(gone)
            context.destroy_stream(gone)

    def is_capturing(self, stream: Stream) -> bool:
        with self.calls("asking for a stream's capture") as context:
            return context.is_capturing(stream.raw)

    def synchronize(self) -> None:
        """Wait until everything enqueued on the device is done. Raises DeviceError where that failed."""
        self.refuse_capture("waiting for the device")
        self.collect()
        self.pool.collect()
        self.wait_for_all()

    def wait_for_all(self, foreign: Iterable[Stream] = ()) -> bool:
        """`synchronize` for this package. Whether it was the whole device that was waited for.

        While another thread captures, the device as a whole cannot be waited for: then it is all of its own streams that are not captured,
        and those that are given. Other streams of somebody else's may be gone.
        """
        with self.calls("the wait for the device") as context, self.capturing:
            # hipDeviceSynchronize invalidates the captures of all devices (CHECK_SUPPORTED_DURING_CAPTURE, hip_internal.hpp, HIP 6.2).
            if not any(gpu.captures for gpu in _all_gpus() if gpu.context.driver is context.driver):
                context.synchronize()
                return True
            graphs = {stream.graph for stream in self.captures.values()}
            captured = {stream.raw for graph in graphs if graph for stream in graph.streams}
            for handle in {*self._streams, *(stream.raw for stream in foreign)} - captured:
                context.synchronize_stream(handle)
        return False

    def refuse_capture(self, what: str, stream: Stream | None = None) -> None:
        """Raises DeviceError where this thread, or the stream, is being captured: `what` cannot be part of a graph."""
        if (self.captures and get_ident() in self.captures) or (stream is not None and stream.graph is not None):
            raise DeviceError(f"{what} cannot be captured in a graph: do it before the capture, or after")

    def check_capturable(self, stream: Stream) -> None:
        """Raises DeviceError for a stream that others give work to, which would end in a graph."""
        if stream.foreign or stream is self.own:
            whose = "somebody else's" if stream.foreign else "every thread's"
            raise DeviceError(f"{stream!r} is {whose}, and cannot be captured: only streams of Device.stream() can")

    @contextmanager
    def capture(self, stream: Stream | int | None) -> Iterator[Graph]:
        """See Device.capture."""
        on = self.create_stream() if stream is None else self.stream(stream)
        self.check_capturable(on)
        if on.graph is not None or get_ident() in self.captures:
            raise DeviceError(f"{on!r} is being captured already; captures do not nest")
        self.wait_for_all()  # what the graph's buffers wait for
        graph = Graph(self)
        with graph.capturing(on):
            yield graph

    # ---- Memory

    def allocate(self, nbytes: int, stream: Stream) -> GpuMemory:
        self.collect()
        return self.pool.allocate(nbytes, stream)

    def share(self, array: Array) -> None:
        return None

    # ---- Kernels

    def load(self, module: Module) -> Code:
        """Load a module's code. Raises BytecodeError, or DeviceError in a capture."""
        self.refuse_capture(f"loading the kernels of {module.where} (call what needs them once)")
        executable = Vmfb.parse(module.vmfb).executable
        if executable is None or executable.api != self.context.driver.api.name:
            raise BytecodeError(f"{module.where} holds no code for {self.name}")
        try:
            with self.calls(f"loading the kernels of {module.where}") as context:
                images = []
                for image in executable.images:
                    images.append(context.load_module(image))
                    self._modules.append(images[-1])
                self._images += executable.images
                functions = {}
                for export in executable.exports.values():
                    function = functions[export.name] = context.function(images[export.image], export.name)
                    if export.shared > _SHARED_UNASKED:
                        context.allow_shared(function, export.shared)
        except DriverError as error:
            raise BytecodeError(f"{self.name}, a {self.id}, cannot load the kernels of {module.where}: {error}") from error
        for key, launches in module.launches.items():
            try:
                launches.check(executable)
            except BytecodeError as error:
                raise BytecodeError(f"{module.where}: {key} is not launched as recorded: {error}") from error
        return Code(self, module, functions)

    # ---- The end

    def collect(self) -> None:
        """Destroy what has been dropped. Raises DeviceError where the device can no longer be used."""
        if self.unusable:
            self.check_usable()
        self.pool.let_go()
        while self.dropped_streams:
            try:
                handle, blocks = self.dropped_streams.popleft()
            except IndexError:
                break  # another thread was first
            self.detach(handle)
            with self.calls("the end of a stream") as context, self.pool.lock:
                if not self.capturing.acquire(blocking=False):  # another thread waits for all streams, of which it may be one
                    self.dropped_streams.append((handle, blocks))
                    break
                try:
                    self.pool.rehome(handle)
                    for block in blocks:
                        self.pool.give_back(block)
                    self._streams.discard(handle)
                    context.destroy_stream(handle)
                finally:
                    self.capturing.release()
        # A HIP graph that still runs must not be destroyed: hipGraphExecDestroy of HIP 5.7 deletes it at once (hip_graph.cpp).
        while self.dropped_graphs and not self.captures and self.wait_for_all():
            try:
                executable = self.dropped_graphs.popleft()
            except IndexError:
                break
            with self.calls("the end of a graph") as context:
                self.graphs.discard(executable)
                context.destroy_exec(executable)

    def _close(self) -> None:
        # In a cycle, streams and graphs may be dropped after the device: what is destroyed here goes by its handles.
        context = self.context
        with suppress(DriverError):  # of a GPU that is lost: the others as well may say so, having done what they are for
            context.synchronize()
        context.each(context.destroy_exec, self.graphs)
        context.each(context.unload_module, self._modules)
        self.pool.close()
        self.staging.close()
        context.each(context.destroy_stream, self._streams)
        context.close()


class Code:
    """A loaded module."""

    def __init__(self, gpu: Gpu, module: Module, functions: dict[str, int]) -> None:
        self._gpu, self._module, self._functions = gpu, module, functions

    def kernel(self, key: str) -> Callable[[tuple[int, ...]], Plan]:
        """Makes the plans of a kernel for numbers for its sizes. Raises NoKernelError."""
        launches = self._module.launches.get(key)
        if launches is None:
            raise NoKernelError(f"no kernel {key} in {self._module.where}; compile it again")
        return Planner(key, launches, self._functions, self._gpu.context.entry_points).plan


def _leave_to_parent() -> None:
    for gpu in _all_gpus():
        gpu.unusable = _FORKED


# Locks that another thread held at the fork stay locked in the child, which does not come that far.
os.register_at_fork(after_in_child=_leave_to_parent)
