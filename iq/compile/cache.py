"""Compiled modules kept on disk, each under the sha256 of all that it was made from, and beside them what else is worth keeping."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import platformdirs

from iq.compile.compiler import FLAGS, Compiler


class Cache:
    """A directory: IQ_CACHE_DIR, or the user's cache directory. Processes may share it; entries appear whole or not at all."""

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory or Path(os.environ.get("IQ_CACHE_DIR") or platformdirs.user_cache_path("iq"))

    def path(self, mlir: str, compiler: Compiler) -> Path:
        """Where the vmfb of this text and compiler is, or would be."""
        digest = hashlib.sha256("\0".join((compiler.version, compiler.revision, *FLAGS, mlir)).encode())
        return self.directory / f"{digest.hexdigest()}.vmfb"

    def store(self, path: Path, data: bytes) -> None:
        """Put an entry at a path in the directory: for a vmfb, where `path()` says."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # else a power cut could leave an empty file under the final name
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
