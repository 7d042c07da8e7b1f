"""GGUF files made by hand, byte by byte: what is malformed is refused as GGUFError, whatever it is."""

import contextlib
import struct

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import iq
from iq.errors import GGUFError


def header(tensors, entries):
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, entries)


def string(text):
    return struct.pack("<Q", len(text)) + text


def pair(key, type, value):
    return string(key) + struct.pack("<I", type) + value


def tensor(dims, type, offset=0, name=b"w"):
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, type, offset)


@pytest.mark.parametrize(
    "data",
    [
        header(2**60, 0),
        header(0, 2**60),
        header(0, 1) + string(b"k") + struct.pack("<IIQ", 9, 0, 2**60),  # an array of 2**60 uint8
        header(0, 1) + string(b"k") + struct.pack("<IIQ", 9, 8, 2**60),  # of strings
        header(0, 1) + string(b"k") + struct.pack("<II", 77, 0),  # of no known type
        header(0, 1) + struct.pack("<Q", 2**63) + b"k",  # a key without end
        header(0, 1) + string(b"\xff\xfe") + struct.pack("<II", 4, 0),  # no UTF-8
        header(1, 0) + tensor((32, 2**40), 2),  # larger than the file
        header(1, 0) + tensor((2**33, 2**33), 0),  # its size overflows
        header(1, 0) + tensor((32, 1), 2, offset=2**62),  # outside the file
        header(1, 0) + tensor((33, 1), 2),  # no whole blocks
        header(1, 0) + tensor((), 2),  # no whole blocks either
        header(2, 0) + tensor((0,), 0) * 2,  # two of the same name
        header(2, 0) + tensor((8,), 0) + tensor((8,), 0, name=b"v"),  # two in the same place
        header(2, 0) + tensor((9,), 0, offset=32) + tensor((9,), 0, name=b"v"),  # one reaches into the other
        header(1, 0) + tensor((1,), 0, offset=8),  # not aligned
        header(1, 0) + tensor((1,) * 5, 0),  # more dimensions than ggml has
        header(1, 0) + string(b"w") + struct.pack("<I", 2**32 - 1),  # many more
        header(0, 1) + pair(b"general.alignment", 4, struct.pack("<I", 24)),  # no power of two
        header(0, 1) + pair(b"general.alignment", 4, struct.pack("<I", 0)),
        header(0, 1) + pair(b"general.alignment", 10, struct.pack("<Q", 32)),  # of the wrong type
        header(0, 2) + pair(b"k", 7, b"\1") * 2,  # two of the same key
        header(0, 1) + pair(b"k", 9, struct.pack("<IQ", 9, 1) * 5000),  # an array in an array in an array ...
        header(0, 1) + pair(b"k", 9, struct.pack("<IQ", 9, 2**59)),  # many arrays
    ],
)
def test_malformed_files(tmp_path, data):
    path = tmp_path / "broken.gguf"
    path.write_bytes(data + bytes(200))
    with pytest.raises(GGUFError, match=r"broken\.gguf"):
        iq.gguf.open(path)


