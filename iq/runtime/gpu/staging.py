"""Copies between host and device through pinned memory, a ring of it: while one piece is on its way, the next is copied in or out."""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from iq.runtime.arrays import Bytes

if TYPE_CHECKING:
    from iq.runtime.gpu.gpu import Gpu
    from iq.runtime.gpu.streams import Stream

# The ring, and the pieces that large copies are cut into: large enough to hide what a copy costs, four of them on their way at once.
RING_BYTES, PIECE_BYTES = 32 << 20, 8 << 20
_ALIGNMENT = 64
_MOST_EVENTS = 256


class Staging:
    """The ring of a GPU. Safe to use from several threads, one after another."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._lock = threading.Lock()
        self._address = 0
        self._ring: Bytes = np.empty(0, np.uint8)
        self._head = self._tail = 0  # counted on and on: a place in the ring is one of these modulo its size
        self._busy: deque[tuple[int, int, int]] = deque()  # where a piece ends, the event after which it is free, and that event's stream
        self._events: list[int] = []  # to be recorded again

    def write(self, stream: Stream, address: int, data: Bytes) -> None:
        """Enqueue a copy of `data` to the device. Returns when all of it has been read."""
        with self._gpu.calls(f"a copy of {data.size} bytes to the device") as context, self._lock:
            for start in range(0, data.size, PIECE_BYTES):
                piece = data[start : start + PIECE_BYTES]
                at = self._reserve(piece.size)
                self._ring[at : at + piece.size] = piece
                context.copy_in(address + start, self._address + at, piece.size, stream.raw)
                self._commit(stream)

    def read(self, stream: Stream, address: int, nbytes: int) -> Bytes:
        """A copy of bytes of the device, as they are when the stream gets there."""
        data = np.empty(nbytes, np.uint8)
        coming: deque[tuple[int, int, int, int]] = deque()  # where in the data, how much, where in the ring, the event

        def take() -> None:
            start, size, at, event = coming.popleft()
            self._gpu.context.synchronize_event(event)
            data[start : start + size] = self._ring[at : at + size]

        with self._gpu.calls("the wait for a stream") as context:
            context.synchronize_stream(stream.raw)  # what is left of the wait is short: others need the ring
        with self._gpu.calls(f"a copy of {nbytes} bytes to the host") as context, self._lock:
            for start in range(0, nbytes, PIECE_BYTES):
                size = min(PIECE_BYTES, nbytes - start)
                if len(coming) == RING_BYTES // PIECE_BYTES - 2:  # one piece more, and what is left over at the ring's end
                    take()
                at = self._reserve(size)
                context.copy_out(self._address + at, address + start, size, stream.raw)
                coming.append((start, size, at, self._commit(stream)))
            while coming:
                take()
        return data

    def rehome(self, handle: int) -> None:
        """See Gpu.detach."""
        own = self._gpu.own.raw
        with self._lock:
            for number, (end, event, stream) in enumerate(self._busy):
                if stream == handle:
                    self._gpu.context.record_event(event, own)
                    self._busy[number] = end, event, own

    def close(self) -> None:
        """Free the ring, whose copies are done."""
        context = self._gpu.context
        context.each(context.destroy_event, [*self._events, *(event for _, event, _ in self._busy)])
        if self._address:
            context.each(context.free_host, [self._address])
            self._address = 0

    def _reserve(self, nbytes: int) -> int:
        """A place in the ring for so many bytes; waits until it is free."""
        context = self._gpu.context
        if not self._address:
            with context.relaxed():
                self._address = context.allocate_host(RING_BYTES)
            self._ring = np.ctypeslib.as_array((ctypes.c_uint8 * RING_BYTES).from_address(self._address))
        if self._head % RING_BYTES + nbytes > RING_BYTES:
            self._head += -self._head % RING_BYTES  # not around the ring's end
        at, end = self._head % RING_BYTES, self._head + nbytes
        while self._busy and (end - self._tail > RING_BYTES or len(self._busy) >= _MOST_EVENTS):
            self._tail, event, _ = self._busy.popleft()
            context.synchronize_event(event)
            self._events.append(event)
        self._head = -(-end // _ALIGNMENT) * _ALIGNMENT
        return at

    def _commit(self, stream: Stream) -> int:
        """The piece reserved last is free when the stream has got so far. Returns the event."""
        context = self._gpu.context
        if stream.foreign:  # which may end, or be captured, without a word
            self._gpu.order(stream, self._gpu.own)
            stream = self._gpu.own
        event = self._events.pop() if self._events else context.create_event()
        context.record_event(event, stream.raw)
        self._busy.append((self._head, event, stream.raw))
        return event
