"""manifest.json of a bundle: what it says, and reading it strictly."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec

from iq.bundle.launches import Launches
from iq.errors import KernelKeyError, ManifestError, TargetError
from iq.kernels import KernelSpec
from iq.targets import DeviceId

SCHEMA = 2
MANIFEST = "manifest.json"

# Names that cannot leave the bundle's directory, whatever joins them to it.
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def file_of(format: str) -> str:
    """The name of the file with a format's kernels."""
    return f"{format}.vmfb"


class Compiler(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The compiler that made a bundle: version, git revision and flags."""

    version: str
    revision: str
    flags: tuple[str, ...]


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A vmfb of the bundle: name, size in bytes, sha256 in hex."""

    name: str
    size: int
    sha256: str


class Kernel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A kernel of the bundle: its key, the function to call through IREE, the file that holds it, and how to launch it without IREE."""

    key: str
    entry: str
    file: str
    launches: Launches


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a bundle holds and how it was made.

    schema: the version of this structure. target: the canonical id ("gfx942", "gfx942:sramecc+:xnack-"). executable_format: IREE's name
    for the device code. bytecode: version of the vmfbs' bytecode ("17.0"). templates: sha256 over the sources of the kernels.
    """

    schema: int
    target: str
    executable_format: str
    bytecode: str
    compiler: Compiler
    templates: str
    files: tuple[File, ...]
    kernels: tuple[Kernel, ...]

    @property
    def device_id(self) -> DeviceId:
        return DeviceId.parse(self.target)

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats it has kernels of, sorted."""
        return tuple(sorted({KernelSpec.read(k.key).format for k in self.kernels}))

    def encode(self) -> bytes:
        """The JSON text, a line for each kernel: the same bytes for the same manifest."""
        *head, last = msgspec.json.format(msgspec.json.encode(msgspec.structs.replace(self, kernels=())), indent=1).splitlines()
        kernels = b",\n".join(b"  " + msgspec.json.encode(kernel) for kernel in self.kernels)
        assert head[-1] == b' "kernels": []'
        return b"\n".join([*head[:-1], b' "kernels": [', kernels, b" ]", last, b""])

    @classmethod
    def parse(cls, data: bytes, where: Path) -> Manifest:
        """The inverse of `encode`. Raises ManifestError, naming `where` the bundle lies, for anything but a sound manifest."""
        try:
            # The schema number first: another schema may have other fields.
            schema = msgspec.json.decode(data, type=_Schema).schema
            if schema != SCHEMA:
                older = "made by an older version of iq, before manifests told how kernels are launched" if schema == 1 else "not known"
                raise ManifestError(f"{where}: manifest schema {schema}, {older}; this version reads {SCHEMA}. Compile the bundle again")
            manifest = msgspec.json.decode(data, type=cls)
            _ = manifest.device_id
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TargetError) as error:
            raise ManifestError(f"{where}: {MANIFEST} cannot be read: {error}") from error
        if problem := next(manifest._problems(), None):
            raise ManifestError(f"{where}: {MANIFEST} {problem}")
        return manifest

    def _problems(self) -> Iterator[str]:
        names = {f.name for f in self.files}
        for file in self.files:
            if not _FILE_NAME.fullmatch(file.name) or file.name == MANIFEST:
                yield f"lists {file.name!r}, which is not a plain file name"
            if file.size < 0 or not _SHA256.fullmatch(file.sha256):
                yield f"has a malformed size or sha256 of {file.name}"
        for name, n in Counter([*(f.name for f in self.files), *(k.key for k in self.kernels)]).items():
            if n > 1:
                yield f"lists {name} {n} times"
        for kernel in self.kernels:
            if kernel.file not in names:
                yield f"has {kernel.key} in {kernel.file!r}, a file it does not list"
            try:
                KernelSpec.read(kernel.key)
            except KernelKeyError as error:
                yield f"lists a kernel that cannot be: {error}"
            for problem in kernel.launches.problems():
                yield f"says of {kernel.key} that it {problem}"


class _Schema(msgspec.Struct):
    """As much of a manifest as every schema has."""

    schema: int
