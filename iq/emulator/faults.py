"""What an emulated kernel is refused or stopped for. Each error names the kernel and the instruction once the machine has added them."""

from __future__ import annotations

from dataclasses import dataclass

from iq.errors import IqError


@dataclass(frozen=True)
class Place:
    """Where in a code object: the kernel, the instruction's address in the ELF, and its text."""

    kernel: str
    address: int
    text: str

    def __str__(self) -> str:
        return f"{self.kernel} at {self.address:#x}: {self.text}"


class EmulationError(IqError, RuntimeError):
    """Base of what stops a kernel under emulation. `what` is the fault itself, `place` where it happened, None until the machine knows."""

    def __init__(self, what: str, place: Place | None = None) -> None:
        super().__init__(f"{what} [{place}]" if place else what)
        self.what = what
        self.place = place

    def at(self, place: Place) -> EmulationError:
        """The same fault with its place, unless it has one already."""
        return self if self.place else type(self)(self.what, place)


class DisassemblerError(EmulationError):
    """The code object cannot be disassembled: no llvm-objdump, or it failed."""


class UnknownInstruction(EmulationError):
    """An instruction, operand or modifier that the emulator does not have."""


class LdsFault(EmulationError):
    """An access to LDS outside what the kernel declares."""


class ScratchFault(EmulationError):
    """An access to private memory outside what the kernel declares."""


class InstructionLimit(EmulationError):
    """More instructions than the launch was allowed: most likely a loop that does not end."""


class BarrierDeadlock(EmulationError):
    """Waves wait at a barrier that the others of their workgroup never reach."""


class LaunchError(EmulationError):
    """A launch that the hardware would refuse: an unknown kernel, or a workgroup of the wrong size."""
