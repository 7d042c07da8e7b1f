"""What hosts without Python and IREE take from a bundle: the code objects as files, and how their kernels are launched."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec

from iq.atomic import replacing
from iq.bundle import header
from iq.bundle.launches import Launches
from iq.bundle.manifest import Kernel, file_of
from iq.bundle.reading import Bundle, find
from iq.bundle.vmfb import Vmfb
from iq.errors import BundleError, BytecodeError, NoKernelError
from iq.formats import format_of
from iq.kernels import KernelSpec

TABLE = "launch.json"

# How a file of code is called, by the API that loads it.
_SUFFIXES = {"hip": ".hsaco", "cuda": ".ptx"}


class ExtractedFile(msgspec.Struct, frozen=True):
    """A file beside the table: name, size in bytes, sha256 in hex."""

    name: str
    size: int
    sha256: str


class ExtractedKernel(msgspec.Struct, frozen=True):
    """A kernel: its key, the file with its code, and its launches."""

    key: str
    file: str
    launches: Launches


class LaunchTable(msgspec.Struct, frozen=True):
    """launch.json. target: the canonical id. api: what loads the code, "hip" or "cuda". files: what lies beside it, the header included."""

    target: str
    api: str
    files: tuple[ExtractedFile, ...]
    kernels: tuple[ExtractedKernel, ...]

    def encode(self) -> bytes:
        """The JSON text: the same bytes for the same table."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"


def extract(path: str | Path, out: str | Path, formats: str | None = None, pattern: str = "*") -> list[tuple[Path, LaunchTable]]:
    """Write the code and the launches of the bundle at `path` to the folder `out`, or of several bundles to a folder each in it.

    formats: comma-separated, all by default. pattern: which keys, as a shell would match them.
    A folder holds for each format `<format>.hsaco`, an ELF for hipModuleLoadData, or `<format>.ptx`; launch.json; and iq_kernels.h for
    hosts in C. It appears whole or not at all, in the place of one that was extracted before. The same bundle gives the same bytes.
    Bundles for CPUs are passed over where there are others.
    Returns each folder with what its launch.json says. Raises what Bundle.open raises, FormatError for an unknown format, NoKernelError
    where nothing matches, BundleError for a CPU's bundle and when something else is in the way.
    """
    names = {format_of(name.strip()).name for name in formats.split(",")} if formats else None
    bundles = [Bundle.open(found) for found in find(path)]
    for_gpus = [bundle for bundle in bundles if bundle.target.family != "cpu"]
    if not for_gpus:
        raise BundleError(
            f"{path}: holds kernels for CPUs only, which are functions that IREE's runtime calls: load the vmfb with it. "
            "Kernels for GPUs can be extracted: `iq compile --target rocm`, or cuda"
        )
    found = [(bundle, _chosen(bundle, names, pattern)) for bundle in for_gpus]
    wanted = [(bundle, kernels) for bundle, kernels in found if kernels]
    if not wanted:
        of = f" of {', '.join(sorted(names))}" if names else ""
        raise NoKernelError(f"{path}: no kernel{of} matches {pattern!r}; `iq ls {path} --kernels` lists the keys")
    out = Path(out)
    # Where one bundle of several has what is wanted, its folder is still called by its target.
    folders = [out / bundle.manifest.target.replace(":", "_") if len(bundles) > 1 else out for bundle, _ in wanted]
    if twice := next((folder for folder in folders if folders.count(folder) > 1), None):
        raise BundleError(f"{path}: holds two bundles that would be extracted to {twice}: name one of them")
    return [(folder, _write(bundle, kernels, folder)) for folder, (bundle, kernels) in zip(folders, wanted, strict=True)]


def _chosen(bundle: Bundle, formats: set[str] | None, pattern: str) -> list[Kernel]:
    kernels = [k for k in bundle.manifest.kernels if fnmatchcase(k.key, pattern)]
    return [k for k in kernels if formats is None or KernelSpec.read(k.key).format in formats]


def _write(bundle: Bundle, kernels: Sequence[Kernel], folder: Path) -> LaunchTable:
    """Write one bundle's kernels, which are at least one."""
    if folder.exists() and not (folder / TABLE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise BundleError(f"{folder} holds other things than an extracted bundle: not replaced")
    contents: dict[str, bytes] = {}
    placed, apis = [], set()
    for format in sorted({KernelSpec.read(k.key).format for k in kernels}):
        module = bundle.module(format)
        code = Vmfb.parse(module.vmfb).executable
        if code is None or len(code.images) != 1:
            raise BytecodeError(f"{module.where}: one code object is expected in it, there are {len(code.images) if code else 0}")
        name = f"{format}{_SUFFIXES[code.api]}"
        apis.add(code.api)
        contents[name] = code.images[0].removesuffix(b"\0")  # which a FlatBuffer puts behind a string
        for kernel in kernels:
            if kernel.file == file_of(format):
                kernel.launches.check(code)
                placed.append((kernel.key, name, kernel.launches))
    if len(placed) < len(kernels) or len(apis) != 1:
        raise BytecodeError(
            f"{bundle.path}: the kernels are not in the files of their formats, or for several APIs: made by another version of iq"
        )
    placed.sort(key=lambda p: p[0])
    target, api = bundle.manifest.target, apis.pop()
    contents[header.NAME] = header.header(target, api, placed).encode()
    files = tuple(ExtractedFile(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in sorted(contents.items()))
    table = LaunchTable(target, api, files, tuple(ExtractedKernel(*p) for p in placed))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder) as new:
        new.mkdir()
        for name, data in {**contents, TABLE: table.encode()}.items():
            (new / name).write_bytes(data)
    return table
