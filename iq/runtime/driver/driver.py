"""Devices by their driver's own functions: one class for HIP and CUDA.

Addresses and handles are ints. Nothing waits for a device but what says so. Nothing is kept of what is created: who creates,
destroys.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from ctypes import byref, c_int, c_size_t, c_uint64, c_void_p
from typing import Any

from iq.errors import DeviceError
from iq.runtime.driver.api import NOT_READY, RELAXED, Api
from iq.runtime.launching import INVALID_CONTEXT, EntryPoints


class DriverError(DeviceError):
    """A call of the driver that failed. code: its status. name: as the API names it, "hipErrorLaunchFailure"."""

    def __init__(self, message: str, code: int, name: str) -> None:
        super().__init__(message)
        self.code = code
        self.name = name


class Driver:
    """The library of one API, initialized. Make one with `load`."""

    def __init__(self, api: Api, library: ctypes.CDLL, path: str) -> None:
        """path: as it was loaded. Raises DriverError where the library finds nothing to work with, DeviceError where it is another one."""
        self.api = api
        self.path = path
        self._library = library
        self._functions: dict[str, Callable[..., Any]] = {}
        self.do("init")

    def __repr__(self) -> str:
        return f"Driver({self.api.name}, {self.path})"

    def symbol(self, name: str) -> str:
        """What the library calls a function."""
        return self.api.functions[name].symbol

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function by its common name; its status. Raises DeviceError where the library lacks it."""
        function = self._functions.get(name)
        if function is None:
            function = self._functions[name] = self.api.functions[name].of(self._library, self.path)
        return function(*arguments)

    def do(self, name: str, *arguments: Any) -> None:
        """Call a function by its common name. Raises DriverError where it fails, DeviceError where the library lacks it."""
        self.check(self.call(name, *arguments), f"{self.symbol(name)} of {self.path}")

    def address(self, name: str) -> int:
        """Where a function is, for C. Raises DeviceError where the library lacks it."""
        self.api.functions[name].of(self._library, self.path)
        return ctypes.cast(self._library[self.symbol(name)], c_void_p).value or 0

    def check(self, status: int, what: str) -> None:
        """Raises DriverError unless the status is success. what: was being done."""
        if status:
            raise self.error(status, what)

    def error(self, status: int, what: str) -> DriverError:
        """The error of a status, with the API's words for it."""
        self.api.forget(self.call)
        name, text = self.api.words(self.call, status)
        return DriverError(f"{what}: {name} ({status}): {text}", status, name)

    def is_sticky(self, status: int) -> bool:
        """Whether the context is lost after it: every later call fails as well."""
        return status in self.api.sticky

    def device_count(self) -> int:
        """How many devices there are."""
        count = c_int()
        self.do("device_count", byref(count))
        return count.value

    def device_name(self, index: int) -> str:
        """A device's name, for people. Raises DriverError for a number that no device has."""
        buffer = ctypes.create_string_buffer(256)
        self.do("device_name", buffer, len(buffer), self.device(index))
        return buffer.value.decode(errors="replace")

    def open(self, index: int) -> Context:
        """A device, by its number. Raises DriverError."""
        return Context(self, index)

    def current(self) -> int | None:
        """What is current for the calling thread: a context's handle or the number of a device; None if the API says there is none."""
        found = c_uint64()
        if status := self.call("get_current", byref(found)):
            if status == INVALID_CONTEXT:
                return None
            raise self.error(status, f"{self.symbol('get_current')} of {self.path}")
        return found.value

    def make_current(self, current: int) -> None:
        """Make what `current` gave, here or in another thread, the calling thread's."""
        self.do("set_current", current)

    def device(self, index: int) -> int:
        """The driver's own number of a device. Raises DriverError where there is none."""
        device = c_int()
        self.check(self.call("device", byref(device), index), f"there is no {self.api.name}:{index}")
        return device.value


