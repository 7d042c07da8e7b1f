"""Memory in stream order. What is dropped is used again by what is enqueued later on the same stream: nobody waits, and a buffer that is
dropped while a kernel still uses it is safe.

An allocation belongs to a stream, its home. Used on another stream, that stream first waits for what its home has been given so far, and
when it is dropped its home waits for that stream. Streams that are somebody else's may be gone by then: what was used on them, or handed
out to other libraries, waits for the whole device, in batches. So does the first use elsewhere of what was asked for on such a stream.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from iq.errors import DeviceError
from iq.runtime.arrays import Bytes
from iq.runtime.driver import DriverError
from iq.runtime.memory import padded

if TYPE_CHECKING:
    from iq.runtime.gpu.gpu import Gpu
    from iq.runtime.gpu.streams import Stream

# Sizes are rounded up to multiples of these, so that what is given back fits what is asked for next.
_SMALL, _LARGE, _LARGE_FROM = 512, 2 << 20, 1 << 20

# Memory that waits for the whole device: a wait is due at so many pieces or bytes.
_BATCH, _BATCH_BYTES = 64, 256 << 20

# Free memory beyond this goes back to the driver.
_KEPT_BYTES = 1 << 30


class Block(NamedTuple):
    """Memory of the driver's. ordered: whether it was allocated in a stream's order, and is to be freed so."""

    address: int
    nbytes: int
    ordered: bool = False


class GpuMemory:
    """An allocation of a GPU. address: where it starts. home: see above."""

    __slots__ = ("__weakref__", "_block", "_exported", "_gpu", "_home", "_theirs", "_used", "address", "settled")

    def __init__(self, gpu: Gpu, block: Block, home: Stream, theirs: Stream | None = None) -> None:
        """theirs: the stream of somebody else's that it was asked for, which to the caller is its own, though its home be another."""
        self._gpu = gpu
        self._block = block
        self._home = home
        self._theirs = theirs
        self._used: set[Stream] = set()
        self._exported = False
        self.address = block.address
        # A stream on which it can be used without more ado, unless that is captured.
        self.settled: Stream | None = None if theirs else home

    def __del__(self) -> None:
        # No call of the driver: this runs in any thread, at any time.
        self._gpu.pool.dropped.append((self._block, self._home, self._used, self._exported))

    def use(self, stream: Stream) -> None:
        """To be called before something is enqueued on a stream that uses the memory."""
        graph = stream.graph
        if graph is not None:
            graph.keep(self)
            return
        if stream not in self._used and (stream is not self._home or self._theirs):
            if self._theirs and stream is not self._theirs:
                self._gpu.wait_for_all((self._theirs,))
            self._gpu.order(self._home, stream)
            self._used.add(stream)
        self.settled = stream

    def before(self, stream: Stream) -> None:
        """Let a stream wait for all that has been enqueued with this memory."""
        used_on = tuple(self._used)  # other threads add to it
        if self._exported or any(used.foreign for used in used_on):
            foreign = [used for used in used_on if used.foreign]
            self._gpu.wait_for_all(foreign)
            self._used.difference_update(foreign)
            if self.settled is not None and self.settled.foreign:
                self.settled = None
            return
        for used in (self._home, *used_on):
            if used is not stream:
                self._gpu.order(used, stream)

    def export(self) -> None:
        """Somebody else gets the address, and may use it on streams that iq does not know."""
        self._exported = True
        self._gpu.pool.exported[self.address] = self

    def holds(self, address: int, nbytes: int) -> bool:
        """Whether these bytes are its own."""
        return self.address <= address and address + nbytes <= self.address + self._block.nbytes

    def read(self, offset: int, nbytes: int) -> Bytes:
        stream = self._gpu.own
        self._gpu.refuse_capture("reading a buffer on the host")
        self.before(stream)
        return self._gpu.staging.read(stream, self.address + offset, nbytes)

    def write(self, offset: int, data: Bytes, stream: Stream) -> None:
        self._gpu.refuse_capture("copying from the host", stream)
        if stream.foreign and self._gpu.is_capturing(stream):
            raise DeviceError(f"copying from the host cannot be captured in a graph, as {stream!r} is by somebody else: do it before")
        self.use(stream)
        self._gpu.staging.write(stream, self.address + offset, data)

    def host(self, offset: int, nbytes: int) -> Bytes | None:
        return None

    def copy_within(self, offset: int, source: GpuMemory, source_offset: int, nbytes: int, stream: Stream) -> None:
        self.use(stream)
        source.use(stream)
        with self._gpu.calls(f"a copy of {nbytes} bytes") as context:
            context.copy_on(self.address + offset, source.address + source_offset, nbytes, stream.raw)

    def fill_zero(self, offset: int, nbytes: int, stream: Stream) -> None:
        self.use(stream)
        with self._gpu.calls(f"zeroing {nbytes} bytes") as context:
            context.fill(self.address + offset, 0, nbytes, stream.raw)


