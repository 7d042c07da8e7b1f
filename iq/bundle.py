"""A bundle on disk: one target's vmfbs and a manifest with their digests, in a directory or in one STORED zip that can be mapped.

`write` makes a bundle, `Bundle.open` checks one, `Bundles` finds the one that a device may run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import mmap
import re
import shutil
import stat
import struct
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from iq import codeobject
from iq.errors import (
    AlteredFileError,
    BundleError,
    BytecodeError,
    ManifestError,
    MissingFileError,
    NoArtifactError,
    NoKernelError,
    UnknownFileError,
)
from iq.manifest import MANIFEST, SCHEMA, Compiler, File, Kernel, Manifest
from iq.targets import TARGETS, Accepted, DeviceId, Rejected, Target, match
from iq.vmfb import BytecodeVersion, Vmfb

# What iree-base-runtime 3.13 loads (tests/test_bundle.py compares it with what the compiler writes).
BYTECODE = BytecodeVersion(17, 0)

# IREE uses constants and executables where they are mapped, and wants them on this boundary.
ALIGNMENT = 64

# Header id of the zip extra field that only pads (as Android's zipalign does).
_PADDING_FIELD = 0xD935


def file_of(format: str) -> str:
    """The name of the file with a format's kernels."""
    return f"{format}.vmfb"


class _Files(Protocol):
    """The files of a bundle, however they are stored."""

    @property
    def names(self) -> frozenset[str]: ...

    def data(self, name: str) -> bytes | memoryview: ...

    def source(self, name: str) -> Path | memoryview: ...


class _Directory:
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


class _Zip:
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


def _files(path: Path) -> _Files:
    if path.is_dir():
        return _Directory(path)
    if path.is_file():
        return _Zip(path)
    raise ManifestError(f"{path}: no such bundle, neither a directory nor a zip")


def read_manifest(path: str | Path) -> Manifest:
    """The manifest of the bundle at `path`; its files are not checked. Raises ManifestError."""
    return _manifest(_files(Path(path)), Path(path))


def _manifest(files: _Files, path: Path) -> Manifest:
    if MANIFEST not in files.names:
        raise ManifestError(f"{path}: no {MANIFEST} in it: not a bundle")
    return Manifest.parse(bytes(files.data(MANIFEST)), path)


class Bundle:
    """One target's bundle, checked: every file is listed, is there, and has the size and sha256 of the manifest.

    path: the directory or zip. manifest: what it says.
    """

    def __init__(self, path: Path, manifest: Manifest, files: _Files) -> None:
        self.path = path
        self.manifest = manifest
        self._files = files

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Open and check a bundle, before anything of it is loaded.

        Raises ManifestError, BytecodeError, MissingFileError, UnknownFileError or AlteredFileError.
        """
        path = Path(path)
        files = _files(path)
        manifest = _manifest(files, path)
        target = TARGETS.get(manifest.device_id.processor)
        if target is None:
            raise ManifestError(f"{path}: compiled for {manifest.target}; this version of iq knows {', '.join(TARGETS)}")
        if manifest.executable_format != target.executable_format:
            raise BytecodeError(f"{path}: holds {manifest.executable_format!r} code, but {target.id} runs {target.executable_format!r}")
        _check_bytecode(manifest.bytecode, path)
        listed = {f.name for f in manifest.files}
        if missing := sorted(listed - files.names):
            raise MissingFileError(f"{path}: lacks {', '.join(missing)}, which {MANIFEST} lists")
        if unknown := sorted(files.names - listed - {MANIFEST}):
            raise UnknownFileError(f"{path}: holds {', '.join(unknown)}, which {MANIFEST} does not list")
        for file in manifest.files:
            try:
                data = files.data(file.name)
            except OSError as error:
                raise MissingFileError(f"{path}: {file.name} cannot be read: {error}") from error
            if len(data) != file.size:
                raise AlteredFileError(f"{path}: {file.name} has {len(data)} bytes, {MANIFEST} says {file.size}")
            if (found := hashlib.sha256(data).hexdigest()) != file.sha256:
                raise AlteredFileError(f"{path}: {file.name} has sha256 {found}, {MANIFEST} says {file.sha256}")
        return cls(path, manifest, files)

    @property
    def target(self) -> Target:
        """The target it was compiled for; its id includes the features that the artifact pins."""
        return dataclasses.replace(TARGETS[self.manifest.device_id.processor], id=self.manifest.target)

    def module(self, format: str) -> Path | memoryview:
        """The vmfb with a format's kernels: its path, or in a zip a view of the mapped file. Raises NoKernelError if there is none."""
        if format not in self.manifest.formats:
            raise NoKernelError(f"{self.path}: no kernels of {format}; it has those of {', '.join(self.manifest.formats) or 'no format'}")
        return self._files.source(file_of(format))

    def data(self, file: str) -> bytes | memoryview:
        """The bytes of a listed file."""
        return self._files.data(file)

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
            for name, executable in vmfb.executables.items():
                if self.manifest.executable_format.replace("-", "_") not in name:
                    raise BytecodeError(f"{where}: holds {name}, {MANIFEST} says {self.manifest.executable_format}")
                for elf in codeobject.find(executable):
                    if (found := codeobject.device_id(elf)) != self.manifest.device_id:
                        raise BytecodeError(f"{where}: holds code for {found}, {MANIFEST} says {self.manifest.target}")


