"""IREE's executables for GPUs: what the compiler wrote is read back, and bytes that are none are refused."""

import struct
from collections.abc import Mapping

import pytest
from compiled import module_of
from hypothesis import given, settings
from hypothesis import strategies as st

from iq.bundle import Executable, Vmfb
from iq.bundle.flatbuffer import Table
from iq.errors import BytecodeError
from iq.kernels import Dispatch, kernels, plan
from iq.targets import TARGETS, Target

HEADER = 64


def declared(target: Target, fmt: str) -> Mapping[str, Dispatch]:
    return {d.name: d for spec in kernels(target) if spec.format == fmt for d in plan(spec, target)}


def executable(target: str, fmt: str) -> bytes:
    [data] = Vmfb.parse(module_of(TARGETS[target], fmt).vmfb).executables.values()
    return data


@pytest.fixture(scope="module", params=["gfx1100", "sm_90"])
def small(environment: None, request: pytest.FixtureRequest) -> bytes:
    """An executable with two kernels."""
    return executable(request.param, "q8_1")


@pytest.mark.parametrize("fmt", ["q8_1", "q4_k", "f16"])
@pytest.mark.parametrize("target", [TARGETS["gfx1100"], TARGETS["sm_90"]], ids=lambda t: t.id)
def test_what_the_compiler_wrote(environment: None, target: Target, fmt: str) -> None:
    found = Executable.parse(executable(target.id, fmt))
    assert found.api == {"rocm": "hip", "cuda": "cuda"}[target.family]
    dispatches = declared(target, fmt)
    assert set(found.exports) == set(dispatches)
    for name, export in found.exports.items():
        dispatch = dispatches[name]
        kernel = dispatch.kernel
        assert export.name == name
        assert export.block == (dispatch.schedule.threads(target.wave), 1, 1)
        assert (export.buffers, export.constants) == (len(kernel.reads) + len(kernel.writes), len(kernel.sizes))
        assert export.shared <= target.lds
        assert export.shared == 0 or target.family == "cuda"  # on AMD, LDS is static
        assert name.encode() in found.images[export.image]
    starts = {"hip": b"\x7fELF", "cuda": b"//"}
    assert all(image.lstrip().startswith(starts[found.api]) and image.endswith(b"\0") for image in found.images)
    assert found.api == "hip" or all(image.count(b"\0") == 1 for image in found.images)


def test_the_vmfb_finds_its_code(environment: None) -> None:
    for target, fmt in (("gfx1100", "q8_1"), ("sm_90", "q8_1")):
        vmfb = Vmfb.parse(module_of(TARGETS[target], fmt).vmfb)
        assert vmfb.executable == Executable.parse(executable(target, fmt))
    assert Vmfb.parse(module_of(TARGETS["x86-64-v3"], "q8_1").vmfb).executable is None


def test_several_executables_in_a_vmfb(small: bytes) -> None:
    vmfb = Vmfb.parse(module_of(TARGETS["gfx1100"], "q8_1").vmfb)
    vmfb.executables["another.fb"] = small
    with pytest.raises(BytecodeError, match=r"a vmfb with 2 executables, where one is expected: .*another\.fb"):
        _ = vmfb.executable


# ---- Bytes that are none


def patched(data: bytes, at: int, code: str, value: int) -> bytes:
    return data[:at] + struct.pack(code, value) + data[at + struct.calcsize(code) :]


def test_truncated_at_every_length(small: bytes) -> None:
    Executable.parse(small)
    for length in range(len(small)):
        with pytest.raises(BytecodeError):
            Executable.parse(small[:length])


def test_truncated_at_every_length_with_a_header_that_agrees(small: bytes) -> None:
    """All of the image lies behind the tables: only what pads the end may be lacking."""
    whole, refused = Executable.parse(small), 0
    for length in range(HEADER, len(small)):
        try:
            found = Executable.parse(patched(small[:length], 8, "<Q", length - HEADER))
        except BytecodeError:
            refused += 1
        else:
            assert found == whole, length
    assert refused > len(small) - HEADER - 64


