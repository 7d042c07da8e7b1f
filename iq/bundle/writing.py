"""Bundles written: a directory, or the same packed as one zip."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from iq.atomic import replacing
from iq.bundle.launches import launches_of
from iq.bundle.manifest import MANIFEST, SCHEMA, Compiler, File, Kernel, Manifest, file_of
from iq.bundle.reading import Bundle
from iq.bundle.vmfb import Vmfb
from iq.errors import BundleError
from iq.kernels import KernelSpec
from iq.targets import TARGETS, DeviceId


@dataclass(frozen=True)
class Compiled:
    """A format's vmfb, to be written into a bundle: the file, and the keys of the kernels it holds."""

    format: str
    vmfb: Path
    keys: tuple[str, ...]


def write(path: str | Path, target: DeviceId, modules: Iterable[Compiled], compiler: Compiler, templates: str) -> Manifest:
    """Write a bundle at `path`: a zip if that ends in ".zip", else a directory. The same input gives the same bytes.

    Built beside `path` and renamed into place, over the bundle that is there; a failure or an interrupt leaves that one as it was.
    Where the target's bundle also lies there in the other form, that one is removed.
    Raises BundleError when something else than a bundle is in the way, or when a vmfb lacks a kernel.
    """
    path = Path(path)
    other = path.with_suffix("" if path.suffix == ".zip" else ".zip")
    if path.is_dir() and not (path / MANIFEST).is_file() and any(path.iterdir()):
        raise BundleError(f"{path} is a directory with other things than a bundle in it: not replaced")
    if path.is_file() and path.suffix != ".zip":
        raise BundleError(f"{path} is a file, not a bundle: not replaced")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as new:
        directory = new.with_suffix("") if path.suffix == ".zip" else new
        directory.mkdir()
        manifest = _fill(directory, target, sorted(modules, key=lambda m: m.format), compiler, templates)
        if path.suffix == ".zip":
            pack(directory, new)
    if other.is_dir() and (other / MANIFEST).is_file():
        shutil.rmtree(other)
    elif other.is_file() and other.suffix == ".zip":
        other.unlink()
    return manifest


def _fill(directory: Path, target: DeviceId, modules: list[Compiled], compiler: Compiler, templates: str) -> Manifest:
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
        code = vmfb.executable
        kernels += [Kernel(key, key, name, launches_of(KernelSpec.parse(key), TARGETS[target.processor], code)) for key in module.keys]
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


def pack(directory: str | Path, zip_path: str | Path) -> Path:
    """Pack a bundle's directory as a STORED zip. Returns `zip_path`.

    The same directory gives the same bytes. Raises what Bundle.open raises.
    """
    zip_path = Path(zip_path)
    bundle = Bundle.open(directory)
    with replacing(zip_path) as new, zipfile.ZipFile(new, "w", zipfile.ZIP_STORED) as archive:
        for name, data in [(MANIFEST, bundle.manifest.encode()), *((f.name, bundle.data(f.name)) for f in bundle.manifest.files)]:
            member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            member.create_system, member.external_attr = 3, 0o644 << 16
            archive.writestr(member, data)
    return zip_path
