"""What a runtime loads: the compiled kernels of one format for one target, wherever they come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from iq.bundle.launches import Launches, launches_of
from iq.bundle.vmfb import Vmfb
from iq.kernels import KernelSpec
from iq.targets import Target


@dataclass(frozen=True)
class Module:
    """where: what it is called in messages. vmfb: its bytes, as they were checked. launches: how each kernel is launched, by its key."""

    where: str
    vmfb: bytes
    launches: Mapping[str, Launches]

    @classmethod
    def of(cls, where: str, vmfb: bytes, specs: Iterable[KernelSpec], target: Target) -> Module:
        """A vmfb that was compiled from these kernels for a target. Raises BytecodeError for bytes that are none."""
        code = Vmfb.parse(vmfb).executable
        return cls(where, vmfb, {spec.key: launches_of(spec, target, code) for spec in specs})
