"""Bundles on disk: what is refused, and which one a device gets."""

import hashlib
import json
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from iree.runtime import VmInstance, VmModule

from iq import bundle as bundles
from iq.bundle import BYTECODE, Bundle, Bundles, Compiled, pack, write
from iq.bundle.manifest import MANIFEST, Compiler, Manifest
from iq.bundle.vmfb import BytecodeVersion, Vmfb
from iq.compile import bundle as compile_bundle
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
from iq.kernels import KernelSpec
from iq.targets import TARGETS, DeviceId

FILE = "q8_1.vmfb"
Q8_1 = KernelSpec.parse("quantize_q8_1.q8_1.f32")
KEYS = {"quantize_q8_1.q8_1.f32", "quantize_q8_1_soa.q8_1.f32"}


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory, environment: Path) -> Path:
    """An artifacts directory, not to be changed."""
    out = tmp_path_factory.mktemp("bundles") / "artifacts"
    compile_bundle(["gfx1100", "x86-64-v3"], "q8_1", out=out)
    return out


@pytest.fixture
def artifacts(compiled: Path, tmp_path: Path) -> Path:
    return shutil.copytree(compiled, tmp_path / "artifacts")


@pytest.fixture
def bundle(artifacts: Path) -> Path:
    """The directory of one bundle."""
    return artifacts / "gfx1100"


def edit(bundle: Path, **changes: Any) -> None:
    """Change fields of a bundle's manifest."""
    path = bundle / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def kernel(key: str, file: str = FILE, **changes: Any) -> dict[str, Any]:
    """A kernel as a manifest lists it."""
    tensor = {"name": "x", "dtype": "f32", "dims": ["m"]}
    dispatch = {"function": "f", "buffers": ["x"], "sizes": ["m"], "grid": [{"size": "m", "tile": 1}], "block": [256, 1, 1], "shared": 0}
    launches = {"inputs": [tensor], "sizes": ["m"], "outputs": [], "derived": [], "scratch": [], "dispatches": [dispatch]}
    return {"key": key, "entry": key, "file": file, "launches": launches | changes}


def test_open(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    opened.verify()
    assert opened.target == TARGETS["gfx1100"]
    assert {k.key for k in opened.manifest.kernels} == KEYS
    module = opened.module("q8_1")
    assert module.vmfb == (bundle / FILE).read_bytes()
    assert module.launches == {k.key: k.launches for k in opened.manifest.kernels}
    assert module.where == f"{bundle}/{FILE}"
    with pytest.raises(NoKernelError, match="no kernels of q4_k; it has those of q8_1"):
        opened.module("q4_k")


def test_manifest(bundle: Path) -> None:
    manifest = bundles.read_manifest(bundle)
    assert (manifest.schema, manifest.target, manifest.executable_format, manifest.bytecode) == (2, "gfx1100", "rocm-hsaco-fb", "17.0")
    assert manifest.compiler.version.startswith("3.13.")
    assert len(manifest.compiler.revision) == 40
    assert len(manifest.templates) == 64
    assert [f.name for f in manifest.files] == [FILE]
    assert (bundle / MANIFEST).read_bytes() == manifest.encode()
    assert Manifest.parse(manifest.encode(), bundle) == manifest


def test_the_bytecode_is_what_the_compiler_writes_and_the_runtime_loads(bundle: Path) -> None:
    data = (bundle / FILE).read_bytes()
    vmfb = Vmfb.parse(data)
    assert vmfb.bytecode == BYTECODE
    loaded = VmModule.copy_buffer(VmInstance(), data)
    assert set(vmfb.functions) == KEYS
    assert set(loaded.function_names) == KEYS | {"__init"}


# ---- Refusals


def flipped(at: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flipped(0), "has sha256"),
        (flipped(1000), "has sha256"),
        (flipped(-2), "has sha256"),
        (lambda data: data[:-1], r"has \d+ bytes"),
        (lambda data: data + b"\0", r"has \d+ bytes"),
        (lambda data: b"", "has 0 bytes"),
    ],
)
def test_altered_file(bundle: Path, change: Callable[[bytes], bytes], message: str) -> None:
    (bundle / FILE).write_bytes(change((bundle / FILE).read_bytes()))
    with pytest.raises(AlteredFileError, match=f"{FILE} {message}"):
        Bundle.open(bundle)


