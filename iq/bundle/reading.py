"""One bundle, opened and checked; and where the bundles lie."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from pathlib import Path

from iq.bundle import codeobject
from iq.bundle.files import Files, files_at
from iq.bundle.manifest import MANIFEST, File, Manifest, file_of
from iq.bundle.module import Module
from iq.bundle.vmfb import BytecodeVersion, Vmfb
from iq.errors import AlteredFileError, BytecodeError, ManifestError, MissingFileError, NoKernelError, UnknownFileError
from iq.targets import TARGETS, Target

# What iree-base-runtime 3.13 loads (tests/test_bundle.py compares it with what the compiler writes).
BYTECODE = BytecodeVersion(17, 0)


def read_manifest(path: str | Path) -> Manifest:
    """The manifest of the bundle at `path`; its files are not checked. Raises ManifestError."""
    return _manifest(files_at(Path(path)), Path(path))


def _manifest(files: Files, path: Path) -> Manifest:
    if MANIFEST not in files.names:
        raise ManifestError(f"{path}: no {MANIFEST} in it: not a bundle")
    try:
        data = files.data(MANIFEST)
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path}: {MANIFEST} cannot be read: {error}") from error
    return Manifest.parse(data, path)


class Bundle:
    """One target's bundle, checked: every file is listed, is there, and has the size and sha256 of the manifest.

    path: the directory or zip. manifest: what it says.
    """

    def __init__(self, path: Path, manifest: Manifest, files: Files) -> None:
        self.path = path
        self.manifest = manifest
        self._files = files

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Open and check a bundle, before anything of it is loaded.

        Raises ManifestError, BytecodeError, MissingFileError, UnknownFileError or AlteredFileError.
        """
        path = Path(path)
        files = files_at(path)
        manifest = _manifest(files, path)
        target = TARGETS.get(manifest.device_id.processor)
        if target is None:
            raise ManifestError(f"{path}: compiled for {manifest.target}, which this version of iq does not know (`iq targets`)")
        if manifest.executable_format != target.executable_format:
            raise BytecodeError(f"{path}: holds {manifest.executable_format!r} code, but {target.id} runs {target.executable_format!r}")
        _check_bytecode(manifest.bytecode, path)
        listed = {f.name for f in manifest.files}
        if missing := sorted(listed - files.names):
            raise MissingFileError(f"{path}: lacks {', '.join(missing)}, which {MANIFEST} lists")
        if unknown := sorted(files.names - listed - {MANIFEST}):
            raise UnknownFileError(f"{path}: holds {', '.join(unknown)}, which {MANIFEST} does not list")
        for file in manifest.files:
            _checked(files, file, path)
        return cls(path, manifest, files)

    @property
    def target(self) -> Target:
        """The target it was compiled for; its id includes the features that the artifact pins."""
        return dataclasses.replace(TARGETS[self.manifest.device_id.processor], id=self.manifest.target)

    def module(self, format: str) -> Module:
        """A format's kernels. Raises NoKernelError if there are none, and what `data` raises."""
        if format not in self.manifest.formats:
            raise NoKernelError(f"{self.path}: no kernels of {format}; it has those of {', '.join(self.manifest.formats) or 'no format'}")
        name = file_of(format)
        launches = {kernel.key: kernel.launches for kernel in self.manifest.kernels if kernel.file == name}
        if not launches:
            raise NoKernelError(f"{self.path}: the kernels of {format} are not in {name}: made by another version of iq")
        return Module(f"{self.path}/{name}", self.data(name), launches)

    def data(self, file: str) -> bytes:
        """The bytes of a listed file, read anew and checked again: what was on the disk when the bundle was opened may have changed.

        Raises KeyError for another file, MissingFileError or AlteredFileError.
        """
        return _checked(self._files, {f.name: f for f in self.manifest.files}[file], self.path)

    def verify(self) -> None:
        """Check what is inside the files as well: that they are what the manifest says of them. Raises BytecodeError or NoKernelError.

        A runtime need not do this: the digests bind the files to the manifest.
        """
        for file in self.manifest.files:
            vmfb = Vmfb.parse(self.data(file.name))
            where = f"{self.path}/{file.name}"
            if str(vmfb.bytecode) != self.manifest.bytecode:
                raise BytecodeError(f"{where}: holds bytecode {vmfb.bytecode}, {MANIFEST} says {self.manifest.bytecode}")
            if lacking := sorted({k.entry for k in self.manifest.kernels if k.file == file.name} - set(vmfb.functions)):
                raise NoKernelError(f"{where}: has no function {', '.join(lacking)}, which {MANIFEST} lists")
            for name in vmfb.executables:
                if self.manifest.executable_format.replace("-", "_") not in name:
                    raise BytecodeError(f"{where}: holds {name}, {MANIFEST} says {self.manifest.executable_format}")
            if self.target.family != "cpu":
                self._verify_code(vmfb, file.name, where)

    def _verify_code(self, vmfb: Vmfb, file: str, where: str) -> None:
        code = vmfb.executable
        if code is None:
            raise BytecodeError(f"{where}: holds no code for a GPU, {MANIFEST} says {self.manifest.target}")
        for image in code.images if code.api == "hip" else ():
            if (found := codeobject.device_id(image)) != self.manifest.device_id:
                raise BytecodeError(f"{where}: holds code for {found}, {MANIFEST} says {self.manifest.target}")
        for kernel in self.manifest.kernels:
            try:
                if kernel.file == file:
                    kernel.launches.check(code)
            except BytecodeError as error:
                raise BytecodeError(f"{where}: {kernel.key} is not launched as {MANIFEST} says: {error}") from error


def _checked(files: Files, file: File, path: Path) -> bytes:
    """The bytes of a file, which are those that the manifest lists."""
    try:
        data = files.data(file.name)
    except OSError as error:
        raise MissingFileError(f"{path}: {file.name} cannot be read: {error}") from error
    except ValueError as error:
        raise AlteredFileError(f"{path}: {file.name} cannot be read: {error}") from error
    if len(data) != file.size:
        raise AlteredFileError(f"{path}: {file.name} has {len(data)} bytes, {MANIFEST} says {file.size}")
    if (found := hashlib.sha256(data).hexdigest()) != file.sha256:
        raise AlteredFileError(f"{path}: {file.name} has sha256 {found}, {MANIFEST} says {file.sha256}")
    return data


def _check_bytecode(version: str, path: Path) -> None:
    parts = re.fullmatch(r"([0-9]{1,9})\.([0-9]{1,9})", version)
    if not parts or int(parts[1]) != BYTECODE.major or int(parts[2]) > BYTECODE.minor:
        raise BytecodeError(f"{path}: holds bytecode {version}; the runtime loads {BYTECODE.major}.0 to {BYTECODE}. Compile it again")


def find(path: str | Path) -> list[Path]:
    """The bundles at `path`: itself where it is one, else those lying in it (directories with a manifest, and zips), sorted.

    Raises ManifestError when there are none.
    """
    path = Path(path)
    if path.is_file() or (path / MANIFEST).is_file():
        return [path]
    # A name with a leading dot is a bundle still being written.
    entries = sorted(p for p in path.iterdir() if not p.name.startswith(".")) if path.is_dir() else []
    bundles = [p for p in entries if p.suffix == ".zip" or (p / MANIFEST).is_file()]
    if not bundles:
        raise ManifestError(f"{path}: no bundle there: no {MANIFEST}, no zip, no directory with one (`iq compile` makes them)")
    return bundles
