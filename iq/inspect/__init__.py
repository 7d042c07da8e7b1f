"""Compiled kernels read back: registers, memory and instructions of what a vmfb or a bundle holds."""

from iq.inspect.disassembly import Objdump
from iq.inspect.facts import Dispatch, Report, inspect, inspect_vmfb

__all__ = ["Dispatch", "Objdump", "Report", "inspect", "inspect_vmfb"]