@pytest.mark.parametrize(
    ("at", "code", "value", "message"),
    [
        (0, "<I", 0, "it starts with neither CDA1 nor HIP1"),
        (4, "<I", 1, "version 1"),
        (8, "<Q", 1 << 63, f"version 0, {1 << 63} bytes of"),
        (8, "<Q", 0, "an offset leaves the FlatBuffer"),
        (8, "<Q", 3, "an offset leaves the FlatBuffer"),
        (HEADER, "<I", 0xFFFFFFFF, "an offset leaves the FlatBuffer"),
        (HEADER, "<I", 0x7FFFFFFF, "an offset leaves the FlatBuffer"),
    ],
)
def test_damaged_headers(small: bytes, at: int, code: str, value: int, message: str) -> None:
    with pytest.raises(BytecodeError, match=f"not a GPU executable of IREE: .*{message}"):
        Executable.parse(patched(small, at, code, value))


def test_an_export_of_an_image_that_is_not_there(small: bytes) -> None:
    root = Table.root(small[HEADER:])
    export = root.tables(0)[0]
    # The ordinal is 0 and so left out: let the field read what another one has.
    vtable = export.at - struct.unpack_from("<i", small, HEADER + export.at)[0]
    [constants] = struct.unpack_from("<H", small, HEADER + vtable + 4 + 2 * 4)
    with pytest.raises(BytecodeError, match="is in an image that is not there"):
        Executable.parse(patched(small, HEADER + vtable + 4, "<H", constants))


def test_two_exports_of_one_name(small: bytes) -> None:
    """Which of them would be launched?"""
    root = Table.root(small[HEADER:])
    vector = root._vector(0, 4)[0]
    first, second = root.tables(0)
    offset = first.at - (vector + 4)
    assert second.at != first.at
    with pytest.raises(BytecodeError, match="two of its kernels have the same name"):
        Executable.parse(patched(small, HEADER + vector + 4, "<I", offset))


def test_vectors_that_overlap() -> None:
    """A table of 100,000 modules, each of which is the same one with an image of 100,000 bytes: 10 GB if each were copied."""
    n = 100_000
    vtable, root = struct.pack("<4H", 8, 12, 0, 4), struct.pack("<iI", 8, 8) + bytes(4)
    # Root table at 12, its modules at 24, the module's vtable, table and image after them.
    vector = 4 + len(vtable) + len(root)
    module_vtable = vector + 4 + 4 * n
    module = module_vtable + 6 + 2
    offsets = b"".join(struct.pack("<I", module - (vector + 4 + 4 * i)) for i in range(n))
    body = struct.pack("<I", 12) + vtable + root + struct.pack("<I", n) + offsets
    body += struct.pack("<3H2x", 6, 8, 4) + struct.pack("<iI", 8, 4) + struct.pack("<I", n) + bytes(n)
    data = struct.pack("<4sIQ48x", b"HIP1", 0, len(body)) + body
    with pytest.raises(BytecodeError, match="its strings and vectors overlap"):
        Executable.parse(data)


MUTATIONS = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 3), st.integers(0, (1 << 64) - 1)), min_size=1, max_size=4)


@settings(max_examples=2000, deadline=None)
@given(mutations=MUTATIONS)
def test_mutated_bytes(small: bytes, mutations: list[tuple[int, int, int]]) -> None:
    """Numbers of 8 to 64 bits are written over the header and the tables, which end with the image."""
    tables = small.find(b"\x7fELF" if small.startswith(b"HIP1") else b"//")
    for place, width, value in mutations:
        code = "<" + "BHIQ"[width]
        at = place % tables
        small = patched(small, at, code, value % (1 << 8 * struct.calcsize(code)))
    try:
        found = Executable.parse(small)
    except BytecodeError:
        return
    assert all(export.image < len(found.images) and len(export.block) == 3 for export in found.exports.values())


@settings(deadline=None)
@given(data=st.binary(max_size=200), magic=st.sampled_from([b"", b"HIP1", b"CDA1"]))
def test_random_bytes(data: bytes, magic: bytes) -> None:
    for text in (magic + data, struct.pack("<4sIQ48x", magic or b"HIP1", 0, len(data)) + data):
        try:
            Executable.parse(text)
        except BytecodeError:
            continue
