"""What a launch sets up before the first instruction: its geometry, arguments, and the registers of each wave."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from iq.emulator.buffer_unit import PRIVATE_SEGMENT_BUFFER
from iq.emulator.decoder import EXEC, TTMP
from iq.emulator.faults import LaunchError
from iq.emulator.kernargs import Dim3
from iq.emulator.program import LoadedCode, aligned
from iq.emulator.registers import Waves
from iq.emulator.steps import Target
from iq.emulator.words import Indices, Words

_ARGUMENT_ALIGNMENT = 64
# Scalar loads may read a few words more than there are.
_ARGUMENT_SLACK = 64
_MOST_WORK_ITEMS = 1024
# Firmware that preloads arguments into SGPRs skips the code that loads them on other firmware (AMDGPUUsage, "Preloaded Kernel Arguments").
_PRELOAD_PROLOGUE = 256

# Processors with a register for each of the work item's x, y and z; later ones pack all three into the first (AMDGPUUsage, "Initial
# Kernel Execution State").
_UNPACKED_IDS = ("gfx900", "gfx906", "gfx908", "gfx90c")


class Dispatch:
    """A launch of a kernel of loaded code."""

    def __init__(self, code: LoadedCode, kernel: str, grid: Dim3, workgroup: Dim3, kernarg: bytes, preload: bool) -> None:
        """preload: whether this GPU's firmware preloads arguments."""
        self.code = code
        self.kernel = code.kernel(kernel)
        self.target = Target(code.code.processor, self.kernel.wave)
        self._descriptor = code.descriptors[kernel]
        self._grid, self._size = grid, workgroup
        if self.kernel.workgroup != (0, 0, 0) and workgroup != self.kernel.workgroup:
            raise LaunchError(f"{kernel} is compiled for workgroups of {self.kernel.workgroup}, not {workgroup}")
        if not all(grid) or not 0 < math.prod(workgroup) <= _MOST_WORK_ITEMS:
            raise LaunchError(f"{kernel} cannot be launched with {grid} workgroups of {workgroup} work items")
        if len(kernarg) < self.kernel.kernarg:
            raise LaunchError(f"{kernel} takes {self.kernel.kernarg} bytes of arguments, not {len(kernarg)}")
        self.lanes = self.target.lanes
        self.lds, self.scratch = self.kernel.lds, self.kernel.scratch
        self.workgroups = math.prod(grid)
        self.waves_per_workgroup = -(-math.prod(workgroup) // self.lanes)
        first, count = self._descriptor.preloaded_words
        self._preloaded = slice(first, first + count if preload else first)
        self._entry = code.program.index(self._descriptor.entry + (_PRELOAD_PROLOGUE if preload and count else 0))
        self._kernarg = aligned(kernarg, _ARGUMENT_ALIGNMENT, _ARGUMENT_SLACK)

    def readable(self) -> NDArray[np.uint64]:
        """Start and end of what the kernel may read besides allocations: its arguments and the code object."""
        return np.array([[a.ctypes.data, a.ctypes.data + a.size] for a in (self._kernarg, self.code.image)], np.uint64)

    def initialise(self, waves: Waves, workgroups: Indices, numbers: Indices) -> None:
        """Set the registers of waves. numbers: each wave's number in its workgroup."""
        d = self._descriptor
        waves.pc[:] = self._entry
        waves.mode_bits = d.float_mode
        # From gfx12 on there is no such bit, and clamping NaN gives 0.
        waves.dx10_clamp = bool(d.rsrc1 >> 21 & 1) or self.target.generation == 12
        sgprs = self._user_sgprs()
        for number, word in enumerate(sgprs):
            waves.write_scalar(number, np.uint32(word))
        gx, gy, _ = self._grid
        ids = (workgroups % gx, workgroups // gx % gy, workgroups // (gx * gy))
        if self.target.generation == 12:
            waves.write_scalar(TTMP + 9, ids[0].astype(np.uint32))
            waves.write_scalar(TTMP + 7, (ids[1] | ids[2] << 16).astype(np.uint32))
        else:
            register = d.user_sgprs
            for wanted, value in zip(d.workgroup_ids, ids, strict=True):
                if wanted:
                    waves.write_scalar(register, value.astype(np.uint32))
                    register += 1
            if d.rsrc2 >> 10 & 1:
                raise LaunchError(f"{self.kernel.name} wants the workgroup info SGPR, which the emulator does not have")
            if d.rsrc2 & 1:
                waves.write_scalar(register, np.uint32(0))  # where the wave's scratch begins; each lane's is apart here
        self._work_items(waves, numbers)

    def _user_sgprs(self) -> list[int]:
        """The user SGPRs in order (AMDGPUUsage, "Initial Kernel Execution State"). Preloaded arguments are the last."""
        properties, address = self._descriptor.properties, self._kernarg.ctypes.data
        for bit, name in ((1, "dispatch pointer"), (2, "queue pointer"), (4, "dispatch id")):
            if properties >> bit & 1:
                raise LaunchError(f"{self.kernel.name} wants the {name}, which the emulator does not have")
        values: list[int] = []
        for bit, words in (
            (0, PRIVATE_SEGMENT_BUFFER),
            (3, (address & 0xFFFF_FFFF, address >> 32)),
            (5, (0, 0)),  # flat scratch: private memory is found otherwise
            (6, (self.scratch,)),
        ):
            if properties >> bit & 1:
                values += words
        return [*values, *(int(word) for word in self._kernarg.view(np.uint32)[self._preloaded])]

    def _work_items(self, waves: Waves, numbers: Indices) -> None:
        """EXEC, and the ids of the work items in the first vector registers."""
        sx, sy, _ = self._size
        item = numbers[:, None] * self.lanes + np.arange(self.lanes)
        active = item < math.prod(self._size)
        waves.write_scalar(EXEC + 1, np.uint32(0))
        waves.write_mask(EXEC, active)
        x, y, z = (part.astype(np.uint32) for part in (item % sx, item // sx % sy, item // (sx * sy)))
        if self.target.processor in _UNPACKED_IDS or self.target.generation == 10:
            ids: list[Words] = [x, y, z][: self._descriptor.work_item_ids]
        else:
            ids = [x | y << np.uint32(10) | z << np.uint32(20)]
        for register, value in enumerate(ids):
            waves.write_vector(register, value, None)
