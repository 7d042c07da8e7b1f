"""GGUF files: what is written is read again, by us and by gguf-py; broken files are refused; loaded tensors outlive the file."""

import gc
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import gguf
import numpy as np
import pytest

import iq
from iq.errors import DtypeError, FormatError, GGUFError, LayoutError, ShapeError
from iq.gguf.types import TYPES

METADATA = {
    "general.architecture": "llama",
    "general.name": "tiny ä",
    "count": 7,
    "scale": 0.5,
    "flag": True,
    "tokens": ["a", "b", ""],
    "scores": [0.5, -1.5],
}


@pytest.fixture
def tensors(rng):
    """One of each kind that can be written, with what packed() gives of it."""
    weights = rng.standard_normal((5, 64), dtype=np.float32)
    experts = rng.standard_normal((2, 3, 32), dtype=np.float32)
    device = iq.Device("cpu", threads=1)
    return {
        "quantized": (iq.QTensor.quantize(weights, "q4_0", device), iq.quantize(weights, "q4_0"), "q4_0", (5, 64)),
        "experts": (iq.QTensor.quantize(experts, "q8_0", device), iq.quantize(experts, "q8_0"), "q8_0", (2, 3, 32)),
        "packed": ((iq.quantize(weights, "q4_0"), "q4_0", (5, 64)), iq.quantize(weights, "q4_0"), "q4_0", (5, 64)),
        "floats": (weights, weights, "f32", (5, 64)),
        "halves": (weights.astype(np.float16), weights.astype(np.float16), "f16", (5, 64)),
        "norm": (weights[0, :12].copy(), weights[0, :12], "f32", (12,)),
        "integers": ((np.arange(3, dtype=np.int32).view(np.uint8), "i32", (3,)), np.arange(3, dtype=np.int32), "i32", (3,)),
    }


@pytest.fixture
def path(tmp_path, tensors):
    path = tmp_path / "model.gguf"
    iq.gguf.write(path, {name: given for name, (given, *_) in tensors.items()}, METADATA)
    return path


def test_what_is_written_is_read(path, tensors):
    with iq.gguf.open(path) as file:
        assert file.names == list(tensors)
        for name, (_, data, format, shape) in tensors.items():
            info = file.tensors[name]
            assert (info.name, info.format, info.shape, info.nbytes) == (name, format, shape, data.nbytes)
            packed, its_format, its_shape = file.packed(name)
            assert (its_format, its_shape, packed.dtype, packed.shape) == (format, shape, np.uint8, (data.nbytes,))
            assert packed.tobytes() == data.tobytes()
        assert {key: value.value for key, value in file.metadata.items()} == METADATA


def test_gguf_py_reads_it(path, tensors):
    reader = gguf.GGUFReader(path)
    for tensor in reader.tensors:
        _, data, format, shape = tensors[tensor.name]
        assert tensor.tensor_type.name.lower() == format
        assert tuple(reversed(tensor.shape.tolist())) == shape
        assert tensor.data.tobytes() == data.tobytes()


