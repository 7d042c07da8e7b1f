"""What an instruction is compiled to, and what compiling it may depend on."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from iq.emulator.registers import Waves
from iq.emulator.words import Indices

# Runs the instruction for the chosen waves. Returns where they go on: None for the next instruction, a number for that one, STOP when
# they wait or have ended, or each wave's own.
Result = int | Indices | None
Step = Callable[[Waves], Result | None]
STOP = -1


@dataclass(frozen=True)
class Target:
    """The processor and wave size that a kernel runs with."""

    processor: str
    lanes: int

    @cached_property
    def generation(self) -> int:
        """9 for gfx90a and gfx942, 10, 11, 12."""
        found = re.fullmatch(r"gfx(\d+)[0-9a-f]{2}", self.processor)
        assert found, self.processor  # the code object's reader knows only such
        return int(found[1])