def test_missing_file(bundle: Path) -> None:
    (bundle / FILE).unlink()
    with pytest.raises(MissingFileError, match=FILE):
        Bundle.open(bundle)


def test_directory_in_the_place_of_a_file(bundle: Path) -> None:
    (bundle / FILE).unlink()
    (bundle / FILE).mkdir()
    with pytest.raises(MissingFileError, match="not a regular file"):
        Bundle.open(bundle)


@pytest.mark.parametrize("name", ["other.vmfb", ".hidden", "directory/file"])
def test_unknown_file(bundle: Path, name: str) -> None:
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).write_bytes(b"")
    with pytest.raises(UnknownFileError, match=name.split("/")[0]):
        Bundle.open(bundle)


@pytest.mark.parametrize("name", ["../q8_1.vmfb", "/etc/passwd", "a/b", "..", ".", "", ".hidden", MANIFEST, "a\0b", "a\nb", "C:\\x"])
def test_file_names_that_are_no_plain_names(bundle: Path, name: str) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    edit(bundle, files=[manifest["files"][0] | {"name": name}], kernels=[])
    with pytest.raises(ManifestError, match="not a plain file name"):
        Bundle.open(bundle)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 1}, "schema 1, made by an older version of iq, .*; this version reads 2. Compile the bundle again"),
        ({"schema": 3}, "schema 3, not known; this version reads 2. Compile the bundle again"),
        ({"schema": "2"}, "cannot be read"),
        ({"target": "GFX 1100"}, "cannot parse the target id"),
        ({"target": "gfx9999"}, "gfx9999, which this version of iq does not know"),
        ({"surprise": 1}, "unknown field `surprise`"),
        ({"files": None}, "Expected `array`"),
        ({"files": [{"name": "a.vmfb", "size": 1, "sha256": "zz"}], "kernels": []}, "malformed size or sha256 of a.vmfb"),
        ({"files": [{"name": "a.vmfb", "size": 1, "sha256": "0" * 64}] * 2, "kernels": []}, "lists a.vmfb 2 times"),
        ({"kernels": [kernel("a.b.c", "q4_0.vmfb")]}, "a file it does not list"),
        ({"kernels": [kernel("a")]}, "lists a kernel that cannot be: 'a' names no kernel"),
        ({"kernels": [kernel(f"mul_mat_vec.q4_0.{'9' * 5000}")]}, "lists a kernel that cannot be: .*a number of columns, not for '9{20}'"),
        ({"kernels": [kernel("a.b.c") | {"launches": None}]}, "Expected `object`"),
        ({"kernels": [kernel("dequantize.q8_1.f32", dispatches=[])]}, "says of dequantize.q8_1.f32 that it launches nothing"),
    ],
)
def test_malformed_manifest(bundle: Path, changes: dict[str, Any], message: str) -> None:
    edit(bundle, **changes)
    with pytest.raises(ManifestError, match=message):
        Bundle.open(bundle)


@given(
    st.binary() | st.recursive(st.none() | st.integers() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)).map(json.dumps)
)
def test_anything_else_than_a_manifest_is_refused(text: bytes | str) -> None:
    with pytest.raises(ManifestError):
        Manifest.parse(text.encode() if isinstance(text, str) else text, Path("here"))


def test_no_manifest(bundle: Path, tmp_path: Path) -> None:
    (bundle / MANIFEST).unlink()
    for path in (bundle, tmp_path / "nowhere"):
        with pytest.raises(ManifestError, match=str(path)):
            Bundle.open(path)


@pytest.mark.parametrize("version", ["16.0", "18.0", f"{BYTECODE.major}.{BYTECODE.minor + 1}", "17", "x", "9" * 5000 + ".0"])
def test_wrong_bytecode(bundle: Path, version: str) -> None:
    edit(bundle, bytecode=version)
    with pytest.raises(BytecodeError, match=f"bytecode {version}; the runtime loads 17.0 to 17.0"):
        Bundle.open(bundle)


