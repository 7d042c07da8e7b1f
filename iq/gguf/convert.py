"""A model's weights quantized, on the host, into a GGUF file: what llama.cpp's quantization tool does, tensor by tensor."""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from iq.errors import FormatError, GGUFError
from iq.formats import FORMATS, Format, dequantize
from iq.formats.packing import Bytes, Floats
from iq.gguf.file import GGUFFile
from iq.gguf.imatrix import Imatrix, read_imatrix
from iq.gguf.metadata import Value, ValueType
from iq.gguf.mixes import Choice, Kind, Mix, Model, Shaped, choose_formats, mix_of
from iq.gguf.safetensors import SafetensorsFile
from iq.gguf.types import TYPE_IDS
from iq.gguf.writer import Described, gguf_package, write_described
from iq.quantizing import quantize_part

# Progress callback: tensors done, tensors in all, the name of the one at hand.
Progress = Callable[[int, int, Sequence[str]], None]

Source = GGUFFile | SafetensorsFile

# llama.cpp's tool refuses to make these without importances, but for the embedding and the output.
_WANT_IMATRIX = frozenset({"iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs"})

# Bytes that metadata and padding may take beside the tensors, for the check of the disk's space.
_SPARE = 64 << 20


@dataclass(frozen=True)
class Converted:
    """A tensor of the new file: its name, types and bytes before and after.

    why: what kept it as it is, or gave it a type that fits its rows in the place of the mix's.
    """

    name: str
    was: str
    format: str
    bytes_before: int
    bytes_after: int
    why: str = ""


