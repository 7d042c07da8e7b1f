"""Plans: the launches of a kernel for given sizes, as immutable bytes that any thread may launch again and again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from iq.bundle import Launches
from iq.errors import ShapeError
from iq.runtime.launching import EntryPoints, Step, pack

if TYPE_CHECKING:
    from iq.runtime.buffer import Buffer
    from iq.runtime.gpu.streams import Stream

# Scratch buffers start on this boundary, a cache line of any GPU.
_SCRATCH_ALIGNMENT = 256

# What HIP and CUDA launch at most: workgroups along x, y, z; and work items along an axis on AMD.
_MOST_WORKGROUPS = (2**31 - 1, 65535, 65535)
_MOST_ITEMS = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Plan:
    """packed: for `iq.runtime.launching.run`, with the addresses of inputs, outputs and scratch. scratch: bytes of it, 0 for none."""

    key: str
    packed: bytes
    scratch: int

    def launch(self, buffers: Sequence[Buffer], stream: Stream) -> None:
        """Enqueue it with these inputs and outputs. Raises DeviceError."""
        addresses, captured = [], stream.graph is not None
        for buffer in buffers:
            memory = buffer.memory
            if captured or memory.settled is not stream:
                memory.use(stream)
            addresses.append(buffer.address)
        stream.launch(self, addresses)


class Planner:
    """Makes the plans of one kernel."""

    def __init__(self, key: str, launches: Launches, functions: Mapping[str, int], entry_points: EntryPoints) -> None:
        """functions: the loaded kernels by name."""
        self._key, self._launches, self._functions, self._entry_points = key, launches, functions, entry_points
        self.plan = lru_cache(256)(self._plan)  # models call with the same sizes again and again

    def _plan(self, numbers: tuple[int, ...]) -> Plan:
        """The plan for these sizes, which are those of the launches in order. Raises ShapeError for sizes that are too large to launch."""
        launches = self._launches
        sizes = launches.all_sizes(dict(zip(launches.sizes, numbers, strict=True)))
        arguments = {t.name: (at, 0) for at, t in enumerate((*launches.inputs, *launches.outputs))}
        given, scratch = len(arguments), 0
        for tensor in launches.scratch:
            arguments[tensor.name] = given, scratch
            scratch += -(-tensor.nbytes(sizes) // _SCRATCH_ALIGNMENT) * _SCRATCH_ALIGNMENT
        steps = []
        for dispatch in launches.dispatches:
            grid = tuple(-(-sizes[axis.size] // axis.tile) for axis in dispatch.grid)
            for count, threads, most, axis in zip(grid, dispatch.block, _MOST_WORKGROUPS, "xyz", strict=False):
                if count > most or count * threads > _MOST_ITEMS:
                    raise ShapeError(
                        f"{self._key}: {dict(zip(launches.sizes, numbers, strict=True))} takes {count} workgroups along {axis}; "
                        f"a GPU launches at most {min(most, _MOST_ITEMS // threads)}: split the tensor"
                    )
            constants = tuple(sizes[name] for name in dispatch.sizes)
            if max(constants, default=0) >= 2**31:
                raise ShapeError(f"{self._key}: {dict(zip(dispatch.sizes, constants, strict=True))} does not fit 31 bits: split the tensor")
            x, y, z = (*grid, 1, 1)[:3]
            pointers = tuple(arguments[name] for name in dispatch.buffers)
            steps.append(Step(self._functions[dispatch.function], (x, y, z), dispatch.block, dispatch.shared, pointers, constants))
        return Plan(self._key, pack(self._entry_points, steps, given + bool(scratch)), scratch)