def test_wrong_executable_format(bundle: Path) -> None:
    edit(bundle, executable_format="cuda-nvptx-fb")
    with pytest.raises(BytecodeError, match="holds 'cuda-nvptx-fb' code, but gfx1100 runs 'rocm-hsaco-fb'"):
        Bundle.open(bundle)


def test_verify_looks_inside(bundle: Path) -> None:
    edit(bundle, target="gfx942")
    with pytest.raises(BytecodeError, match=r"holds code for gfx1100, manifest.json says gfx942"):
        Bundle.open(bundle).verify()
    edit(bundle, target="x86-64-v3", executable_format="embedded-elf-x86_64")
    with pytest.raises(BytecodeError, match=r"holds .*_rocm_hsaco_fb"):
        Bundle.open(bundle).verify()
    listed = json.loads((bundle / MANIFEST).read_text())["kernels"]
    edit(bundle, target="gfx1100", executable_format="rocm-hsaco-fb", kernels=[kernel("quantize_q8_1.q8_1.f64")])
    with pytest.raises(NoKernelError, match=r"no function quantize_q8_1\.q8_1\.f64"):
        Bundle.open(bundle).verify()
    listed[1]["launches"]["dispatches"][0]["block"][0] *= 2
    edit(bundle, kernels=listed)
    with pytest.raises(BytecodeError, match=r"quantize_q8_1_soa\.q8_1\.f32 is not launched as manifest.json says: the code has "):
        Bundle.open(bundle).verify()


def test_verify_finds_a_vmfb_without_code(bundle: Path) -> None:
    with zipfile.ZipFile(bundle / FILE) as archive:
        module = archive.read("module.fb")
    with zipfile.ZipFile(bundle / FILE, "w") as archive:
        archive.writestr("module.fb", module)
        archive.writestr("module_rocm_hsaco_fb.fb", b"nothing of IREE's" * 10)
    data = (bundle / FILE).read_bytes()
    edit(bundle, files=[{"name": FILE, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}])
    with pytest.raises(BytecodeError, match=r"holds no code for a GPU, manifest\.json says gfx1100"):
        Bundle.open(bundle).verify()


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"x" * 1000])
def test_bytes_that_are_no_vmfb(data: bytes) -> None:
    with pytest.raises(BytecodeError, match="not a vmfb"):
        Vmfb.parse(data)


def test_a_flatbuffer_that_points_outside_itself(bundle: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(bundle / FILE) as archive:
        module = archive.read("module.fb")
    # The root table's offset, its vtable's, and lengths further on.
    for at in (*range(4, 8), *range(16, 200)):
        damaged = tmp_path / "damaged.vmfb"
        with zipfile.ZipFile(damaged, "w") as archive:
            archive.writestr("module.fb", module[:at] + b"\xff" + module[at + 1 :])
        try:
            vmfb = Vmfb.parse(damaged.read_bytes())
        except BytecodeError:
            continue
        assert isinstance(vmfb.bytecode, BytecodeVersion)


# ---- Zips


def test_zip_holds_the_same(bundle: Path, tmp_path: Path) -> None:
    packed = pack(bundle, tmp_path / "a.zip")
    opened = Bundle.open(packed)
    opened.verify()
    assert opened.manifest == Bundle.open(bundle).manifest
    assert opened.module("q8_1").vmfb == (bundle / FILE).read_bytes()
    with zipfile.ZipFile(packed) as archive:
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.testzip() is None


def test_zip_is_the_same_bytes_again(bundle: Path, tmp_path: Path) -> None:
    assert pack(bundle, tmp_path / "a.zip").read_bytes() == pack(bundle, tmp_path / "b.zip").read_bytes()


@pytest.fixture
def packed(bundle: Path, tmp_path: Path) -> Path:
    return pack(bundle, tmp_path / "bundle.zip")


def test_zip_with_an_altered_byte(packed: Path) -> None:
    data = packed.read_bytes()
    packed.write_bytes(flipped(data.index(b"module.fb") + 1000)(data))
    with pytest.raises(AlteredFileError, match=FILE):
        Bundle.open(packed)


@pytest.mark.parametrize("keep", [0, 10, 1000, -1])
def test_truncated_zip(packed: Path, keep: int) -> None:
    packed.write_bytes(packed.read_bytes()[:keep])
    with pytest.raises(ManifestError, match="not the zip of a bundle"):
        Bundle.open(packed)


def zipped(bundle: Path, names: list[str], compression: int = zipfile.ZIP_STORED) -> Path:
    """A zip of a bundle's files of these names; one that the bundle does not have is empty."""
    path = bundle.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name in names:
            archive.writestr(name, (bundle / name).read_bytes() if (bundle / name).exists() else b"")
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("names", "refusal", "message"),
    [
        ([MANIFEST], MissingFileError, FILE),
        ([FILE], ManifestError, "no manifest"),
        ([MANIFEST, FILE, "x"], UnknownFileError, "holds x"),
        ([MANIFEST, FILE, FILE], UnknownFileError, "twice"),
    ],
)
def test_zip_with_other_files(bundle: Path, names: list[str], refusal: type[BundleError], message: str) -> None:
    with pytest.raises(refusal, match=message):
        Bundle.open(zipped(bundle, names))


