"""Feeds damaged manifests, executables, code objects, vmfbs and bundles to what reads them: only iq's own refusals may come out.

    python tests/fuzz_bundle.py [COUNT] [--seed N]      COUNT inputs, 100,000 if it is not given; says how many came out how
    python tests/fuzz_bundle.py --again FILE            an input that was saved

Inputs are made from what the compiler writes: values of the JSON are replaced, removed and nested, the numbers that a reader follows in a
FlatBuffer and in a zip are written over, and all of it is cut off and spliced. An input that raises anything else than iq's errors, takes
more than SECONDS of CPU time or more memory than MEMORY, is saved in the current directory, and the exit status is 1.
"""

import argparse
import copy
import hashlib
import io
import json
import random
import re
import resource
import signal
import struct
import sys
import tempfile
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

from compiled import module_of

from iq.bundle import Bundle, Compiler, Executable, Launches, Manifest, Vmfb, codeobject
from iq.bundle.flatbuffer import _Buffer
from iq.bundle.manifest import MANIFEST, SCHEMA, File, Kernel
from iq.errors import BytecodeError, IqError
from iq.targets import TARGETS

SECONDS = 1.0
MEMORY = 256 << 20  # for the largest inputs, of 2 MB
LARGEST = 2 << 20

# What stands in JSON where Python's encoder would refuse or refine it.
RAW = re.compile(r'"raw:(\d{1,9})"')
RAWS = (
    "9" * 5000, "-" + "9" * 5000, "1" + "0" * 400, "1e999", "0." + "3" * 5000, "NaN", "-Infinity", "-0", "01", "1e5",
    "tru", "", "{", "]", ",", "[" * 500 + "]" * 500, "[" * 100_000 + "]" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000,
    '"\\ud800"', '"\\u0000"', '"\\x"', '"\n"', '{"key": 1, "key": 2}',
)  # fmt: skip
VALUES = (
    None, True, False, -1, 0, 1, 2, 3, 1024, 1 << 31, (1 << 31) - 1, 1 << 32, 1 << 63, -(1 << 63), 1 << 64, 1.5, 2.0, -0.0,
    "", "x", "m", "k", "blocks", "w", "f32", "f64", "é", "\U0001f600", "\u202e", "a\0b", "../x", "x" * 100_000, "9" * 5000,
    "mul_mat_vec.q4_0." + "9" * 5000, "mul_mat_vec.q4_0.²", "dequantize.q4_0.f32", "a.b.c",
    "gfx1100:" * 20_000, "gfx1100:xnack+", "9" * 5000 + ".0", [], {}, [[]], [0] * 10_000,
)  # fmt: skip
NUMBERS = (0, 1, 2, 4, 8, 0x7F, 0xFF, 0xFFFF, 0x7FFF, 0x8000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFF0, 1 << 63, (1 << 64) - 1)
TEXT = (b"\0", b"\xff", b"\xef\xbb\xbf", b"\xc3", b"\\", b'"', b"{", b"}", b"[", b"]", b",", b":", b" " * 1000)


class TooSlow(BaseException):
    """An input took more than SECONDS."""