class Pool:
    """The memory of a GPU. Safe to use from several threads."""

    def __init__(self, gpu: Gpu, keep: bool) -> None:
        """keep: whether free memory is kept for later; else every allocation is the driver's own and goes back to it in stream order."""
        self._gpu = gpu
        self._keep = keep
        self.lock = threading.RLock()  # an allocation may run the garbage collector, and what that drops is only noted
        self._free: dict[tuple[int, int], list[int]] = {}  # addresses by the handle of their home, and size
        self._free_bytes = 0
        self._waiting: list[Block] = []  # for the whole device
        self._taken: set[int] = set()  # all addresses that the driver has to get back
        self.dropped: deque[tuple[Block, Stream, set[Stream], bool]] = deque()
        # Of memory that somebody else owns (iq.runtime.foreign): the owner, bytes, and as in `dropped`.
        self.borrowed: deque[tuple[object, int, Stream, set[Stream], bool]] = deque()
        self._owners: list[tuple[list[tuple[int, int]], object]] = []  # kept until their events, with those streams, have happened
        self._owners_waiting: list[tuple[int, object]] = []  # for the whole device, with their bytes
        self.exported: weakref.WeakValueDictionary[int, GpuMemory] = weakref.WeakValueDictionary()  # by address

    def allocate(self, nbytes: int, stream: Stream) -> GpuMemory:
        """Uninitialised memory for use on a stream. Raises DeviceError when it cannot be had."""
        gpu = self._gpu
        if gpu.unusable:
            gpu.check_usable()
        captured = stream.graph is not None
        # Streams that end with a capture, or that are somebody else's, are nobody's home.
        home = gpu.own if captured or stream.foreign else stream
        theirs = stream if stream.foreign else None
        size = rounded(nbytes) if self._keep else padded(nbytes)
        with self.lock:
            if self.dropped:
                self._sort()
            free = None if captured else self._free.get((home.raw, size))
            if free:
                self._free_bytes -= size
                return GpuMemory(gpu, Block(free.pop(), size), home, theirs)
            ordered = not (self._keep or captured)
            return GpuMemory(gpu, Block(self._from_driver(size, home if ordered else None), size, ordered), home, theirs)

    def block(self, nbytes: int) -> Block:
        """Memory that nothing has used yet and that no buffer owns. Raises DeviceError when it cannot be had."""
        with self.lock:
            return Block(self._from_driver(nbytes), nbytes)

    def give_back(self, block: Block) -> None:
        """Take back what `block` gave; the device's own stream has waited for what used it."""
        with self.lock:
            self._give(block, self._gpu.own)

    def collect(self) -> None:
        """Take in what has been dropped."""
        with self.lock:
            self._sort()

    def let_go(self) -> None:
        """Forget the owners of memory that was dropped and that nothing uses any more. They stay while its streams are being captured."""
        if not (self.borrowed or self._owners or self._owners_waiting):
            return
        done: list[object] = []
        with self._gpu.calls("giving memory back to its owners") as context, self.lock, context.relaxed():
            for _ in range(len(self.borrowed)):
                owner, nbytes, home, used, exported = self.borrowed[0]  # where it stays until it is noted: an interrupt must not lose it
                if home.graph or any(stream.graph for stream in used):
                    self.borrowed.append((owner, nbytes, home, used, exported))
                elif exported or any(stream.foreign for stream in used):
                    self._owners_waiting.append((nbytes, owner))
                else:
                    events = []
                    for stream in (home, *used):
                        events.append((context.create_event(), stream.raw))
                        context.record_event(*events[-1])
                    self._owners.append((events, owner))
                self.borrowed.popleft()
            kept, happened = [], []
            for events, owner in self._owners:
                if all(context.query_event(event) for event, _ in events):
                    happened += events
                    done.append(owner)
                else:
                    kept.append((events, owner))
            self._owners = kept
            for event, _ in happened:
                context.destroy_event(event)
            due = len(self._owners_waiting) >= _BATCH or sum(nbytes for nbytes, _ in self._owners_waiting) > _BATCH_BYTES
            if due and not self._gpu.captures and self._gpu.wait_for_all():
                done += self._owners_waiting
                self._owners_waiting = []
        done.clear()  # outside the lock: what an owner does at its end is its own affair

    def exporter(self, address: int, nbytes: int) -> GpuMemory | None:
        """The memory that these bytes are part of, where this device has exported them."""
        alive = (reference() for reference in self.exported.valuerefs())
        return next((memory for memory in alive if memory is not None and memory.holds(address, nbytes)), None)

    def release(self) -> None:
        """Give all free memory back to the driver, after a wait for the device; none while somebody captures."""
        with self.lock:
            self._sort()
            if self._gpu.wait_for_all():
                self._release()

    def _from_driver(self, size: int, stream: Stream | None = None) -> int:
        """stream: where it is allocated in stream order; else it is there for all."""
        with self._gpu.calls(f"the allocation of {size} bytes") as context, context.relaxed():
            try:
                address = context.allocate(size) if stream is None else context.allocate_on(size, stream.raw)
                self._taken.add(address)
                return address
            except DriverError as error:
                if self._gpu.lost_by(error):
                    raise
                if (self._free_bytes or self._waiting) and self._gpu.wait_for_all():
                    self._release()
                    return self._from_driver(size, stream)
                free, total = context.memory_info()
                raise DeviceError(
                    f"the device cannot allocate {size} bytes: {free} of {total} are free on {self._gpu.name} ({error})"
                ) from error

    def _sort(self) -> None:
        """Put what has been dropped where it is free for its home. Memory of streams under capture stays for later."""
        for _ in range(len(self.dropped)):
            block, home, used, exported = self.dropped.popleft()
            if exported or (used and any(stream.foreign for stream in used)):
                self._waiting.append(block)
            elif home.graph or (used and any(stream.graph for stream in used)):
                self.dropped.append((block, home, used, exported))
            else:
                for stream in used:
                    self._gpu.order(stream, home)
                self._give(block, home)
        if not self._waiting:
            return
        due = len(self._waiting) >= _BATCH or sum(block.nbytes for block in self._waiting) > _BATCH_BYTES
        if due and not self._gpu.captures and self._gpu.wait_for_all():
            waiting, self._waiting = self._waiting, []
            for block in waiting:
                self._give(block, self._gpu.own)

    def _give(self, block: Block, home: Stream) -> None:
        if self._keep and self._free_bytes + block.nbytes <= _KEPT_BYTES:
            self._free.setdefault((home.raw, block.nbytes), []).append(block.address)
            self._free_bytes += block.nbytes
            return
        with self._gpu.calls("giving memory back") as context, context.relaxed():
            if block.ordered:
                context.free_on(block.address, home.raw)
            else:
                context.synchronize_stream(home.raw)  # HIP's free does not promise to wait
                context.free(block.address)
            self._taken.discard(block.address)

    def _release(self) -> None:
        """Free everything that is free. The device has been waited for."""
        with self._gpu.calls("giving memory back") as context, context.relaxed():
            free = [address for addresses in self._free.values() for address in addresses]
            for address in [*free, *(block.address for block in self._waiting)]:
                self._taken.discard(address)
                context.free(address)
            self._free.clear()
            self._waiting.clear()
            self._free_bytes = 0

    def close(self) -> None:
        """Free all that was ever taken. The device has been waited for, and nothing uses it any more."""
        context = self._gpu.context
        context.each(context.free, self._taken)
        context.each(context.destroy_event, [event for events, _ in self._owners for event, _ in events])

    def rehome_events(self, handle: int) -> None:
        """See Gpu.detach."""
        own = self._gpu.own.raw
        with self.lock:
            for events, _ in self._owners:
                for number, (event, stream) in enumerate(events):
                    if stream == handle:
                        self._gpu.context.record_event(event, own)
                        events[number] = event, own

    def rehome(self, gone: int) -> None:
        """The free memory of a stream that has ended is the device's own stream's, which has waited for it."""
        with self.lock:
            for handle, size in [key for key in self._free if key[0] == gone]:
                self._free.setdefault((self._gpu.own.raw, size), []).extend(self._free.pop((handle, size)))


def rounded(nbytes: int) -> int:
    """What is allocated for `nbytes` bytes of data."""
    unit = _LARGE if nbytes >= _LARGE_FROM else _SMALL
    return -(-padded(nbytes) // unit) * unit