def test_zip_that_is_compressed(bundle: Path) -> None:
    Bundle.open(zipped(bundle, [MANIFEST, FILE])).verify()
    with pytest.raises(ManifestError, match="compressed"):
        Bundle.open(zipped(bundle, [MANIFEST, FILE], zipfile.ZIP_DEFLATED))


def test_zip_whose_files_overlap(bundle: Path) -> None:
    """A directory of a zip may name the same bytes a thousand times."""
    path = zipped(bundle, [FILE])
    data = path.read_bytes()
    at, last = data.rindex(b"PK\x01\x02"), data.rindex(b"PK\x05\x06")
    entry, end = data[at:last], data[last:]
    count = 1000
    changed = end[:8] + struct.pack("<HHI", count, count, count * len(entry)) + end[16:]
    path.write_bytes(data[:at] + entry * count + changed)
    with pytest.raises(ManifestError, match="more than its own"):
        Bundle.open(path)
    with pytest.raises(BytecodeError, match="more than its own"):
        Vmfb.parse(path.read_bytes())


# ---- What is handed out is what was checked


@pytest.mark.parametrize("form", ["directory", "zip"])
def test_a_file_that_changes_after_it_was_checked(bundle: Path, tmp_path: Path, form: str) -> None:
    path = bundle if form == "directory" else pack(bundle, tmp_path / "bundle.zip")
    opened, whole = Bundle.open(path), Bundle.open(path).module("q8_1").vmfb
    file = path / FILE if form == "directory" else path
    before = file.read_bytes()
    assert before.count(whole) == 1
    for changed in (flipped(before.index(whole) + 1000)(before), before[:-1], before + b"x", b""):
        file.write_bytes(changed)
        if form == "zip" and changed[:-1] == before:
            continue  # what follows a zip is no part of it
        with pytest.raises(AlteredFileError, match=FILE):
            opened.module("q8_1")
        with pytest.raises(AlteredFileError, match=FILE):
            opened.verify()
    file.unlink()
    with pytest.raises(MissingFileError, match=FILE):
        opened.module("q8_1")
    file.write_bytes(before)
    assert opened.module("q8_1").vmfb == whole


def test_what_was_handed_out_stays_as_it_was(bundle: Path) -> None:
    module = Bundle.open(bundle).module("q8_1")
    before = bytes(bytearray(module.vmfb))
    with (bundle / FILE).open("r+b") as file:
        file.write(b"x" * 5000)
    assert module.vmfb == before


# ---- Which bundle a device gets


AVX2 = TARGETS["x86-64-v3"].cpu_requires
VNNI = TARGETS["x86-64-v4-vnni"].cpu_requires


def variant(artifacts: Path, of: str, target: str) -> None:
    """A copy of a bundle that claims to be for another target of the family. Nothing here runs it."""
    shutil.copytree(artifacts / of, artifacts / target)
    edit(artifacts / target, target=target)