class Fuzz:
    def __init__(self) -> None:
        modules = [module_of(TARGETS[t], f) for t in ("gfx1100", "sm_90", "x86-64-v3") for f in ("q8_1", "f16")]
        self.vmfbs = [module.vmfb for module in modules]
        self.executables = [data for vmfb in self.vmfbs[:4] for data in Vmfb.parse(vmfb).executables.values()]
        self.codes = [Executable.parse(data) for data in self.executables]
        self.elves = [elf for data in self.executables[:2] for elf in codeobject.find(data)]
        self.launches: list[Launches] = [found for module in modules[:4] for found in module.launches.values()]
        self.places = {data: places_read(data, Executable.parse) for data in self.executables}
        vmfb = modules[0].vmfb
        file = File("q8_1.vmfb", len(vmfb), hashlib.sha256(vmfb).hexdigest())
        small = tuple(Kernel(key, key, file.name, found) for key, found in modules[0].launches.items())
        large = tuple(Kernel(key, key, "f16.vmfb", found) for key, found in modules[1].launches.items())
        compiler = Compiler("3.13.0", "0" * 40, ("--flag",))
        self.manifest = Manifest(SCHEMA, "gfx1100", "rocm-hsaco-fb", "17.0", compiler, "f" * 64, (file,), small)
        both = (file, File("f16.vmfb", len(modules[1].vmfb), hashlib.sha256(modules[1].vmfb).hexdigest()))
        self.larger = Manifest(SCHEMA, "gfx1100", "rocm-hsaco-fb", "17.0", compiler, "f" * 64, both, small + large)
        self.kinds: dict[str, tuple[int, Callable[[random.Random], bytes], Callable[[bytes], str]]] = {
            "manifest": (40, self.make_manifest, self.read_manifest),
            "executable": (25, self.make_executable, self.read_executable),
            "vmfb": (20, self.make_vmfb, self.read_vmfb),
            "bundle": (10, self.make_bundle, self.read_bundle),
            "elf": (5, self.make_elf, self.read_elf),
        }

    def make(self, rng: random.Random) -> tuple[str, bytes]:
        """An input and its kind."""
        [kind] = rng.choices(list(self.kinds), [weight for weight, _, _ in self.kinds.values()])
        return kind, self.kinds[kind][1](rng)[:LARGEST]

    def read(self, kind: str, data: bytes) -> str:
        """What came of an input. Raises what is not to come out."""
        try:
            return self.kinds[kind][2](data)
        except IqError as error:
            str(error).encode(errors="backslashreplace")
            return type(error).__name__

    # Manifests

    def make_manifest(self, rng: random.Random) -> bytes:
        value = json.loads((self.manifest if rng.random() < 0.9 else self.larger).encode())
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            value = changed_json(rng, value)
        text = written(value)
        return spliced(rng, text, TEXT) if rng.random() < 0.2 else text

    def read_manifest(self, data: bytes) -> str:
        manifest = Manifest.parse(data, Path("here"))
        text = manifest.encode()
        assert Manifest.parse(text, Path("here")) == manifest
        assert manifest.device_id
        assert len(manifest.formats) <= len(manifest.kernels)
        for kernel in manifest.kernels:
            launches = kernel.launches
            assert not list(launches.problems())
            sizes = launches.all_sizes(dict.fromkeys(launches.sizes, (1 << 31) - 1))
            assert all(t.nbytes(sizes) > 0 for t in (*launches.inputs, *launches.outputs, *launches.scratch))
            for code in self.codes:
                try:
                    launches.check(code)
                except BytecodeError:
                    continue
        return "read"

    # FlatBuffers

    def make_executable(self, rng: random.Random) -> bytes:
        data = rng.choice(self.executables)
        return damaged(rng, data, self.places[data])

    def read_executable(self, data: bytes) -> str:
        code = Executable.parse(data)
        assert sum(map(len, code.images)) <= len(data) + len(code.images)
        assert all(export.image < len(code.images) for export in code.exports.values())
        for launches in self.launches:
            try:
                launches.check(code)
            except BytecodeError:
                continue
        return "read"

    # Zips

    def make_vmfb(self, rng: random.Random) -> bytes:
        vmfb = rng.choice(self.vmfbs)
        with zipfile.ZipFile(io.BytesIO(vmfb)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        if rng.random() < 0.5:
            name = rng.choice(list(members))
            members[name] = damaged(rng, members[name], self.places.get(members[name]) or module_places(members[name]))
        return changed_zip(rng, members)

    def read_vmfb(self, data: bytes) -> str:
        vmfb = Vmfb.parse(data)
        assert sum(map(len, vmfb.executables.values())) <= len(data)
        assert sum(map(len, vmfb.functions)) <= len(data)
        return "read, without code" if vmfb.executable is None else "read"

    # Bundles

    def make_bundle(self, rng: random.Random) -> bytes:
        vmfb = self.vmfbs[0] if rng.random() < 0.5 else self.make_vmfb(rng)
        value = json.loads(self.manifest.encode())
        value["files"][0] |= {"size": len(vmfb), "sha256": hashlib.sha256(vmfb).hexdigest()}
        text = written(changed_json(rng, value) if rng.random() < 0.5 else value)
        members = {MANIFEST: text, "q8_1.vmfb": vmfb}
        return changed_zip(rng, members) if rng.random() < 0.3 else zip_of(list(members.items()))

    def read_bundle(self, data: bytes) -> str:
        with tempfile.NamedTemporaryFile(suffix=".zip") as file:
            file.write(data)
            file.flush()
            bundle = Bundle.open(file.name)
            for format in bundle.manifest.formats:
                bundle.module(format)
            try:
                bundle.verify()
            except IqError as error:
                return f"opened, then {type(error).__name__}"
        return "read"

    # Code objects

    def make_elf(self, rng: random.Random) -> bytes:
        elf = rng.choice(self.elves)
        headers = [(at, "<I") for at in range(16, 64, 2)]
        tables = [(at, "<I") for at in range(64, len(elf) - 4, 4)]
        return rng.choice((b"", b"before")) + damaged(rng, elf, headers if rng.random() < 0.5 else tables)

    def read_elf(self, data: bytes) -> str:
        for elf in codeobject.find(data):
            codeobject.device_id(elf)
            codeobject.CodeObject.parse(elf)
        return "read"


def changed_json(rng: random.Random, value: Any) -> Any:
    """The same with one change somewhere. Values that JSON does not have are written as "raw:N"."""
    path, at = [], value
    while isinstance(at, (dict, list)) and at and (len(path) < 1 or rng.random() < 0.85):
        path.append(rng.choice(list(at) if isinstance(at, dict) else range(len(at))))
        at = at[path[-1]]
    new = changed_value(rng, at)
    if not path:
        return new
    holder = value
    for step in path[:-1]:
        holder = holder[step]
    match rng.randrange(8):
        case 0:
            del holder[path[-1]]
        case 1 if isinstance(holder, dict):
            holder[rng.choice(("surprise", "key", "", "x" * 1000))] = holder.pop(path[-1])
        case 1 | 2 if isinstance(holder, list):
            holder.insert(rng.randrange(len(holder) + 1), rng.choice((new, at)))
        case _:
            holder[path[-1]] = new
    return value


def changed_value(rng: random.Random, value: Any) -> Any:
    match rng.randrange(6):
        case 0:
            return f"raw:{rng.randrange(len(RAWS))}"
        case 1:
            return [value] * rng.choice((1, 2, 3, 300 if len(json.dumps(value)) < 1000 else 4))
        case 2 if isinstance(value, int) and not isinstance(value, bool):
            return value + rng.choice((-1, 1, 1 << 31, -(1 << 31)))
        case 2 if isinstance(value, str) and value:
            at = rng.randrange(len(value))
            return value[:at] + rng.choice(("", "x", ".", "9" * 5000, value)) + value[at + 1 :]
        case 2 if isinstance(value, list) and value and rng.random() < 0.05:
            return value * (LARGEST // 2 // len(json.dumps(value)))
        case 2 if isinstance(value, list):
            return rng.sample(value, len(value))
        case _:
            return copy.deepcopy(rng.choice(VALUES))


def written(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False)
    return RAW.sub(lambda found: RAWS[int(found[1]) % len(RAWS)], text, count=10).encode(errors="surrogatepass")


def places_read(data: bytes, read: Callable[[bytes], object], start: int = 64) -> list[tuple[int, str]]:
    """Where a reader takes the numbers of a FlatBuffer from, and how: in `data`, where the FlatBuffer begins at `start`."""
    places: dict[tuple[int, str], None] = dict.fromkeys([(0, "<I"), (4, "<I"), (8, "<Q")] if start else [])
    number = _Buffer.number

    def noted(self: _Buffer, code: str, at: int) -> int:
        places[start + at, code] = None
        return number(self, code, at)

    with patch.object(_Buffer, "number", noted):
        read(data)
    return list(places)


def module_places(data: bytes) -> list[tuple[int, str]]:
    """The same for module.fb; of what is none, the first bytes."""
    if data[8:12] != b"IREE":
        return [(at, "<I") for at in range(0, min(64, len(data)), 4)]
    return places_read(zip_of([("module.fb", data)]), Vmfb.parse, start=0)


def damaged(rng: random.Random, data: bytes, places: list[tuple[int, str]]) -> bytes:
    """The same with other numbers at some places, cut off, or spliced."""
    new = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at, code = rng.choice(places)
        size = struct.calcsize(code)
        if at + size > len(new):
            continue
        [before] = struct.unpack_from(code, new, at)
        other, _ = rng.choice(places)
        value = rng.choice(
            (rng.choice(NUMBERS), before + rng.choice((-8, -4, -2, -1, 1, 2, 4, 8)), other - at, len(data), rng.getrandbits(64))
        )
        new[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
    if rng.random() < 0.15:
        del new[rng.randrange(len(new)) :]
        if len(new) >= 64 and rng.random() < 0.5:
            struct.pack_into("<Q", new, 8, len(new) - 64)
    return spliced(rng, bytes(new), (b"", b"\0", b"\xff" * 8, bytes(64))) if rng.random() < 0.1 else bytes(new)


def spliced(rng: random.Random, data: bytes, pieces: tuple[bytes, ...]) -> bytes:
    """The same with a piece put in, taken out or doubled, or cut off."""
    start, end = sorted(rng.choices(range(len(data) + 1), k=2))
    match rng.randrange(4):
        case 0:
            return data[:start]
        case 1:
            return data[:start] + rng.choice(pieces) + data[start + rng.randrange(3) :]
        case 2:
            return data[:end] + data[start:]
        case _:
            return data[:start] + data[end:]


def changed_zip(rng: random.Random, members: dict[str, bytes]) -> bytes:
    """A zip of these files, with other names, methods and flags, and numbers of its headers written over."""
    entries = list(members.items())
    if rng.random() < 0.2:
        entries.append(rng.choice(entries))
    if rng.random() < 0.2:
        name = rng.choice(("../x", "a\0b", "é", "x" * 60_000, "", "/", "module.fb", "q8_1.vmfb", "x_rocm_hsaco_fb.fb"))
        entries.insert(rng.randrange(len(entries) + 1), (name, rng.choice((b"", rng.choice(entries)[1]))))
    if rng.random() < 0.1:
        entries.remove(rng.choice(entries))
    method = rng.choices((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA), (20, 1, 1, 1))[0]
    extra = rng.choice((b"", b"", b"\x01\0\x08\0" + b"\xff" * 8, b"\x01\0\xff\xff", b"\x01"))
    found = zip_of(entries, method, extra, rng.choice((b"", b"", b"PK\x05\x06" * 100)))
    if rng.random() < 0.6:
        signatures = [m.start() for m in re.finditer(rb"PK(\x01\x02|\x03\x04|\x05\x06)", found)]
        places = [(at + field, "<H") for at in signatures[-8:] for field in range(0, 46, 2)]
        places += [(at + field, "<I") for at in signatures[-8:] for field in (12, 14, 16, 18, 20, 22, 24, 42)]
        found = damaged(rng, found, places)
    return found


def zip_of(entries: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED, extra: bytes = b"", comment: bytes = b"") -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        archive.comment = comment
        for name, data in entries:
            member = zipfile.ZipInfo(name)
            member.compress_type, member.extra = method, extra
            archive.writestr(member, data)
    return packed.getvalue()


@contextmanager
def limits() -> Iterator[None]:
    """TooSlow after SECONDS of CPU time, MemoryError for MEMORY more than there is now."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TooSlow

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, resource.RLIM_INFINITY))
    signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def attempt(fuzz: Fuzz, kind: str, data: bytes) -> str:
    """What came of an input; "" for what is not to come out, which is printed."""
    try:
        with limits():
            return fuzz.read(kind, data)
    except (Exception, TooSlow):
        traceback.print_exc(limit=-6)
        return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int, nargs="?", default=100_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--again", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", "Duplicate name")
    fuzz, outcomes, saved = Fuzz(), Counter[tuple[str, str]](), []
    if arguments.again:
        outcome = attempt(fuzz, arguments.again.suffix[1:], arguments.again.read_bytes())
        print(outcome or "not to come out")
        return not outcome
    for number in range(arguments.count):
        kind, data = fuzz.make(random.Random(f"{arguments.seed} {number}"))
        outcome = attempt(fuzz, kind, data)
        outcomes[kind, outcome or "NOT TO COME OUT"] += 1
        if not outcome:
            saved.append(Path(f"fuzz-{arguments.seed}-{number}.{kind}"))
            saved[-1].write_bytes(data)
            if len(saved) == 10:
                break
    for (kind, outcome), count in sorted(outcomes.items()):
        print(f"{count:7} {kind:11} {outcome}")
    print(f"{outcomes.total()} inputs, seed {arguments.seed}" + "".join(f"\nsaved {path}" for path in saved))
    return bool(saved)


if __name__ == "__main__":
    sys.exit(main())