def _check_bytecode(version: str, path: Path) -> None:
    parts = re.fullmatch(r"(\d+)\.(\d+)", version)
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


def best_match(artifacts: Iterable[str], device_id: DeviceId, cpu_flags: frozenset[str], none_of_them: str) -> str:
    """The id of the artifact that fits a device best (see iq.targets.match).

    Raises NoArtifactError where none does: `none_of_them` ("no artifact of ...") runs on it, and why not, one by one.
    """
    verdicts = {artifact: match(DeviceId.parse(artifact), device_id, cpu_flags) for artifact in artifacts}
    accepted = [(verdict.rank, artifact) for artifact, verdict in verdicts.items() if isinstance(verdict, Accepted)]
    if not accepted:
        reasons = [f"\n  {artifact}: {verdict.reason}" for artifact, verdict in verdicts.items() if isinstance(verdict, Rejected)]
        raise NoArtifactError(f"{none_of_them} runs on {device_id}:{''.join(reasons)}\n`iq targets` lists what `iq compile` can make")
    return min(accepted)[1]


class Bundles:
    """The bundles at a path, one for each target: where the runtime gets its kernels from."""

    def __init__(self, path: str | Path) -> None:
        """Find the bundles: a directory of them, one bundle's directory, or a zip. Only manifests are read.

        Raises ManifestError, or BundleError when two bundles are for the same target.
        """
        self.path = Path(path)
        self._paths: dict[str, Path] = {}
        self._opened: dict[str, Bundle] = {}
        for found in find(self.path):
            target = read_manifest(found).target
            if target in self._paths:
                raise BundleError(f"{self._paths[target]} and {found} are both for {target}: remove one")
            self._paths[target] = found

    def target(self, device_id: DeviceId, cpu_flags: frozenset[str] = frozenset()) -> Target:
        """The target whose artifacts fit the device best: pinned to its features, else for any; its bundle is checked now.

        Raises NoArtifactError with what there is and why each was rejected, and what Bundle.open raises.
        """
        return self._bundle(best_match(self._paths, device_id, cpu_flags, f"no artifact of {self.path}")).target

    def module(self, target: Target, format: str) -> Path | memoryview:
        """The vmfb with a format's kernels for a target that `target()` returned. Raises NoKernelError where the bundle has none."""
        return self._bundle(target.id).module(format)

    def _bundle(self, target: str) -> Bundle:
        if target not in self._paths:
            raise NoArtifactError(f"{self.path} holds no artifact for {target}; it has {', '.join(self._paths)}")
        if target not in self._opened:
            self._opened[target] = Bundle.open(self._paths[target])
        return self._opened[target]


@dataclass(frozen=True)
class Module:
    """A format's vmfb, to be written into a bundle: the file, and the keys of the kernels it holds."""

    format: str
    vmfb: Path
    keys: tuple[str, ...]


