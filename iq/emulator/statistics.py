"""What an emulated GPU counts of the launches that it runs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Statistics:
    """What a launch executed.

    instructions: of waves, by class (see iq.inspect.classes.classify). bytes_read, bytes_written: of global memory, by the bits that
    one lane moves at a time; scalar loads count for one lane. lds_read, lds_written: bytes. barriers: waves that arrived at one.
    """

    instructions: Counter[str] = field(default_factory=Counter)
    bytes_read: Counter[int] = field(default_factory=Counter)
    bytes_written: Counter[int] = field(default_factory=Counter)
    lds_read: int = 0
    lds_written: int = 0
    waves: int = 0
    barriers: int = 0

    @property
    def wave_instructions(self) -> int:
        return self.instructions.total()

    def add(self, other: Statistics) -> None:
        """Add up what several launches executed."""
        self.instructions.update(other.instructions)
        self.bytes_read.update(other.bytes_read)
        self.bytes_written.update(other.bytes_written)
        self.lds_read += other.lds_read
        self.lds_written += other.lds_written
        self.waves += other.waves
        self.barriers += other.barriers