class Context:
    """A device's primary context, which PyTorch, CuPy and IREE use as well: addresses and streams are common to all.

    index: the device's number. name: for people. arch: what artifacts are matched against, "gfx942:sramecc+:xnack-" or "sm_90".

    May be used by any thread, which has the device as its current one during a call and gets back what it had. Every method raises
    DriverError where the driver does not do it, which may be for the failure of a kernel that was launched earlier.
    """

    def __init__(self, driver: Driver, index: int) -> None:
        self.driver = driver
        self.index = index
        self.name = driver.device_name(index)
        self._device = driver.device(index)
        self.arch = driver.api.arch(driver.do, self._device)
        context = c_void_p()
        driver.check(driver.call("retain_context", byref(context), self._device), f"cannot open {self}")
        self._current = driver.api.current(context.value or 0, self._device)
        self._closed = False
        try:  # so that a device that cannot be used is found here
            before = driver.current()
            driver.make_current(self._current)
            if before is not None:
                driver.make_current(before)
        except DriverError:
            driver.call("release_context", self._device)
            raise

    def __str__(self) -> str:
        return f"{self.driver.api.name}:{self.index} ({self.name})"

    def __repr__(self) -> str:
        return f"Context({self})"

    def close(self) -> None:
        """Release the context, once. It may be called again, nothing else may."""
        if not self._closed:
            self._closed = True
            self.driver.check(self.driver.call("release_context", self._device), f"closing {self}")

    def each(self, destroy: Callable[[int], None], handles: Iterable[int]) -> None:
        """Destroy several of a kind. On a device that is lost, the driver says of each that it failed."""
        for handle in handles:
            with suppress(DriverError):
                destroy(handle)

    @property
    def entry_points(self) -> EntryPoints:
        """What plans for this device call."""
        launch, get, set, capturing = map(self.driver.address, ("launch", "get_current", "set_current", "is_capturing"))
        return EntryPoints(launch, get, set, self._current, capturing)

    # ---- Modules

    def load_module(self, image: bytes) -> int:
        """Load a code object, a cubin or PTX."""
        # CUDA reads PTX up to a zero byte, which follows the content of every Python bytes.
        return self._handle("load_module", image)

    def unload_module(self, module: int) -> None:
        self._do("unload_module", module)

    def function(self, module: int, name: str) -> int:
        """A kernel of a module, by name."""
        handle = c_void_p()
        self.driver.check(self._status("function", byref(handle), module, name.encode()), f"looking up the kernel {name}")
        return handle.value or 0

    def allow_shared(self, function: int, nbytes: int) -> None:
        """Let a kernel have this much dynamic shared memory, which CUDA asks for beyond 48 KiB."""
        self._do("allow_shared", function, nbytes)

    # ---- Memory

    def allocate(self, nbytes: int) -> int:
        """Memory of the device, not initialized."""
        return self._allocate("allocate", nbytes)

    def free(self, address: int) -> None:
        """Give memory back. Waits for what runs on the device."""
        self._do("free", address)

    def allocate_on(self, nbytes: int, stream: int) -> int:
        """Memory of the driver's pool, for what is enqueued on a stream from now on."""
        address = c_void_p()
        self.driver.check(self._status("allocate_on", byref(address), nbytes, stream), f"allocating {nbytes} bytes")
        return address.value or 0

    def free_on(self, address: int, stream: int) -> None:
        """Free memory of the driver's pool when the stream gets so far."""
        self._do("free_on", address, stream)

    def allocate_host(self, nbytes: int) -> int:
        """Memory of the host that stays in place, so that copies need no staging."""
        return self._allocate("allocate_host", nbytes)

    def free_host(self, address: int) -> None:
        self._do("free_host", address)

    def memory_info(self) -> tuple[int, int]:
        """Bytes that are free, and all."""
        free, total = c_size_t(), c_size_t()
        self._do("memory_info", byref(free), byref(total))
        return free.value, total.value

    # Copies are enqueued: memory must stay until they are done. One from or to the host's pageable memory may wait.

    def copy_in(self, address: int, host_address: int, nbytes: int, stream: int) -> None:
        """From the host."""
        if nbytes:
            self._do("copy_in", address, host_address, nbytes, stream)

    def copy_out(self, host_address: int, address: int, nbytes: int, stream: int) -> None:
        """To the host."""
        if nbytes:
            self._do("copy_out", host_address, address, nbytes, stream)

    def copy_on(self, to: int, source: int, nbytes: int, stream: int) -> None:
        """On the device."""
        if nbytes:
            self._do("copy_on", to, source, nbytes, stream)

    def fill(self, address: int, byte: int, nbytes: int, stream: int) -> None:
        """Set every byte. Enqueued."""
        if nbytes:
            self._do("fill", address, byte, nbytes, stream)

    # ---- Streams and events

    def create_stream(self) -> int:
        """A stream that does not wait for the default stream, nor that for it."""
        return self._handle("create_stream")

    def destroy_stream(self, stream: int) -> None:
        self._do("destroy_stream", stream)

    def synchronize_stream(self, stream: int) -> None:
        """Wait until everything on the stream is done."""
        self._do("synchronize_stream", stream)

    def synchronize(self) -> None:
        """Wait until everything on the device is done."""
        self._do("synchronize")

    def wait_event(self, stream: int, event: int) -> None:
        """Let what is enqueued on the stream from now on wait for the event."""
        self._do("wait_event", stream, event)

    def create_event(self) -> int:
        """An event that takes no times."""
        return self._handle("create_event")

    def destroy_event(self, event: int) -> None:
        self._do("destroy_event", event)

    def record_event(self, event: int, stream: int) -> None:
        """Let the event happen when everything that is on the stream now is done."""
        self._do("record_event", event, stream)

    def query_event(self, event: int) -> bool:
        """Whether it has happened. One that was never recorded has."""
        status = self._status("query_event", event)
        if status == NOT_READY:
            self.driver.api.forget(self.driver.call)
            return False
        self.driver.check(status, f"{self.driver.symbol('query_event')} on {self}")
        return True

    def synchronize_event(self, event: int) -> None:
        """Wait until it has happened."""
        self._do("synchronize_event", event)

    # ---- Graphs

    def begin_capture(self, stream: int) -> None:
        """Record what is enqueued on the stream from now on instead of running it. Any thread may call anything meanwhile."""
        self._do("begin_capture", stream)

    def end_capture(self, stream: int) -> int:
        """What was recorded, as a graph."""
        graph = c_void_p()
        self._do("end_capture", stream, byref(graph))
        return graph.value or 0

    def is_capturing(self, stream: int) -> bool:
        """Whether the stream is being captured, by whomever."""
        state = c_int()
        self._do("is_capturing", stream, byref(state))
        return state.value != 0

    @contextmanager
    def relaxed(self) -> Iterator[None]:
        """Within it, the calling thread may do what others that capture a stream forbid by default: allocate memory, say."""
        mode = c_int(RELAXED)
        self._do("exchange_capture_mode", byref(mode))
        try:
            yield
        finally:
            self._do("exchange_capture_mode", byref(mode))

    def instantiate(self, graph: int) -> int:
        """A graph made ready to be launched."""
        return self._handle("instantiate", graph)

    def destroy_graph(self, graph: int) -> None:
        self._do("destroy_graph", graph)

    def destroy_exec(self, exec: int) -> None:
        """Destroy what `instantiate` gave."""
        self._do("destroy_exec", exec)

    def launch_graph(self, exec: int, stream: int) -> None:
        """Enqueue what `instantiate` gave."""
        self._do("launch_graph", exec, stream)

    # ---- Calling

    def _status(self, name: str, *arguments: Any) -> int:
        if self._closed:
            raise DeviceError(f"{self} has been closed")
        driver = self.driver
        before = driver.current()
        if before == self._current:
            return int(driver.call(name, *arguments))
        driver.make_current(self._current)
        try:
            return int(driver.call(name, *arguments))
        finally:
            if before is not None:  # else it stays
                driver.make_current(before)

    def _do(self, name: str, *arguments: Any) -> None:
        if status := self._status(name, *arguments):
            raise self.driver.error(status, f"{self.driver.symbol(name)} on {self}")

    def _handle(self, name: str, *arguments: Any) -> int:
        """What a function gives through its first argument."""
        handle = c_void_p()
        self._do(name, byref(handle), *arguments)
        return handle.value or 0

    def _allocate(self, name: str, nbytes: int) -> int:
        address = c_void_p()
        if status := self._status(name, byref(address), nbytes):
            raise self.driver.error(status, f"{self.driver.symbol(name)} of {nbytes} bytes on {self}")
        return address.value or 0