def quantize_file(
    source: str | Path,
    destination: str | Path,
    type: str,
    *,
    imatrix: str | Path | None = None,
    tensor_types: Iterable[tuple[str, str]] = (),
    pure: bool = False,
    requantize: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> list[Converted]:
    """Quantize the weights of a GGUF or safetensors file into a new GGUF file, with the types that llama.cpp's tool gives them.

    type: a mix of llama.cpp's ("q4_k_m"; `iq.gguf.MIXES`). imatrix: a file of importances. tensor_types: patterns of names and formats
    ("attn_v", "q8_0"), before the mix's own rules. pure: every weight gets the mix's main format. requantize: also take weights that are
    quantized already, which costs precision. force: replace the destination where it exists.

    The new file appears whole, or not at all. One tensor is held in memory at a time. Metadata is kept.
    Raises FormatError for a type or pattern that there is not; GGUFError for a file that cannot be read or written, when nothing is to be
    done, for quantized weights without `requantize`, missing importances, weights that are not finite or whose scales are not; OSError.
    """
    mix, source, destination = mix_of(type), Path(source), Path(destination)
    gguf_package()  # before the work, not after it
    _check_places(source, destination, force)
    importances = read_imatrix(imatrix) if imatrix is not None else None
    with open_source(source) as file:
        choices = choose_formats(
            [Shaped(info.name, info.shape) for info in file.tensors.values()],
            mix,
            _model(file, importances is not None),
            tensor_types,
            pure,
        )
        planned = [_plan(file, name, choices[name], requantize) for name in file.names]
        _check_imatrix(planned, mix, importances)
        if all(c.was == c.format for c in planned):
            raise GGUFError(f"{source}: nothing is to be quantized to {mix.name}: {_reasons(planned)}")
        if (need := sum(c.bytes_after for c in planned) + _SPARE) > (free := shutil.disk_usage(destination.parent).free):
            raise GGUFError(f"{destination} takes {need} bytes, of which the disk has {free} free")
        described: dict[str, Described] = {c.name: (TYPE_IDS[c.format], file.tensors[c.name].shape, c.bytes_after) for c in planned}
        write_described(destination, described, _metadata(file, mix, importances), _contents(file, planned, importances, progress))
    if progress:
        progress(len(planned), len(planned), ())
    return planned


def open_source(path: Path) -> Source:
    """A file of weights, by its name's ending. Raises GGUFError, OSError."""
    return SafetensorsFile(path) if path.suffix == ".safetensors" else GGUFFile(path)


def _check_places(source: Path, destination: Path, force: bool) -> None:
    folder = destination.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise GGUFError(f"{destination} cannot be written: {folder} is no folder that may be written to")
    if destination.is_dir():
        raise GGUFError(f"{destination} is a folder; name a file")
    if destination.exists():
        if source.exists() and destination.samefile(source):
            raise GGUFError(f"{source} would be replaced by what is made of it; name another file")
        if not force:
            raise GGUFError(f"{destination} exists; name another file, or force it (--force)")


def _model(file: Source, imatrix: bool) -> Model:
    """What the metadata says of the model; with nothing said, a model of no layers."""
    architecture = str(file.metadata["general.architecture"].value) if "general.architecture" in file.metadata else ""

    def number(key: str) -> int:
        value = file.metadata[f"{architecture}.{key}"].value if f"{architecture}.{key}" in file.metadata else 0
        first = value[0] if isinstance(value, list) and value else value  # a number for each layer, in some
        return int(first) if isinstance(first, int | float) else 0

    heads = number("attention.head_count")
    kinds = [Kind.of(name) for name in file.names]
    return Model(
        architecture,
        layers=number("block_count"),
        heads=heads,
        heads_kv=number("attention.head_count_kv") or heads,
        experts=number("expert_count"),
        attention_vs=kinds.count(Kind.ATTENTION_V),
        tied=Kind.OUTPUT not in kinds,
        imatrix=imatrix,
    )


def _plan(file: Source, name: str, choice: Choice, requantize: bool) -> Converted:
    info = file.tensors[name]
    if info.nbytes is None:
        raise GGUFError(f"{file.path}: tensor {name!r} is of ggml's {info.format}, which this version of iq does not know")
    kept = Converted(name, info.format, info.format, info.nbytes, info.nbytes, choice.why)
    if choice.format is None or choice.format.name == info.format:
        return kept
    if info.format not in FORMATS:
        return replace(kept, why=f"{info.format} are no weights")
    if FORMATS[info.format].kind == "weights" and not requantize:
        raise GGUFError(
            f"{file.path}: tensor {name!r} is {info.format} already; to quantize it again costs precision: say so (--allow-requantize)"
        )
    return replace(kept, format=choice.format.name, bytes_after=math.prod(info.shape[:-1]) * choice.format.row_bytes(info.shape[-1]))


def _check_imatrix(planned: Sequence[Converted], mix: Mix, importances: Imatrix | None) -> None:
    for c in planned:
        if c.was == c.format or (importances and c.name in importances.importances):
            continue
        spared = Kind.of(c.name) in (Kind.OUTPUT, Kind.TOKEN_EMBEDDING)
        wanted = c.format in _WANT_IMATRIX or (c.format == "q2_k" and mix.name == "q2_k_s")
        if FORMATS[c.format].imatrix == "required" or (wanted and not spared):
            lacking = f"{importances.path} has none for it" if importances else "give a file of them (--imatrix)"
            raise GGUFError(f"tensor {c.name!r} cannot be made {c.format} without importances: {lacking}")


def _reasons(planned: Sequence[Converted]) -> str:
    first = next((c for c in planned if c.why), None)
    already = sum(c.format in FORMATS and FORMATS[c.format].kind == "weights" for c in planned)
    parts = [f"{already} tensors are so already"] if already else []
    return "; ".join([*parts, f"{first.name!r} stays as it is: {first.why}"] if first else parts) or "it has no tensors"


def _metadata(file: Source, mix: Mix, imatrix: Imatrix | None) -> Mapping[str, Value]:
    keys = gguf_package().Keys
    metadata = {key: value for key, value in file.metadata.items() if not key.startswith("split.")}
    metadata[keys.General.FILE_TYPE] = Value(mix.file_type, ValueType.UINT32)
    metadata[keys.General.QUANTIZATION_VERSION] = Value(gguf_package().GGML_QUANT_VERSION, ValueType.UINT32)
    if imatrix:
        metadata["quantize.imatrix.file"] = Value(str(imatrix.path), ValueType.STRING)
        if imatrix.datasets:
            metadata["quantize.imatrix.dataset"] = Value(imatrix.datasets[0], ValueType.STRING)
        metadata["quantize.imatrix.entries_count"] = Value(len(imatrix.importances), ValueType.UINT32)
        if imatrix.chunks > 0:
            metadata["quantize.imatrix.chunks_count"] = Value(imatrix.chunks, ValueType.UINT32)
    return metadata


def _contents(file: Source, planned: Sequence[Converted], imatrix: Imatrix | None, progress: Progress | None) -> Iterator[Bytes]:
    """The bytes of each tensor of the new file, one after another."""
    total = Counter[str]()  # weights of each type in the new file
    for c in planned:
        total[c.format] += math.prod(file.tensors[c.name].shape) if c.was != c.format else 0
    for done, c in enumerate(planned):
        if progress:
            progress(done, len(planned), (c.name,))
        data, was, shape = file.packed(c.name)
        if c.was == c.format or not data.size:
            yield data
            continue
        try:
            importances = imatrix.of(c.name, shape) if imatrix else None
            values = dequantize(data.reshape(-1, FORMATS[was].row_bytes(shape[-1])), was)
            yield _quantized(values, FORMATS[c.format], importances, total[c.format])
        except (FormatError, GGUFError) as error:
            raise GGUFError(f"{file.path}: tensor {c.name!r}: {error}") from error


def _quantized(values: Floats, fmt: type[Format], importances: Floats | None, total: int) -> Bytes:
    """Rows of weights; each expert's with its own importances, f32 [experts, K]. total: weights of the format in the whole file."""
    if importances is None:
        packed = quantize_part(values, fmt, None, total)
    else:
        experts = values.reshape(len(importances), -1, values.shape[-1])
        packed = np.stack([quantize_part(rows, fmt, columns, total) for rows, columns in zip(experts, importances, strict=True)])
    finite = fmt.finite(packed.reshape(-1, fmt.type_size))
    if not finite.all():
        row = int(finite.argmin()) * fmt.block_size // values.shape[-1]
        raise FormatError(f"row {row} has weights up to {np.abs(values[row]).max()}, too large for the 16-bit scales of {fmt.name}")
    return packed.reshape(-1)