def test_big_endian_files_are_refused_by_name(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "big.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor("w", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(GGUFError, match="big-endian; only little-endian"):
        iq.gguf.open(tmp_path / "big.gguf")


def test_unknown_types_matter_only_to_who_loads_them(tmp_path):
    path = tmp_path / "new.gguf"
    path.write_bytes(header(2, 0) + tensor((32, 1), 999) + tensor((4,), 0, offset=32, name=b"v") + bytes(200))
    with iq.gguf.open(path) as file:
        assert (file.tensors["w"].format, file.tensors["w"].nbytes, file.tensors["w"].shape) == ("type 999", None, (1, 32))
        assert file.packed("v")[2] == (4,)
        for take in (file.packed, file.load):
            with pytest.raises(GGUFError, match=r"new\.gguf: tensor 'w' is of ggml's type 999"):
                take("w")


def test_arrays_of_arrays(tmp_path):
    inner = struct.pack("<IQHH", 2, 2, 7, 8) + struct.pack("<IQ", 8, 1) + string(b"s")
    (tmp_path / "a.gguf").write_bytes(header(0, 1) + pair(b"k", 9, struct.pack("<IQ", 9, 2) + inner))
    with iq.gguf.open(tmp_path / "a.gguf") as file:
        assert file.metadata == {"k": iq.gguf.Value([[7, 8], ["s"]], iq.gguf.ValueType.ARRAY, iq.gguf.ValueType.ARRAY)}
        with pytest.raises(GGUFError, match="metadata k: arrays of arrays"):
            iq.gguf.write(tmp_path / "b.gguf", {}, file.metadata)
    with pytest.raises(GGUFError, match="metadata k: arrays of arrays"):
        iq.gguf.write(tmp_path / "b.gguf", {}, {"k": [[1]]})
    assert not (tmp_path / "b.gguf").exists()


# ---- Any file at all

SMALL = (
    header(2, 4)
    + pair(b"general.alignment", 4, struct.pack("<I", 32))
    + pair(b"s", 8, string("ä".encode()))
    + pair(b"a", 9, struct.pack("<IQ", 8, 2) + string(b"x") + string(b""))
    + pair(b"b", 9, struct.pack("<IQ", 9, 1) + struct.pack("<IQ3B", 0, 3, 1, 2, 3))
    + tensor((32, 1), 2)
    + tensor((3,), 0, offset=32, name=b"v")
)
SMALL += bytes(-len(SMALL) % 32) + bytes(range(44))
INTERESTING = st.sampled_from([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**31 * 3, 2**63 - 1, 2**63, 2**64 - 1]) | st.integers(
    0, 2**64 - 1
)


def read_all(path):
    with iq.gguf.open(path) as file:
        for name in file.names:
            if file.tensors[name].nbytes is not None:
                assert file.packed(name)[0].nbytes == file.tensors[name].nbytes


@settings(deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_change_of_a_file_is_read_or_refused(tmp_path, data):
    """Nothing but GGUFError comes out; what is read lies in the file."""
    changed = bytearray(SMALL)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(changed) - 1))
        match data.draw(st.sampled_from(["byte", "number", "cut", "insert", "repeat"])):
            case "byte":
                changed[at] = data.draw(st.integers(0, 255))
            case "number":
                width = data.draw(st.sampled_from([4, 8]))
                changed[at : at + width] = (data.draw(INTERESTING) % 2 ** (8 * width)).to_bytes(width, "little")
            case "cut":
                del changed[at : at + data.draw(st.integers(1, 64))]
            case "insert":
                changed[at:at] = data.draw(st.binary(max_size=16))
            case "repeat":
                changed[at:at] = changed[at : at + data.draw(st.integers(1, 64))]
        changed = changed or bytearray(b"G")
    path = tmp_path / "changed.gguf"
    path.write_bytes(changed)
    with contextlib.suppress(GGUFError):
        read_all(path)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_any_bytes_after_a_header_are_read_or_refused(tmp_path, data):
    path = tmp_path / "random.gguf"
    for start in (header(1, 1), header(0, 1) + pair(b"k", 9, b""), b""):
        path.write_bytes(start + data)
        with contextlib.suppress(GGUFError):
            read_all(path)


def test_the_file_that_is_changed_can_be_read(tmp_path):
    (tmp_path / "small.gguf").write_bytes(SMALL)
    read_all(tmp_path / "small.gguf")
    with iq.gguf.open(tmp_path / "small.gguf") as file:
        assert [v.value for v in file.metadata.values()] == [32, "ä", ["x", ""], [[1, 2, 3]]]
        assert file.packed("w")[0].tobytes() + file.packed("v")[0].tobytes() == bytes([*range(18), *range(32, 44)])
