"""What is worth keeping from one process to the next: compiled modules, listings, libraries, each under what it was made from."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import platformdirs

from iq.atomic import replacing


class Cache:
    """A directory: IQ_CACHE_DIR, or the user's cache directory. Processes may share it; entries appear whole or not at all."""

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory or Path(os.environ.get("IQ_CACHE_DIR") or platformdirs.user_cache_path("iq"))

    def path(self, kind: str, *made_from: str) -> Path:
        """Where an entry is, or would be.

        kind: how its name ends (".vmfb"). made_from: everything that it depends on; other texts, or the same in another order, give another
        path, as sha256 tells them apart.
        """
        return self.directory / f"{hashlib.sha256(chr(0).join(made_from).encode()).hexdigest()}{kind}"

    def store(self, path: Path, data: bytes) -> None:
        """Put an entry at a path in the directory, such as `path()` gives."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as new:
            new.write_bytes(data)
