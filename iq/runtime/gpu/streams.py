"""Streams: queues of a GPU's work. What is enqueued on one happens in order; between two only events give an order."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from iq.errors import DeviceError
from iq.runtime.gpu.pool import Block
from iq.runtime.launching import CAPTURING, run

if TYPE_CHECKING:
    from iq.runtime.gpu.gpu import Gpu
    from iq.runtime.gpu.graphs import Graph
    from iq.runtime.gpu.plans import Plan

# A stream's workspace grows to a power of two: those that it has outgrown take no more than it does.
_SMALLEST_WORKSPACE = 1 << 16


class Stream:
    """A stream of a device, made by `Device.stream`; or somebody else's, such as torch's, by its handle.

    foreign: whether it is somebody else's. graph: what it is being captured into, else None.
    raw: the driver's handle, for this package; others take `handle`.
    """

    def __init__(self, gpu: Gpu, handle: int, foreign: bool = False) -> None:
        """For this package: see Device.stream."""
        self.gpu = gpu
        self.raw = handle
        self.foreign = foreign
        self._shared = int(foreign)  # whether somebody else knows the handle, and may be capturing
        self.graph: Graph | None = None
        self._lock = threading.Lock()  # the dispatches of a call share the workspace: calls must not mix
        self._workspace = self._workspace_bytes = 0  # its address and size
        self.blocks: list[Block] = []  # the workspace, and those that it has outgrown

    @property
    def handle(self) -> int:
        """The driver's handle, as an integer: for other libraries, and for `stream=`."""
        self._shared = 1
        return self.raw

    def __repr__(self) -> str:
        return f"Stream({self.gpu.name!r}, handle={self.raw:#x})"

    def __del__(self) -> None:
        if not self.foreign and self is not getattr(self.gpu, "own", self):  # which ends with the device
            self.gpu.dropped_streams.append((self.raw, self.blocks))

    def synchronize(self) -> None:
        """Wait until all that has been enqueued here is done. Raises DeviceError where that failed, or while the stream is captured."""
        if self.graph is not None:
            raise DeviceError(f"{self!r} is being captured: nothing runs that could be waited for; wait after the capture")
        with self.gpu.calls("the wait for a stream") as context:
            context.synchronize_stream(self.raw)

    def wait(self, other: Stream | int) -> None:
        """Let all that is enqueued here from now on wait for what has been enqueued on another stream so far.

        other: of the same device, or the driver's handle of one.

        Where the other stream is being captured this one joins the capture; the stream that the capture began on has to wait for it again
        before the capture ends.
        """
        other = self.gpu.stream(other)
        if other is self:
            return
        graph = other.graph
        if graph is not None and self.graph is None:
            graph.join(self, other)
        else:
            self.gpu.order(other, self)

    def launch(self, plan: Plan, addresses: Sequence[int], like: Any = None) -> None:
        """Enqueue a plan with the addresses of its inputs and outputs. Raises DeviceError.

        like: a tensor of torch's on the device. Where somebody else captures the stream, whose graph cannot keep iq's workspace, scratch
        memory is taken from torch: its allocator knows of the capture.
        """
        gpu = self.gpu
        if gpu.unusable:
            gpu.check_usable()
        if not plan.scratch:
            status = run(plan.packed, self.raw, 0, *addresses)
        elif self.graph is not None or gpu.fresh_scratch:
            fresh = gpu.pool.allocate(plan.scratch, self)
            fresh.use(self)
            status = run(plan.packed, self.raw, 0, *addresses, fresh.address)
        else:
            with self._lock:
                if plan.scratch <= self._workspace_bytes or self._grow(plan):
                    status = run(plan.packed, self.raw, self._shared, *addresses, self._workspace)
                else:
                    status = CAPTURING
            if status == CAPTURING and like is not None:
                theirs = like.new_empty(plan.scratch, dtype=sys.modules["torch"].uint8)
                status = run(plan.packed, self.raw, 0, *addresses, theirs.data_ptr())
        if status:
            self._failed(status, plan)

    def _grow(self, plan: Plan) -> bool:
        """Whether there is a larger workspace now: not on a stream that is being captured.

        The old one stays: what is enqueued still uses it.
        """
        if self.gpu.is_capturing(self):
            return False
        grown = self.gpu.pool.block(max(_SMALLEST_WORKSPACE, 1 << (plan.scratch - 1).bit_length()))
        self.blocks.append(grown)
        self._workspace, self._workspace_bytes = grown.address, grown.nbytes
        return True

    def _failed(self, status: int, plan: Plan) -> None:
        if status == CAPTURING:
            raise DeviceError(
                f"{plan.key}: {self!r} is being captured by somebody else, whose graph cannot keep iq's scratch memory: capture with "
                "Device.capture, or call through iq.torch, which takes scratch memory from torch"
            )
        self.gpu.failed(self.gpu.context.driver.error(status, f"the launch of {plan.key}"))