def write(path: str | Path, target: DeviceId, modules: Iterable[Module], compiler: Compiler, templates: str) -> Manifest:
    """Write a bundle at `path`: a zip if that ends in ".zip", else a directory. The same input gives the same bytes.

    Built beside `path` and renamed into place, over the bundle that is there; a failure or an interrupt leaves that one as it was.
    Where the target's bundle also lies there in the other form, that one is removed.
    Raises BundleError when something else than a bundle is in the way, or when a vmfb lacks a kernel.
    """
    path = Path(path)
    other = path.with_suffix("" if path.suffix == ".zip" else ".zip")
    if path.is_dir() and not (path / MANIFEST).is_file() and any(path.iterdir()):
        raise BundleError(f"{path} is a directory with other things than a bundle in it: not replaced")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".iq-", dir=path.parent) as temporary:
        new = Path(temporary) / path.stem
        new.mkdir()
        manifest = _fill(new, target, sorted(modules, key=lambda m: m.format), compiler, templates)
        if path.suffix == ".zip":
            new = pack(new, new.with_suffix(".zip"))
        _rename(new, path, aside=Path(temporary) / "replaced")
    if other.is_dir() and (other / MANIFEST).is_file():
        shutil.rmtree(other)
    elif other.is_file() and other.suffix == ".zip":
        other.unlink()
    return manifest


def _fill(directory: Path, target: DeviceId, modules: list[Module], compiler: Compiler, templates: str) -> Manifest:
    """Write the files of a bundle."""
    files, kernels, versions = [], [], set()
    for module in modules:
        data = module.vmfb.read_bytes()
        vmfb = Vmfb.parse(data)
        if lacking := sorted(set(module.keys) - set(vmfb.functions)):
            raise BundleError(f"{module.vmfb} has no function {', '.join(lacking)}")
        name = file_of(module.format)
        (directory / name).write_bytes(data)
        files.append(File(name, len(data), hashlib.sha256(data).hexdigest()))
        kernels += [Kernel(key, key, name) for key in module.keys]
        versions.add(str(vmfb.bytecode))
    if len(versions) != 1:
        raise BundleError(f"a bundle holds one version of bytecode, not {', '.join(sorted(versions)) or 'none: no modules'}")
    manifest = Manifest(
        schema=SCHEMA,
        target=str(target),
        executable_format=TARGETS[target.processor].executable_format,
        bytecode=versions.pop(),
        compiler=compiler,
        templates=templates,
        files=tuple(files),
        kernels=tuple(sorted(kernels, key=lambda k: k.key)),
    )
    (directory / MANIFEST).write_bytes(manifest.encode())
    return manifest


def _rename(new: Path, path: Path, aside: Path) -> None:
    """Put `new` in the place of `path`, which goes `aside`, or comes back when that fails. (A directory cannot be renamed over another.)"""
    try:
        if path.exists():
            path.rename(aside)
        new.rename(path)
    except BaseException:
        if aside.exists() and not path.exists():
            aside.rename(path)
        raise


def pack(directory: str | Path, zip_path: str | Path) -> Path:
    """Pack a bundle's directory as a STORED zip, each file on a 64-byte boundary so that it can be mapped. Returns `zip_path`.

    The same directory gives the same bytes. Raises what Bundle.open raises.
    """
    zip_path = Path(zip_path)
    bundle = Bundle.open(directory)
    with tempfile.TemporaryDirectory(prefix=".iq-", dir=zip_path.parent) as temporary:
        new = Path(temporary) / zip_path.name
        with zipfile.ZipFile(new, "w", zipfile.ZIP_STORED) as archive:
            for name in [MANIFEST, *(f.name for f in bundle.manifest.files)]:
                member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
                member.create_system, member.external_attr = 3, 0o644 << 16
                # The header is 30 bytes, the name, and an extra field of 4 bytes and the padding itself.
                padding = -(archive.start_dir + 30 + len(name) + 4) % ALIGNMENT
                member.extra = struct.pack(f"<HH{padding}x", _PADDING_FIELD, padding)
                archive.writestr(member, bundle.data(name))
        new.replace(zip_path)
    return zip_path
