"""The files of a bundle, in a directory or in one STORED zip that is mapped."""

from __future__ import annotations

import mmap
import stat
import struct
import zipfile
from collections import Counter
from pathlib import Path
from typing import Protocol

from iq.errors import ManifestError, UnknownFileError

# IREE uses constants and executables where they are mapped, and wants them on this boundary.
ALIGNMENT = 64

# Header id of the zip extra field that only pads (as Android's zipalign does).
PADDING_FIELD = 0xD935


class Files(Protocol):
    """The files of a bundle, however they are stored."""

    @property
    def names(self) -> frozenset[str]: ...

    def data(self, name: str) -> bytes | memoryview: ...

    def source(self, name: str) -> Path | memoryview: ...


class Directory:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.names = frozenset(p.name for p in path.iterdir())

    def data(self, name: str) -> bytes:
        path = self.path / name
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError("not a regular file")
        return path.read_bytes()

    def source(self, name: str) -> Path:
        return self.path / name


class Zip:
    """A mapped zip. Views of it keep the mapping alive."""

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as file, zipfile.ZipFile(file) as archive:
                members = archive.infolist()
                mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            self._views = {m.filename: self._view(mapped, m) for m in members}
        except (zipfile.BadZipFile, ValueError, struct.error) as error:
            raise ManifestError(f"{path}: not the zip of a bundle: {error}") from error
        if twice := [name for name, n in Counter(m.filename for m in members).items() if n > 1]:
            raise UnknownFileError(f"{path}: holds {', '.join(twice)} twice")
        self.names = frozenset(self._views)

    @staticmethod
    def _view(mapped: memoryview, member: zipfile.ZipInfo) -> memoryview:
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise ValueError(f"{member.filename} is compressed or encrypted; make the zip with iq.bundle.pack")
        # A local header is 30 bytes, its last two fields the lengths of the name and the extra field that follow it.
        signature, name_length, extra_length = struct.unpack_from("<4s22xHH", mapped, member.header_offset)
        start = member.header_offset + 30 + name_length + extra_length
        if signature != b"PK\x03\x04" or start + member.file_size > len(mapped):
            raise ValueError(f"{member.filename} lies outside the file")
        if start % ALIGNMENT:
            raise ValueError(f"{member.filename} is not on a {ALIGNMENT}-byte boundary; make the zip with iq.bundle.pack")
        return mapped[start : start + member.file_size]

    def data(self, name: str) -> memoryview:
        return self._views[name]

    def source(self, name: str) -> memoryview:
        return self._views[name]


def files_at(path: Path) -> Files:
    if path.is_dir():
        return Directory(path)
    if path.is_file():
        return Zip(path)
    raise ManifestError(f"{path}: no such bundle, neither a directory nor a zip")
