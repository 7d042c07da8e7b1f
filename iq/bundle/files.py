"""The files of a bundle, in a directory or in one STORED zip."""

from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from iq.errors import ManifestError, UnknownFileError


class Files(Protocol):
    """The files of a bundle, however they are stored."""

    @property
    def names(self) -> frozenset[str]: ...

    def data(self, name: str) -> bytes:
        """The bytes of a file, read anew. Raises OSError where it cannot be read, ValueError where its zip is damaged."""


class Directory:
    def __init__(self, path: Path) -> None:
        self._path = path
        self.names = frozenset(p.name for p in path.iterdir())

    def data(self, name: str) -> bytes:
        path = self._path / name
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError("not a regular file")
        return path.read_bytes()


class Zip:
    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with path.open("rb") as file, stored_zip(file) as archive:
                names = archive.namelist()
        except ValueError as error:
            raise ManifestError(f"{path}: not the zip of a bundle: {error}") from error
        if twice := [name for name, n in Counter(names).items() if n > 1]:
            raise UnknownFileError(f"{path}: holds {', '.join(twice)} twice")
        self.names = frozenset(names)

    def data(self, name: str) -> bytes:
        with self._path.open("rb") as file, stored_zip(file) as archive:
            return archive.read(name)


@contextmanager
def stored_zip(file: BinaryIO) -> Iterator[zipfile.ZipFile]:
    """A zip whose files are not compressed, open to be read. Raises ValueError for any other, there and in the context.

    What is compressed could inflate to any size, and so could files that overlap.
    """
    length = file.seek(0, os.SEEK_END)
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            for m in members:
                if m.compress_type != zipfile.ZIP_STORED or m.file_size != m.compress_size or m.flag_bits & 1:
                    raise ValueError(f"{m.filename} is compressed or encrypted; `iq.bundle.pack` makes a bundle's zip")
            if (claimed := sum(m.file_size for m in members)) > length:
                raise ValueError(f"its files have {claimed} bytes, more than its own {length}")
            yield archive
    # What zipfile raises for malformed, truncated, changed and unsupported files.
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, KeyError, OverflowError, struct.error) as error:
        raise ValueError(error) from error


def unzipped(data: bytes | memoryview) -> dict[str, bytes]:
    """The files of a STORED zip in memory. Raises ValueError for anything else, and for one that holds a file twice."""
    with stored_zip(io.BytesIO(data)) as archive:
        names = archive.namelist()
        if len(set(names)) < len(names):
            raise ValueError("it holds a file twice")
        return {name: archive.read(name) for name in names}


def files_at(path: Path) -> Files:
    if path.is_dir():
        return Directory(path)
    if path.is_file():
        return Zip(path)
    raise ManifestError(f"{path}: no such bundle, neither a directory nor a zip")