def test_we_read_what_gguf_py_writes(tmp_path, rng, dev):
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    weights = rng.standard_normal((3, 256), dtype=np.float32)
    writer.add_tensor("w", iq.quantize(weights, "q4_0"), raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.add_uint32("n", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with iq.gguf.open(str(tmp_path / "theirs.gguf")) as file:
        assert np.array_equal(file.load("w", dev).to_bytes(), iq.quantize(weights, "q4_0"))
        assert file.metadata["n"].type == gguf.GGUFValueType.UINT32


def test_a_copy_of_a_file_is_that_file(path, tmp_path):
    """Types of metadata and the alignment included."""
    for alignment in (32, 64, 256):
        with iq.gguf.open(path) as file:
            types = gguf.GGUFValueType
            numbers = {"general.alignment": gguf.GGUFValue(alignment, types.UINT32), "small": gguf.GGUFValue(5, types.UINT16)}
            iq.gguf.write(tmp_path / "one.gguf", {name: file.packed(name) for name in file.names}, {**file.metadata, **numbers})
        with iq.gguf.open(tmp_path / "one.gguf") as file:
            iq.gguf.write(tmp_path / "two.gguf", {name: file.packed(name) for name in file.names}, file.metadata)
        assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()
        assert all(t.data_offset % alignment == 0 for t in gguf.GGUFReader(tmp_path / "two.gguf").tensors)


def test_empty_lists_and_no_metadata(tmp_path):
    iq.gguf.write(tmp_path / "a.gguf", {}, {"none": [], "one": 1})
    with iq.gguf.open(tmp_path / "a.gguf") as file:
        assert (file.names, list(file.metadata)) == ([], ["one"])
    iq.gguf.write(tmp_path / "b.gguf", {"w": np.ones((2, 2), np.float32)})
    with iq.gguf.open(tmp_path / "b.gguf") as file:
        assert (file.names, file.metadata) == (["w"], {})


# ---- Loading


def test_load_and_multiply(path, tensors, dev, rng):
    x = rng.standard_normal((3, 64), dtype=np.float32)
    with iq.gguf.open(path) as file:
        for name in ("quantized", "packed", "floats", "halves"):
            w = file.load(name, dev)
            _, data, format, shape = tensors[name]
            assert (w.format, w.shape) == (format, shape)
            want = x @ iq.dequantize(np.ascontiguousarray(data).view(np.uint8), format).T
            assert np.allclose(w.matmul(x).numpy(), want, atol=0.1)
        assert file.load("experts", dev).shape == (2, 3, 32)
        assert file.load("norm", dev).to_bytes().view(np.float32).tolist() == tensors["norm"][1].tolist()


def test_tensors_outlive_the_file(path, tensors, dev):
    with iq.gguf.open(path) as file:
        loaded = {name: file.load(name, dev) for name in ("quantized", "packed", "floats")}
    del file
    path.unlink()
    gc.collect()
    for name, w in loaded.items():
        assert w.to_bytes().tobytes() == tensors[name][1].tobytes()
        assert np.isfinite(w.dequantize().numpy()).all()


def test_load_on_a_cpu_is_the_mapped_file_where_it_can_be(tmp_path, dev, rng):
    if not dev.is_cpu:
        pytest.skip("a GPU has its own memory")
    weights = {f"w{i}": rng.standard_normal((1, 32), dtype=np.float32) for i in range(4)}
    quantized = {name: (iq.quantize(w, "q4_0"), "q4_0", w.shape) for name, w in weights.items()}
    iq.gguf.write(tmp_path / "a.gguf", quantized)
    shared = {}
    with iq.gguf.open(tmp_path / "a.gguf") as file:
        for name in file.names:
            data = file.packed(name)[0]
            shared[name] = np.shares_memory(np.asarray(file.load(name, dev)._packed), data)
            assert shared[name] == (data.ctypes.data % 64 == 0)
    # One tensor takes 32 bytes of the file here: every other one starts on a 64-byte boundary.
    assert set(shared.values()) == {True, False}


def test_writing_to_a_loaded_tensor_leaves_the_file_alone(path, dev):
    before = path.read_bytes()
    with iq.gguf.open(path) as file:
        for name in ("quantized", "packed", "floats"):
            file.load(name, dev)._packed.fill_zero()
    assert path.read_bytes() == before


def test_what_cannot_be_loaded(path, dev):
    with iq.gguf.open(path) as file:
        with pytest.raises(GGUFError, match=r"no tensor 'nothing'; it has quantized, experts"):
            file.load("nothing", dev)
        with pytest.raises(FormatError, match="i32"):
            file.load("integers", dev)
    with pytest.raises(GGUFError, match="closed"):
        file.load("quantized", dev)


# ---- Broken files


def test_truncated_files(path, tmp_path):
    whole = path.read_bytes()
    cut = tmp_path / "cut.gguf"
    end = max(t.data_offset + t.n_bytes for t in gguf.GGUFReader(path).tensors)
    for length in sorted({*range(400), *range(400, end, 37), end - 1}):
        cut.write_bytes(whole[:length])
        with pytest.raises(GGUFError, match=r"cut\.gguf"):
            iq.gguf.open(cut)
    cut.write_bytes(whole[:end])
    iq.gguf.open(cut).close()


def test_what_is_no_gguf_file(path, tmp_path):
    whole = path.read_bytes()
    broken = tmp_path / "broken.gguf"
    for data in (b"", b"GGUF", b"GGML" + whole[4:], whole[:4] + struct.pack("<I", 99) + whole[8:], b"x" * 1000, bytes(1000)):
        broken.write_bytes(data)
        with pytest.raises(GGUFError):
            iq.gguf.open(broken)
    with pytest.raises(FileNotFoundError):
        iq.gguf.open(tmp_path / "none.gguf")
    with pytest.raises(OSError):
        iq.gguf.open(tmp_path)


def test_version_2_is_read(path, tmp_path):
    whole = path.read_bytes()
    (tmp_path / "two.gguf").write_bytes(whole[:4] + struct.pack("<I", 2) + whole[8:])
    with iq.gguf.open(path) as three, iq.gguf.open(tmp_path / "two.gguf") as two:
        assert (two.tensors, two.metadata) == (three.tensors, three.metadata)


# ---- The gguf package, and doing without it


def test_types_are_gguf_pys():
    ours = {id: (type.name, type.block_size, type.type_size) for id, type in TYPES.items()}
    theirs = {t.value: (t.name.lower(), *gguf.GGML_QUANT_SIZES[t]) for t in gguf.GGMLQuantizationType}
    # q8_1 has 40 bytes in gguf-py, 36 in ggml's C; gguf-py 0.19 does not have ggml's latest type.
    assert ours == theirs | {9: ("q8_1", 32, 36), 42: ("q2_0", 64, 18)}
    assert {t.name: t.value for t in iq.gguf.ValueType} == {t.name: t.value for t in gguf.GGUFValueType}


def test_reading_takes_no_gguf_package(path, tmp_path):
    """And writing says what to install, and leaves nothing behind."""
    code = f"""
        import sys
        sys.modules["gguf"] = None  # an import of it fails
        import numpy as np
        import iq
        with iq.gguf.open({str(path)!r}) as file:
            data, format, shape = file.packed("quantized")
        assert iq.dequantize(data, format).shape == (5 * 64,)
        new = {str(tmp_path / "new.gguf")!r}
        for write in (
            lambda: iq.gguf.write(new, {{"w": np.ones(4, np.float32)}}),
            lambda: iq.gguf.quantize_file({str(path)!r}, new, "q8_0"),
        ):
            try:
                write()
            except iq.errors.GGUFError as error:
                assert "pip install 'iq-kernels[gguf]'" in str(error)
            else:
                raise AssertionError("written")
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=120)
    assert list(tmp_path.iterdir()) == [path]


def test_importing_iq_imports_nothing_that_only_writing_takes():
    code = "import sys, iq, iq.gguf; print(*sorted({'gguf', 'yaml', 'requests', 'tqdm'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120).stdout.split() == []


# ---- Refusals when writing


@pytest.mark.parametrize(
    ("tensor", "error"),
    [
        (np.zeros((2, 2)), DtypeError),
        (np.zeros((2, 4), np.float32)[:, ::2], LayoutError),
        ([1.0], DtypeError),
        ((np.zeros(18, np.uint8), "q4_0", (2, 32)), ShapeError),
        ((np.zeros(18, np.uint8), "q4_0", (18,)), ShapeError),
        ((np.zeros(18, np.int8), "q4_0", (32,)), ShapeError),
        ((np.zeros(18, np.uint8), "q4_9", (32,)), DtypeError),
        ((np.zeros(36, np.uint8)[::2], "q4_0", (32,)), LayoutError),
    ],
)
def test_a_refused_write_leaves_what_was_there(tmp_path, tensor, error):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"before")
    with pytest.raises(error, match="w"):
        iq.gguf.write(path, {"fine": np.ones(3, np.float32), "w": tensor})
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"before", [path])


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"before")

    def fail(self, tensor):
        raise OSError("disk full")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", fail)
    with pytest.raises(OSError, match="disk full"):
        iq.gguf.write(path, {"w": np.ones(3, np.float32)})
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"before", [path])
    with pytest.raises(GGUFError, match="metadata bad"):
        iq.gguf.write(path, {}, {"bad": object()})
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"before", [path])


def test_write_into_no_directory(tmp_path):
    with pytest.raises(FileNotFoundError):
        iq.gguf.write(Path(tmp_path / "none" / "model.gguf"), {})