def test_a_directory_of_bundles(artifacts: Path) -> None:
    found = Bundles(artifacts)
    target = found.target(DeviceId.parse("gfx1100"), frozenset())
    assert target.id == "gfx1100"
    assert found.module(target, Q8_1) == Bundle.open(artifacts / "gfx1100").module("q8_1")
    assert found.target(DeviceId("cpu"), AVX2).id == "x86-64-v3"
    with pytest.raises(NoKernelError, match="q6_k"):
        found.module(target, KernelSpec.parse("mul_mat_vec.q6_k.1"))
    with pytest.raises(NoArtifactError, match="no artifact for gfx942; it has gfx1100, x86-64-v3"):
        found.module(TARGETS["gfx942"], Q8_1)


@pytest.mark.parametrize("form", ["directory", "zip", "zips"])
def test_the_other_places_bundles_come_from(artifacts: Path, tmp_path: Path, form: str) -> None:
    path = artifacts / "gfx1100"
    if form == "zip":
        path = pack(path, tmp_path / "any name.zip")
    if form == "zips":
        path = tmp_path / "zips"
        path.mkdir()
        for target in ("gfx1100", "x86-64-v3"):
            pack(artifacts / target, path / f"{target}.zip")
    found = Bundles(path)
    module = found.module(found.target(DeviceId("gfx1100")), Q8_1)
    assert module.vmfb == (artifacts / "gfx1100" / FILE).read_bytes()


def test_pinned_features(artifacts: Path) -> None:
    variant(artifacts, "gfx1100", "gfx90a")
    variant(artifacts, "gfx1100", "gfx90a:sramecc+:xnack-")
    variant(artifacts, "gfx1100", "gfx90a:xnack+")
    found = Bundles(artifacts)
    exact = found.target(DeviceId.parse("gfx90a:sramecc+:xnack-"))
    assert exact.id == "gfx90a:sramecc+:xnack-"
    assert exact == replace(TARGETS["gfx90a"], id=exact.id)
    assert found.module(exact, Q8_1).where == f"{artifacts / exact.id}/{FILE}"
    assert found.target(DeviceId.parse("gfx90a:sramecc-:xnack-")).id == "gfx90a"
    shutil.rmtree(artifacts / "gfx90a")
    with pytest.raises(NoArtifactError, match=r"\ngfx90a:xnack\+ is pinned to xnack\+, .*\n`iq compile --target gfx90a "):
        Bundles(artifacts).target(DeviceId.parse("gfx90a:sramecc-:xnack-"))


def test_cpus(artifacts: Path) -> None:
    variant(artifacts, "x86-64-v3", "x86-64-v4-vnni")
    found = Bundles(artifacts)
    assert found.target(DeviceId("cpu"), VNNI | {"more"}).id == "x86-64-v4-vnni"
    assert found.target(DeviceId("cpu"), VNNI - {"avx512_vnni"}).id == "x86-64-v3"


def test_no_artifact_says_what_there_is_and_what_to_do(artifacts: Path) -> None:
    with pytest.raises(NoArtifactError) as refusal:
        Bundles(artifacts).target(DeviceId.parse("gfx1101"), AVX2)
    assert str(refusal.value) == (
        f"{artifacts} has no kernels for gfx1101: it has those for gfx1100, x86-64-v3\n"
        f"`iq compile --target gfx1101 --out {artifacts}` makes them"
    )
    with pytest.raises(NoArtifactError, match=r"iq does not compile for gfx803\n`iq targets` lists what it compiles for$"):
        Bundles(artifacts).target(DeviceId("gfx803"))
    with pytest.raises(NoArtifactError, match=r"for gfx1101: it has those for gfx1100\n`iq compile --target gfx1101 --out artifacts`"):
        Bundles(artifacts / "gfx1100").target(DeviceId("gfx1101"))
    with pytest.raises(NoArtifactError, match=r"avx2, .*which this CPU lacks"):
        Bundles(artifacts).target(DeviceId("cpu"), frozenset({"sse2"}))


