"""llama.cpp's files of importances: what `llama-imatrix` measured of each column of each weight.

Two forms: a GGUF file with tensors NAME.in_sum2 (sums of squared activations, a row for each expert) and NAME.counts; and the older
binary one. Source: llama.cpp, common/imatrix-loader.cpp and tools/quantize/quantize.cpp.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from iq.errors import GGUFError
from iq.formats.packing import Floats
from iq.gguf.file import GGUFFile
from iq.gguf.reader import MAGIC

_SUMS, _COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True)
class Imatrix:
    """Importances f32 [experts, K] of weights, by the weight's name; experts is 1 for most.

    path: the file. datasets: what they were measured on. chunks: how many of it, 0 where the file does not say.
    """

    path: Path
    importances: dict[str, Floats]
    datasets: list[str] = field(default_factory=list)
    chunks: int = 0

    def of(self, name: str, shape: tuple[int, ...]) -> Floats | None:
        """The importances of a weight [N, K] or [E, N, K]: f32 [1, K] or [E, K]; None where the file has none.

        Raises GGUFError when they are for another shape.
        """
        found = self.importances.get(name)
        if found is None:
            return None
        experts = shape[0] if len(shape) == 3 else 1
        if found.size != experts * shape[-1]:
            raise GGUFError(f"{self.path}: {found.size} importances for {name!r}, whose shape {shape} takes {experts * shape[-1]}")
        return found.reshape(experts, shape[-1])


def read_imatrix(path: str | Path) -> Imatrix:
    """Read a file of either form. Raises GGUFError for a damaged one, for importances that are negative or not finite, and OSError."""
    path = Path(path)
    with path.open("rb") as file:
        modern = file.read(len(MAGIC)) == MAGIC
    imatrix = _read_gguf(path) if modern else _read_binary(path)
    if not imatrix.importances:
        raise GGUFError(f"{path} holds no importances")
    for name, values in imatrix.importances.items():
        if not (np.isfinite(values) & (values >= 0)).all():
            wrong = values[~(np.isfinite(values) & (values >= 0))][0]
            raise GGUFError(f"{path}: the importances of {name!r} have {wrong} among them; they are finite and not negative")
    return imatrix


def _read_gguf(path: Path) -> Imatrix:
    importances: dict[str, Floats] = {}
    with GGUFFile(path) as file:
        for name in file.names:
            if not name.endswith(_SUMS):
                continue
            weight = name.removesuffix(_SUMS)
            if weight + _COUNTS not in file.tensors:
                raise GGUFError(f"{path}: {name!r} has no {weight + _COUNTS!r} beside it")
            counts = np.rint(_f32(file, weight + _COUNTS))
            if not counts.size:
                continue
            sums = _f32(file, name)
            if sums.size % counts.size:
                raise GGUFError(f"{path}: {sums.size} sums of {weight!r} for {counts.size} counts")
            sums = sums.reshape(counts.size, -1)
            # An expert that was never picked: all of its columns matter alike.
            with np.errstate(all="ignore"):
                importances[weight] = np.where(counts[:, None] > 0, sums / counts[:, None], np.float32(1))
        datasets = file.metadata.get("imatrix.datasets")
        chunks = file.metadata.get("imatrix.chunk_count")
    return Imatrix(path, importances, [str(d) for d in datasets.value] if datasets else [], int(chunks.value) if chunks else 0)


def _f32(file: GGUFFile, name: str) -> Floats:
    data, format, _ = file.packed(name)
    if format != "f32":
        raise GGUFError(f"{file.path}: {name!r} is {format}; sums and counts are f32")
    return data.view(np.float32)


def _read_binary(path: Path) -> Imatrix:
    """i32 entries; for each: i32 length and name, i32 calls, i32 count and f32 sums; then perhaps i32 chunks, i32 length and dataset."""
    data, at = path.read_bytes(), 0

    def take(nbytes: int) -> bytes:
        nonlocal at
        if nbytes < 0 or nbytes > len(data) - at:
            raise GGUFError(f"{path} is no imatrix file, or not all of one: at byte {at} it says {nbytes} more, and has {len(data) - at}")
        at += nbytes
        return data[at - nbytes : at]

    def integer() -> int:
        (number,) = struct.unpack("<i", take(4))
        return int(number)

    def text() -> str:
        return take(integer()).decode("utf-8", "replace")

    importances: dict[str, Floats] = {}
    for _ in range(integer()):
        name, calls, count = text(), integer(), integer()
        sums = np.frombuffer(take(4 * max(count, -1)), np.float32)
        importances[name] = sums / np.float32(calls) if calls > 0 else sums
    chunks, datasets = (integer(), [text()]) if at < len(data) else (0, [])
    return Imatrix(path, importances, datasets, chunks)
