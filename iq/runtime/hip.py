"""A HIP runtime beside this machine's own: what an emulated GPU is opened through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class HipRuntime:
    """A HIP runtime other than this machine's own, and the device of it to open.

    name: of the device. library: what is loaded for libamdhip64. index: the device's number in it.
    pending_error: why calls failed: the first error since it was last asked, None where there was none.
    defer: lets streams run when they are waited for, in any order that events allow; IREE's driver does without.
    """

    name: str
    library: Path
    index: int
    pending_error: Callable[[], BaseException | None]
    defer: Callable[[], None]
