"""Files and directories that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path to build a file or a directory at; when the context is left, what was built is renamed to `path`, over what lies there.

    The path that it yields has the same name, in a new hidden directory (".iq-...") beside `path`.
    The data is on the disk before it is renamed, so that a power cut leaves no empty file under the final name.
    When the context is left by an exception or an interrupt, what lay at `path` still lies there, and nothing else is left behind.
    """
    with tempfile.TemporaryDirectory(prefix=".iq-", dir=path.parent) as temporary:
        new = Path(temporary) / path.name
        yield new
        for file in [new, *new.rglob("*")]:
            if file.is_file():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
        _rename(new, path, aside=Path(temporary) / "replaced")


def _rename(new: Path, path: Path, aside: Path) -> None:
    if not new.is_dir() and not path.is_dir():
        new.replace(path)
        return
    # A directory cannot be renamed over another: the old one goes aside, and comes back when the new one cannot take its place.
    try:
        if path.exists():
            path.rename(aside)
        new.rename(path)
    except BaseException:
        if aside.exists() and not path.exists():
            aside.rename(path)
        raise