def test_files_are_checked_before_a_target_is_given(artifacts: Path) -> None:
    found = Bundles(artifacts)
    (artifacts / "gfx1100" / FILE).write_bytes(b"")
    with pytest.raises(AlteredFileError):
        found.target(DeviceId("gfx1100"))
    assert found.target(DeviceId("cpu"), AVX2).id == "x86-64-v3"


def test_two_bundles_for_one_target(artifacts: Path) -> None:
    pack(artifacts / "gfx1100", artifacts / "gfx1100.zip")
    with pytest.raises(BundleError, match="are both for gfx1100"):
        Bundles(artifacts)


def test_bundles_being_written_are_not_seen(artifacts: Path) -> None:
    (artifacts / "gfx1100").rename(artifacts / ".iq-1")
    with pytest.raises(NoArtifactError):
        Bundles(artifacts).target(DeviceId("gfx1100"))


def test_no_bundles(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(ManifestError, match=f"{path}: no bundle there"):
            Bundles(path)


# ---- Writing


COMPILER = Compiler("3.13.0", "0" * 40, ("--flag",))


def module_of(bundle: Path, keys: set[str] = KEYS) -> Compiled:
    return Compiled("q8_1", bundle / FILE, tuple(sorted(keys)))


def rewrite(bundle: Path, path: Path, **changes: Any) -> Manifest:
    return write(path, DeviceId("gfx1100"), [module_of(bundle, **changes)], COMPILER, "f" * 64)


@pytest.mark.parametrize("name", ["gfx1100", "gfx1100.zip"])
def test_write_replaces_the_bundle_in_either_form(bundle: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    for first in ("gfx1100", "gfx1100.zip"):
        rewrite(bundle, out / first, keys=set(list(KEYS)[:1]))
        manifest = rewrite(bundle, out / name)
        assert [p.name for p in out.iterdir()] == [name]
        opened = Bundle.open(out / name)
        opened.verify()
        assert opened.manifest == manifest
        assert {k.key for k in manifest.kernels} == KEYS
        shutil.rmtree(out)


def test_write_is_the_same_bytes_again(bundle: Path, tmp_path: Path) -> None:
    for form in ("", ".zip"):
        one, two = tmp_path / f"one{form}", tmp_path / f"two{form}"
        rewrite(bundle, one)
        rewrite(bundle, two)
        pairs = [(one, two)] if form else [(p, two / p.name) for p in one.iterdir()]
        assert all(a.read_bytes() == b.read_bytes() for a, b in pairs)


def snapshot(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_write_that_fails_leaves_the_old_bundle(bundle: Path, artifacts: Path) -> None:
    before = snapshot(artifacts)
    with pytest.raises(BundleError, match=r"no function quantize_q8_1\.q8_1\.f64"):
        rewrite(bundle, bundle, keys={"quantize_q8_1.q8_1.f64"})
    with pytest.raises(BundleError, match="one version of bytecode"):
        write(bundle, DeviceId("gfx1100"), [], COMPILER, "f" * 64)
    assert snapshot(artifacts) == before
    assert sorted(p.name for p in artifacts.iterdir()) == ["gfx1100", "x86-64-v3"]


@pytest.mark.parametrize("which", [1, 2])
def test_write_that_is_interrupted_while_renaming_leaves_the_old_bundle(
    bundle: Path, artifacts: Path, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    """The first rename puts the old bundle aside, the second puts the new one in its place."""
    before, rename, calls = snapshot(artifacts), Path.rename, []

    def interrupted(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == which:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rewrite(bundle, bundle, keys=set(list(KEYS)[:1]))
    assert snapshot(artifacts) == before
    assert sorted(p.name for p in artifacts.iterdir()) == ["gfx1100", "x86-64-v3"]


def test_write_replaces_nothing_but_bundles(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(BundleError, match="not replaced"):
        rewrite(bundle, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_opening_a_bundle_needs_no_compiler() -> None:
    code = "import sys, iq.bundle; print({'jinja2', 'iq.compile', 'iree.compiler', 'elftools', 'platformdirs'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
