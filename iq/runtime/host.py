"""What this machine's CPU is."""

from __future__ import annotations

import re
from pathlib import Path


def cpu_flags() -> frozenset[str]:
    """What this machine's CPU can do, as Linux names it; empty where there is no /proc/cpuinfo."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return frozenset(flags[1].split()) if flags else frozenset()
