"""A GGUF file's weights quantized, on the host, into another GGUF file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from iq.errors import FormatError, GGUFError
from iq.formats import FORMATS, dequantize, format_of, quantize
from iq.gguf.file import GGUFFile, Packed
from iq.gguf.metadata import Value, ValueType
from iq.gguf.writer import gguf_package, write

# Progress callback: tensors done, tensors in all, the name of the one at hand.
Progress = Callable[[int, int, Sequence[str]], None]


@dataclass(frozen=True)
class Converted:
    """A tensor of the new file: its name, its type before and after, its bytes before and after."""

    name: str
    was: str
    format: str
    bytes_before: int
    bytes_after: int


def quantize_file(source: str | Path, destination: str | Path, format: str, progress: Progress | None = None) -> list[Converted]:
    """Quantize the 2-D f32, f16 and bf16 tensors of a GGUF file whose rows are whole blocks; the others are copied as they are.

    The new file appears whole, or not at all; it may replace the old one. Its tensors are held in memory until it is written.
    Raises FormatError when `format` is not one of quantized weights, GGUFError for an unreadable file, weights that are not finite, or
    where the gguf package is not installed.
    """
    fmt = format_of(format)
    if fmt.kind != "weights":
        kinds = ", ".join(f.name for f in FORMATS.values() if f.kind == "weights")
        raise FormatError(f"weights cannot be quantized to {fmt.name}; use one of {kinds}")
    gguf = gguf_package()  # before the work, not after it
    converted: list[Converted] = []
    tensors: dict[str, Packed] = {}
    with GGUFFile(source) as file:
        for name in file.names:
            if progress:
                progress(len(tensors), len(file.names), (name,))
            data, was, shape = tensors[name] = file.packed(name)
            if was in FORMATS and FORMATS[was].kind == "plain" and len(shape) == 2 and shape[1] and shape[1] % fmt.block_size == 0:
                try:
                    packed = quantize(dequantize(data.reshape(shape[0], -1), was), fmt.name)
                except FormatError as error:
                    raise GGUFError(f"{source}: tensor {name}: {error}") from error
                tensors[name] = packed.reshape(-1), fmt.name, shape
            converted.append(Converted(name, was, tensors[name][1], data.nbytes, tensors[name][0].nbytes))
        metadata = dict(file.metadata)
        if any(c.was != c.format for c in converted):
            metadata[gguf.Keys.General.FILE_TYPE] = Value(_file_type(fmt.name), ValueType.UINT32)
            metadata[gguf.Keys.General.QUANTIZATION_VERSION] = Value(gguf.GGML_QUANT_VERSION, ValueType.UINT32)
        write(destination, tensors, metadata)
    if progress:
        progress(len(tensors), len(tensors), ())
    return converted


def _file_type(name: str) -> int:
    """What a file calls itself when its weights are mostly of a format (llama.cpp's names; the plain K-quant mixes are "small")."""
    types = gguf_package().LlamaFileType.__members__
    return int(types.get(f"MOSTLY_{name.upper()}_S") or types[f"MOSTLY_{name.upper()}"])
