"""One opened device in IREE's own terms: its modules, sub-ranges of its buffers, and copies between them.

Everything that goes through IREE's virtual machine or its queues is here; the rest of the runtime sees buffers and functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from iree.runtime import (
    BufferUsage,
    HalBuffer,
    HalCommandBuffer,
    HalDevice,
    MemoryType,
    VmContext,
    VmFunction,
    VmInstance,
    VmModule,
    VmVariantList,
    create_hal_module,
)
from numpy.typing import NDArray

from iq.errors import DeviceError, IqError

_DEVICE_MEMORY = int(MemoryType.DEVICE_LOCAL)
_STAGING_MEMORY = int(MemoryType.HOST_LOCAL) | int(MemoryType.DEVICE_VISIBLE) | int(MemoryType.HOST_CACHED)
_SHARED_MEMORY = int(MemoryType.HOST_LOCAL) | int(MemoryType.DEVICE_VISIBLE)
_USAGE = int(BufferUsage.DEFAULT)
_MAPPED_USAGE = int(BufferUsage.DEFAULT) | int(BufferUsage.MAPPING)


class Module:
    """A loaded vmfb. Its functions can be called from several threads at once."""

    def __init__(self, hal: Hal, context: VmContext, module: VmModule) -> None:
        self._hal = hal
        self._context = context
        self._module = module

    def lookup(self, name: str) -> VmFunction | None:
        """A function, or None when the module has none of that name."""
        return self._module.lookup_function(name)

    def invoke(self, function: VmFunction, arguments: VmVariantList, results: VmVariantList) -> None:
        """Call a function. Returns when it is done."""
        try:
            with self._hal.calling():
                self._context.invoke(function, arguments, results)
        finally:
            del arguments, results  # IREE crashes on arguments that a traceback has kept until after the device


class Hal:
    """An opened HAL device. Safe to use from several threads.

    bind: makes the device the calling thread's own; to be called before anything that reaches its driver.
    failure: why a call failed, or None (see iq.runtime.drivers.HipRuntime).
    """

    def __init__(self, device: HalDevice, bind: Callable[[], None], failure: Callable[[], BaseException | None] = lambda: None) -> None:
        self._device = device
        self.bind = bind
        self._failure = failure
        self._instance = VmInstance()
        self._module = create_hal_module(self._instance, device)
        # IREE's Python API cannot take a part of a buffer, but the HAL module that compiled code calls can, and it can be called from here.
        self._context = VmContext(self._instance, [self._module])
        self._subspan = self._module.lookup_function("buffer.subspan")

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Around what reaches the driver: binds the device, and raises what the device says went wrong, if it says anything."""
        self.bind()
        try:
            yield
        except Exception as error:
            if failure := self._failure():
                raise failure from error
            raise
        if failure := self._failure():  # IREE ignores some errors, of hipFree for one
            raise failure

    def load(self, source: Path | memoryview) -> Module:
        """Load a vmfb. Files and aligned memory are used in place, other memory is copied."""
        with self.calling():
            if isinstance(source, Path):
                module = VmModule.mmap(self._instance, str(source))
            else:
                module = VmModule.from_buffer(self._instance, source, warn_if_copy=False)
            return Module(self, VmContext(self._instance, [self._module, module]), module)

    def allocate(self, nbytes: int) -> HalBuffer:
        """Uninitialised memory on the device. Raises DeviceError when it cannot be had."""
        return self._allocate(_DEVICE_MEMORY, _USAGE, nbytes)

    def allocate_staging(self, nbytes: int) -> HalBuffer:
        """Host memory that the device can copy from and to. Raises DeviceError when it cannot be had."""
        return self._allocate(_STAGING_MEMORY, _MAPPED_USAGE, nbytes)

    def _allocate(self, memory_type: int, usage: int, nbytes: int) -> HalBuffer:
        try:
            with self.calling():
                return self._device.allocator.allocate_buffer(memory_type, usage, nbytes)
        except IqError:
            raise
        except Exception as error:  # IREE's statuses come as various built-in exceptions
            raise DeviceError(f"the device cannot allocate {nbytes} bytes: {error}") from error

    def share(self, array: NDArray[np.uint8]) -> HalBuffer:
        """A C-contiguous, writable array as a buffer, in place. The buffer keeps the array alive; what is made of the buffer does not."""
        return self._device.allocator.import_host_allocation(array, _SHARED_MEMORY, _MAPPED_USAGE)

    def subspan(self, buffer: HalBuffer, offset: int, nbytes: int) -> HalBuffer:
        """A part of a buffer, sharing its memory. The whole buffer must outlive it."""
        arguments, results = VmVariantList(3), VmVariantList(1)
        arguments.push_ref(buffer)
        arguments.push_int(offset)
        arguments.push_int(nbytes)
        self._context.invoke(self._subspan, arguments, results)
        return results.get_as_object(0, HalBuffer)

    def copy(self, source: HalBuffer, source_offset: int, target: HalBuffer, target_offset: int, nbytes: int) -> None:
        """Copy bytes between buffers that the device can address. Returns when it is done."""
        self._execute(lambda commands: commands.copy(source, target, source_offset, target_offset, nbytes, end=True))

    def fill_zero(self, buffer: HalBuffer, offset: int, nbytes: int) -> None:
        """Make bytes of a buffer zero. Returns when it is done."""
        self._execute(lambda commands: commands.fill(buffer, b"\0", offset, nbytes, end=True))

    def _execute(self, record: Callable[[HalCommandBuffer], object]) -> None:
        with self.calling():
            commands = HalCommandBuffer(self._device)
            try:
                record(commands)
                done = self._device.create_semaphore(0)
                self._device.queue_execute(commands, [], [(done, 1)])  # one, whatever its parameter is called
                done.wait(1)
            finally:
                del commands  # IREE crashes on commands that a traceback has kept until after the device
