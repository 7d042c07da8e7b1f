"""One opened device in IREE's own terms: modules and calls of their functions, memory, and copies.

Everything that goes through IREE's virtual machine or its queues is here. What it makes never leaves: see iq.runtime.ownership.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from iree.runtime import (
    BufferUsage,
    HalBuffer,
    HalBufferView,
    HalCommandBuffer,
    HalDevice,
    HalElementType,
    MemoryType,
    VmContext,
    VmFunction,
    VmInstance,
    VmModule,
    VmVariantList,
    create_hal_module,
)

from iq.runtime.arrays import Bytes
from iq.runtime.iree.ownership import Handle, Owner, driver_call

# Bytes of staging memory: large enough to hide the cost of a copy, small enough to stay cheap to pin.
STAGING_BYTES = 32 << 20

_DEVICE_MEMORY = int(MemoryType.DEVICE_LOCAL)
_STAGING_MEMORY = int(MemoryType.HOST_LOCAL) | int(MemoryType.DEVICE_VISIBLE) | int(MemoryType.HOST_CACHED)
_SHARED_MEMORY = int(MemoryType.HOST_LOCAL) | int(MemoryType.DEVICE_VISIBLE)
_USAGE = int(BufferUsage.DEFAULT)
_MAPPED_USAGE = int(BufferUsage.DEFAULT) | int(BufferUsage.MAPPING)


# IREE's element types by iq's names.
_ELEMENTS = {
    "f16": HalElementType.FLOAT_16,
    "f32": HalElementType.FLOAT_32,
    "f64": HalElementType.FLOAT_64,
    "bf16": HalElementType.BFLOAT_16,
    "u8": HalElementType.UINT_8,
    "i8": HalElementType.SINT_8,
    "u32": HalElementType.UINT_32,
    "i32": HalElementType.SINT_32,
    "i64": HalElementType.SINT_64,
}


class BufferArgument(NamedTuple):
    """What a function takes for a flat buffer: an allocation, the bytes of it, and how many elements of which type they are."""

    memory: Handle
    offset: int
    nbytes: int
    size: int
    element: str


@dataclass
class _LoadedModule:
    context: VmContext
    module: VmModule
    functions: dict[str, VmFunction] = field(default_factory=dict)


class Hal(Owner):
    """An opened HAL device. Safe to use from several threads."""

    def __init__(
        self,
        device: HalDevice,
        make_current: Callable[[], None] = lambda: None,
        pending_error: Callable[[], BaseException | None] = lambda: None,
        calls_at_once: bool = True,
        outlives_failure: bool = True,
    ) -> None:
        """make_current, pending_error: see Owner.

        calls_at_once: whether functions can be called while another one runs; else they wait for it.
        outlives_failure: whether IREE's driver can free memory of a device that it has lost.
        """
        super().__init__(make_current, pending_error)
        self._calling = nullcontext() if calls_at_once else threading.RLock()
        self._outlives_failure = outlives_failure
        # IREE's Python API cannot take a part of a buffer, but the HAL module that compiled code calls can, and it can be called from here.
        self._instance = VmInstance()
        self._module = create_hal_module(self._instance, device)
        self._context = VmContext(self._instance, [self._module])
        self._subspan = self._module.lookup_function("buffer.subspan")
        self._device = device

    def _close(self) -> None:
        super()._close()
        for name in ("_subspan", "_context", "_module", "_instance", "_device"):
            self.__dict__.pop(name, None)

    def _after_failure(self) -> None:
        # IREE's hip driver frees the first error of its cleanup thread once for each buffer that is released from then on, which crashes
        # at the second. After such an error nothing works on the device, not even an allocation.
        if self._outlives_failure or self._unusable:
            return
        try:
            self._device.allocator.allocate_buffer(_DEVICE_MEMORY, _USAGE, 4)
        except Exception as error:
            self._abandon(f"its driver has lost it, with all that is on it: {error}")

    # ---- Modules

    @driver_call
    def load(self, vmfb: bytes) -> Handle:
        """Load a vmfb, of which IREE keeps a copy unless it is aligned."""
        module = VmModule.from_buffer(self._instance, vmfb, warn_if_copy=False)
        return self._keep(_LoadedModule(VmContext(self._instance, [self._module, module]), module))

    @driver_call
    def has_function(self, module: Handle, name: str) -> bool:
        """Whether a module has a function, which can be called from then on."""
        loaded: _LoadedModule = self._object(module)
        function = loaded.module.lookup_function(name)
        if function is not None:
            loaded.functions[name] = function
        return function is not None

    @driver_call
    def call(self, module: Handle, name: str, arguments: Sequence[BufferArgument | int], results: int) -> None:
        """Call a function, which writes into its arguments; `results` is how many of them it returns. Returns when it is done."""
        loaded: _LoadedModule = self._object(module)
        given, returned = VmVariantList(len(arguments)), VmVariantList(results)
        for argument in arguments:
            if isinstance(argument, int):
                given.push_int(argument)
            else:
                part = self._part(argument.memory, argument.offset, argument.nbytes)
                given.push_ref(HalBufferView(part, (argument.size,), _ELEMENTS[argument.element]))
        with self._calling:
            loaded.context.invoke(loaded.functions[name], given, returned)

    # ---- Memory

    @driver_call
    def allocate(self, nbytes: int) -> Handle:
        """Uninitialised memory on the device."""
        return self._keep(self._device.allocator.allocate_buffer(_DEVICE_MEMORY, _USAGE, nbytes))

    @driver_call
    def share(self, array: Bytes) -> Handle:
        """A C-contiguous, writable array as memory of the device, in place; it stays alive for as long as the handle does."""
        return self._keep(self._device.allocator.import_host_allocation(array, _SHARED_MEMORY, _MAPPED_USAGE))

    @driver_call
    def read(self, source: Handle, offset: int, nbytes: int) -> Bytes:
        """A copy of bytes, through staging memory."""
        data = np.empty(nbytes, np.uint8)
        staging, mapped = self._staging(nbytes)
        for start in range(0, nbytes, STAGING_BYTES):
            n = min(STAGING_BYTES, nbytes - start)
            self._copy(self._object(source), offset + start, staging, 0, n)
            data[start : start + n] = mapped[:n]
        return data

    @driver_call
    def write(self, target: Handle, offset: int, data: Bytes) -> None:
        """Copy bytes in, through staging memory."""
        staging, mapped = self._staging(data.size)
        for start in range(0, data.size, STAGING_BYTES):
            n = min(STAGING_BYTES, data.size - start)
            mapped[:n] = data[start : start + n]
            self._copy(staging, 0, self._object(target), offset + start, n)

    @driver_call
    def copy(self, source: Handle, source_offset: int, target: Handle, target_offset: int, nbytes: int) -> None:
        """Copy bytes between allocations. Returns when it is done."""
        self._copy(self._object(source), source_offset, self._object(target), target_offset, nbytes)

    @driver_call
    def fill_zero(self, target: Handle, offset: int, nbytes: int) -> None:
        """Make bytes zero. Returns when it is done."""
        self._execute(lambda commands: commands.fill(self._object(target), b"\0", offset, nbytes, end=True))

    # ---- For driver calls: these take and return what IREE made

    def _part(self, memory: Handle, offset: int, nbytes: int) -> HalBuffer:
        whole = self._object(memory)
        if offset == 0:
            return whole
        arguments, results = VmVariantList(3), VmVariantList(1)
        arguments.push_ref(whole)
        arguments.push_int(offset)
        arguments.push_int(nbytes)
        self._context.invoke(self._subspan, arguments, results)
        return results.get_as_object(0, HalBuffer)

    def _staging(self, nbytes: int) -> tuple[HalBuffer, Bytes]:
        """Host memory that the device can copy from and to, and the same memory as numpy sees it."""
        size = max(1, min(nbytes, STAGING_BYTES))
        buffer = self._device.allocator.allocate_buffer(_STAGING_MEMORY, _MAPPED_USAGE, size)
        return buffer, buffer.map().asarray((size,), np.dtype(np.uint8))

    def _copy(self, source: HalBuffer, source_offset: int, target: HalBuffer, target_offset: int, nbytes: int) -> None:
        self._execute(lambda commands: commands.copy(source, target, source_offset, target_offset, nbytes, end=True))

    def _execute(self, record: Callable[[HalCommandBuffer], object]) -> None:
        commands = HalCommandBuffer(self._device)
        record(commands)
        done = self._device.create_semaphore(0)
        self._device.queue_execute(commands, [], [(done, 1)])  # one, whatever its parameter is called
        done.wait(1)
