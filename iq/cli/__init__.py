"""The command line, `iq ...`. It takes the extra `cli`; without it, a line says so."""

from __future__ import annotations

import sys

from iq.extras import missing


def main() -> None:
    """Run the command line. Exit status: 0; 1 when it ran and the answer is no; 2 for misuse, an extra that is missing among it."""
    if lacking := missing("cli"):
        sys.exit(f"iq: {lacking}")
    from iq.cli.commands import main as commands

    commands()
