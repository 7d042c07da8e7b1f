"""Matrix instructions: MFMA (gfx908, gfx90a, gfx942, gfx950) and WMMA (gfx11, gfx12): D = A B + C over the registers of a whole wave.

A row of the tables knows where the elements lie ("Matrix arithmetic instructions" in the CDNA3 ISA, "Wave matrix" in RDNA3 and RDNA4).
Elements of a lane count in the order of its registers and, inside one, from its lowest bits.

Approximate: float products and C are added up in float64, and the sum is rounded once to the result's type. The hardware's order and inner
width are not documented. Integers are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from iq.emulator.alu.floats import flush
from iq.emulator.alu.types import SCALAR_TYPES, Array, unpack
from iq.errors import IqError

Indices = NDArray[np.intp]
Registers = NDArray[np.uint32]  # [waves, registers, lanes]

# 8-bit floats: gfx942 has the "fnuz" ones, later processors those of the Open Compute Project. bf8 is e5m2.
_FNUZ = {"fp8": np.dtype(ml_dtypes.float8_e4m3fnuz), "bf8": np.dtype(ml_dtypes.float8_e5m2fnuz)}
_OCP = {"fp8": np.dtype(ml_dtypes.float8_e4m3fn), "bf8": np.dtype(ml_dtypes.float8_e5m2)}
_ELEMENT_BITS = {"f16": 16, "bf16": 16, "f32": 32, "f64": 64, "i8": 8, "iu8": 8, "iu4": 4, "fp8": 8, "bf8": 8, "i32": 32}


# The smallest normal number of the types that gfx90a flushes.
_SMALLEST = {"f16": 2.0**-14, "bf16": 2.0**-126}


# Waves computed at a time: what fits into a processor's cache.
_TOGETHER = 64


class MatrixOperandError(IqError, ValueError):
    """Registers that a matrix instruction may not be given: gfx11 lanes that have to hold copies but differ."""


@dataclass(frozen=True)
class Modifiers:
    """neg_lo, neg_hi, op_sel (of A, B, C) and clamp, as printed. For iu8 and iu4, neg_lo of A and B means signed; for C, neg_hi is abs."""

    neg_lo: tuple[int, int, int] = (0, 0, 0)
    neg_hi: tuple[int, int, int] = (0, 0, 0)
    op_sel: tuple[int, int, int] = (0, 0, 0)
    clamp: bool = False


@dataclass(frozen=True)
class Layout:
    """Where elements lie: arrays [..., 2] of (lane, element in the lane).

    source: [blocks, M, K], of A; B has its columns where A has its rows. result: [blocks, M], the first column of D (and C); the others
    are in the lanes that follow. copies: lanes l and l % copies have to hold the same A and B; 0 where every lane holds its own.
    """

    source: NDArray[np.intp]
    result: NDArray[np.intp]
    copies: int = 0


@dataclass(frozen=True)
class MatrixOp:
    """One matrix instruction of a processor.

    a, b, d: element types (C's is D's). registers_a, registers_b, registers_d: 32-bit registers a lane gives; lanes: how many lanes.
    spread_d: 16-bit elements of C and D take a register each, in the half that op_sel names (gfx11). flush: with f16 and bf16 sources,
    denormals become zero, in C and D as well (gfx90a; PyTorch's notes on numerical accuracy, MI200).
    """

    a: str
    b: str
    d: str
    layout: Layout = field(repr=False)
    registers_a: int
    registers_b: int
    registers_d: int
    lanes: int = 64
    spread_d: bool = False
    flush: bool = False
    small_floats: Mapping[str, np.dtype[np.generic]] | None = None

    def __call__(
        self, a: Registers, b: Registers, c: Registers, modifiers: Modifiers = Modifiers(), old: Registers | None = None
    ) -> Registers:
        """D's registers. `old`: what D's registers hold before, for the halves that a spread result leaves alone."""
        return self.multiply(self.rows(a, modifiers), self.columns(b, modifiers), c, modifiers, old)

    def rows(self, a: Registers, modifiers: Modifiers) -> Array:
        """A as numbers whose products and sums are exact or nearly so: [waves, blocks, M, K]."""
        return self._by_parts(lambda part: self._source(part, self.a, modifiers, 0), a)

    def columns(self, b: Registers, modifiers: Modifiers) -> Array:
        """B likewise: [waves, blocks, K, N]."""
        return self._by_parts(lambda part: np.ascontiguousarray(self._source(part, self.b, modifiers, 1).swapaxes(2, 3)), b)

    def multiply(self, rows: Array, columns: Array, c: Registers, modifiers: Modifiers, old: Registers | None) -> Registers:
        """D's registers, from what `rows` and `columns` made of A and B."""

        def part(rows: Array, columns: Array, c: Registers, *old: Registers) -> Registers:
            sums = self._sums(np.matmul(rows, columns), self._addends(c, modifiers), modifiers.clamp)
            return self._results(sums, modifiers, *old)

        return self._by_parts(part, rows, columns, c, *([] if old is None else [old]))

    @staticmethod
    def _by_parts(function: Callable[..., Array], *arrays: Array) -> Array:
        """A function of arrays [waves, ...], some waves at a time."""
        waves = len(arrays[0])
        if waves <= _TOGETHER:
            return function(*arrays)
        return np.concatenate([function(*(x[at : at + _TOGETHER] for x in arrays)) for at in range(0, waves, _TOGETHER)])

    @property
    def flushes(self) -> bool:
        """Whether denormals become zero."""
        return self.flush and self.a in _SMALLEST

    @cached_property
    def _source_words(self) -> Indices:
        """Where among the words of a wave's registers those of A lie, and of B transposed: [blocks, M, words of a row]."""
        per_word = max(32 // _ELEMENT_BITS[self.a], 1)
        lane, element = np.moveaxis(self.layout.source[:, :, ::per_word], -1, 0)
        words: Indices = element // per_word * self.lanes + lane
        return words

    @cached_property
    def _result_rows(self) -> Indices:
        """Where the rows of D lie, block by block, when the lanes' elements [elements, lanes] are cut into rows."""
        lane, element = np.moveaxis(self.layout.result, -1, 0)
        rows: Indices = (element * self.lanes + lane) // self.layout.result.shape[1]
        return rows.ravel()

    @cached_property
    def _result_order(self) -> Indices:
        """The reverse of `_result_rows`."""
        return np.argsort(self._result_rows)

    def _require_copies(self, registers: Registers) -> None:
        copies = self.layout.copies
        by_copy = registers.reshape(*registers.shape[:2], -1, copies)
        if (by_copy[:, :, 1:] != by_copy[:, :, :1]).any():
            raise MatrixOperandError(f"lanes {copies} and up must hold copies of the lanes below in A and B of this WMMA")

    def _source(self, registers: Registers, code: str, modifiers: Modifiers, operand: int) -> Array:
        """A, or B transposed."""
        if self.layout.copies:
            self._require_copies(registers)
        low, high = modifiers.neg_lo[operand], modifiers.neg_hi[operand]
        words = _lane_elements(registers, np.dtype(np.uint64) if _ELEMENT_BITS[code] == 64 else np.dtype(np.uint32))
        words = words.reshape(len(registers), -1).take(self._source_words, axis=1)
        if code == "iu4":
            return unpack(words, "i4x8" if low else "u4x8").reshape(*words.shape[:-1], -1).astype(np.float32)
        if self.d == "i32":
            # The sum of at most 64 products of 8 bits is exact in f32.
            return words.view(np.int8 if low or code == "i8" else np.uint8).astype(np.float32)
        if _ELEMENT_BITS[code] == 16 and (low or high):
            words = words ^ np.uint32(0x8000 * low | 0x80000000 * high)
        elements = words.view((self.small_floats or {}).get(code) or SCALAR_TYPES[code]).astype(np.float64)
        return flush(elements, _SMALLEST[code]) if self.flushes else elements

    def _addends(self, c: Registers, modifiers: Modifiers) -> Array:
        """C: [waves, blocks, M, N]."""
        dtype = SCALAR_TYPES[self.d]
        if self.spread_d:
            sums: Array = (c >> np.uint32(16 * modifiers.op_sel[2])).astype(np.uint16).view(dtype)
        else:
            sums = _lane_elements(c, dtype)
        blocks, side = self.layout.result.shape[:2]
        sums = sums.reshape(len(c), -1, side).take(self._result_rows, axis=1).reshape(len(c), blocks, side, side)
        if dtype.kind != "i":
            sums = np.abs(sums) if modifiers.neg_hi[2] else sums
            sums = -sums if modifiers.neg_lo[2] else sums
        return flush(sums) if self.flushes else sums

    def _sums(self, products: Array, c: Array, clamp: bool) -> Array:
        """D of the sums of products."""
        if self.d == "i32":
            exact: Array = products.astype(np.int64) + c
            return (np.clip(exact, -(2**31), 2**31 - 1) if clamp else exact).astype(np.int32)
        result: Array = (products + c).astype(SCALAR_TYPES[self.d])
        return flush(result) if self.flushes else result

    def _results(self, sums: Array, modifiers: Modifiers, old: Registers | None = None) -> Registers:
        """D's registers."""
        side = sums.shape[-1]
        elements = sums.reshape(len(sums), -1, side).take(self._result_order, axis=1).reshape(len(sums), -1, self.lanes)
        if not self.spread_d:
            return _registers_of(elements)
        assert old is not None
        shift = np.uint32(16 * modifiers.op_sel[2])
        halves: Registers = elements.view(np.uint16).astype(np.uint32) << shift
        return halves | (old & ~(np.uint32(0xFFFF) << shift))


def _lane_elements(registers: Registers, dtype: np.dtype[Any]) -> Array:
    """Registers as elements of 16, 32 or 64 bits: [waves, elements of a lane, lanes]."""
    waves, count, lanes = registers.shape
    if dtype.itemsize == 4:
        return np.ascontiguousarray(registers).view(dtype)
    if dtype.itemsize == 8:
        pairs = registers.reshape(waves, count // 2, 2, lanes).swapaxes(2, 3)
        return np.ascontiguousarray(pairs).view(dtype)[..., 0]
    halves = np.ascontiguousarray(registers).view(dtype).reshape(waves, count, lanes, 2).swapaxes(2, 3)
    return np.ascontiguousarray(halves).reshape(waves, 2 * count, lanes)


def _registers_of(elements: Array) -> Registers:
    """The reverse of `_lane_elements`."""
    waves, count, lanes = elements.shape
    if elements.itemsize == 4:
        return elements.view(np.uint32)
    if elements.itemsize == 8:
        words = elements.view(np.uint32).reshape(waves, count, lanes, 2).swapaxes(2, 3)
        return np.ascontiguousarray(words).reshape(waves, 2 * count, lanes)
    pairs = elements.reshape(waves, count // 2, 2, lanes).swapaxes(2, 3)
    return np.ascontiguousarray(pairs).view(np.uint32)[..., 0]


def _indices(*shape: int) -> tuple[NDArray[np.intp], ...]:
    return tuple(np.indices(shape))


def _pairs(lane: Array, element: Array) -> NDArray[np.intp]:
    return np.stack(np.broadcast_arrays(lane, element), axis=-1).astype(np.intp)


def _mfma_layout(side: int, k: int, blocks: int, double: bool) -> Layout:
    """A's row i (B's column) of block b: element k lies in lane i + side (b + blocks (k // per_lane)), `per_lane` of them in a lane.
    D's column is l % side of a lane l; its rows: four to a lane, then the next lanes; f64: one to a lane."""
    per_lane = side * k * blocks // 64
    b, i, kk = _indices(blocks, side, k)
    source = _pairs(i + side * (b + blocks * (kk // per_lane)), kk % per_lane)
    b, row = _indices(blocks, side)
    together = 1 if double else 4  # rows in consecutive registers of a lane
    if side == 4:
        return Layout(source, _pairs(4 * (b + blocks * (row // together)), row % together))
    groups = 64 // side  # lanes that share a column
    register = row // (groups * together) * together + row % together
    per_block = side * side // 64
    return Layout(source, _pairs(side * (row // together % groups), b * per_block + register))


def _wmma_gfx11_layout(k: int, wave: int) -> Layout:
    """A's row i in lane i, all K elements, with copies in the lanes 16 and up; B's columns likewise. D's column is l % 16 of a lane l; its
    rows go round the groups of 16 lanes, register by register."""
    _, i, kk = _indices(1, 16, k)
    _, row = _indices(1, 16)
    groups = wave // 16
    return Layout(_pairs(i, kk), _pairs(16 * (row % groups), row // groups), copies=16)


def _wmma_gfx12_layout(k: int, bits: int) -> Layout:
    """A's row i in the lanes i and i + 16; B's columns likewise. D's column is l % 16 of a lane l, rows 0 to 7 in the lower lanes, 8 to 15
    in the upper ones.

    Of K, elements of 4 and 8 bits have the first half in lane i and the second in lane i + 16; those of 16 bits k 0 to 3 and 8 to 11 in
    lane i, and the others in lane i + 16 (github.com/ROCm/amd_matrix_instruction_calculator, architecture rdna4, wave32).
    """
    _, i, kk = _indices(1, 16, k)
    _, row = _indices(1, 16)
    run = 4 if bits == 16 else k // 2  # elements with consecutive k in a lane
    return Layout(_pairs(i + 16 * (kk // run % 2), kk // (2 * run) * run + kk % run), _pairs(16 * (row // 8), row % 8))


# (side of the square tile, K, blocks), by element type.
_MFMA_GFX9 = {
    "f32": ((32, 1, 2), (16, 1, 4), (4, 1, 16), (32, 2, 1), (16, 4, 1)),
    "f16": ((32, 4, 2), (16, 4, 4), (4, 4, 16), (32, 8, 1), (16, 16, 1)),
    "bf16": ((32, 2, 2), (16, 2, 4), (4, 2, 16), (32, 4, 1), (16, 8, 1)),
    "bf16_1k": ((32, 4, 2), (16, 4, 4), (4, 4, 16), (32, 8, 1), (16, 16, 1)),
    "i8": ((32, 4, 2), (16, 4, 4), (4, 4, 16), (32, 8, 1), (16, 16, 1)),
    "f64": ((16, 4, 1), (4, 4, 4)),
}
# gfx942 and gfx950: bf16 is what _1k was, and i8 and the 8-bit floats are deeper.
_MFMA_GFX942 = {
    **{code: _MFMA_GFX9[code] for code in ("f32", "f16", "f64")},
    "bf16": _MFMA_GFX9["bf16_1k"],
    "i8": ((32, 4, 2), (16, 4, 4), (4, 4, 16), (32, 16, 1), (16, 32, 1)),
    **{f"{a}_{b}": ((32, 16, 1), (16, 32, 1)) for a in ("fp8", "bf8") for b in ("fp8", "bf8")},
}
_MFMA_GFX950 = {"f16": ((32, 16, 1), (16, 32, 1)), "bf16": ((32, 16, 1), (16, 32, 1)), "i8": ((32, 32, 1), (16, 64, 1))}


def _result(code: str) -> str:
    return {"i8": "i32", "f64": "f64"}.get(code, "f32")


def _mfma(shapes: Mapping[str, tuple[tuple[int, int, int], ...]], underscore: bool, **more: object) -> Iterator[tuple[str, MatrixOp]]:
    """Rows by name: v_mfma_f32_32x32x8f16, or with the underscores of gfx942 v_mfma_f32_32x32x8_f16 and v_mfma_f32_32x32x4_2b_f16."""
    for code, tiles in shapes.items():
        a, b = code.split("_") if code.startswith(("fp8", "bf8")) else (code.removesuffix("_1k"),) * 2
        for side, k, blocks in tiles:
            blocks_name = f"_{blocks}b" if underscore and blocks > 1 else ""
            name = f"v_mfma_{_result(code)}_{side}x{side}x{k}{blocks_name}{'_' * underscore}{code}"
            registers = side * k * blocks * _ELEMENT_BITS[a] // (64 * 32)
            results = side * side * blocks * _ELEMENT_BITS[_result(code)] // (64 * 32)
            layout = _mfma_layout(side, k, blocks, double=code == "f64")
            yield name, MatrixOp(a, b, _result(code), layout, registers, registers, results, **more)  # type: ignore[arg-type]


# (result, K, A, B)
_WMMA_TYPES = (
    ("f32", 16, "f16", "f16"),
    ("f32", 16, "bf16", "bf16"),
    ("f16", 16, "f16", "f16"),
    ("bf16", 16, "bf16", "bf16"),
    ("i32", 16, "iu8", "iu8"),
    ("i32", 16, "iu4", "iu4"),
)
_WMMA_GFX12_TYPES = (("i32", 32, "iu4", "iu4"), *(("f32", 16, a, b) for a in ("fp8", "bf8") for b in ("fp8", "bf8")))


def _wmma(types: tuple[tuple[str, int, str, str], ...], gfx12: bool, wave: int) -> Iterator[tuple[str, MatrixOp]]:
    for result, k, a, b in types:
        name = f"v_wmma_{result}_16x16x{k}_{a if a == b and a not in _OCP else f'{a}_{b}'}"
        layout = _wmma_gfx12_layout(k, _ELEMENT_BITS[a]) if gfx12 else _wmma_gfx11_layout(k, wave)
        registers = k * _ELEMENT_BITS[a] // 32 // (2 if gfx12 else 1)
        spread = not gfx12 and _ELEMENT_BITS[result] == 16
        results = 256 * (32 if spread else _ELEMENT_BITS[result]) // (32 * wave)
        yield name, MatrixOp(a, b, result, layout, registers, registers, results, wave, spread_d=spread, small_floats=_OCP)


# By processor, or by generation and lanes of a wave.
TABLES: Mapping[str, Mapping[str, MatrixOp]] = {
    "gfx908": dict(_mfma({code: tiles for code, tiles in _MFMA_GFX9.items() if code not in ("bf16_1k", "f64")}, underscore=False)),
    "gfx90a": dict(_mfma(_MFMA_GFX9, underscore=False, flush=True)),
    "gfx942": dict(_mfma(_MFMA_GFX942, underscore=True, small_floats=_FNUZ)),
    "gfx950": dict(_mfma(_MFMA_GFX942, underscore=True, small_floats=_OCP)) | dict(_mfma(_MFMA_GFX950, underscore=True)),
    "gfx11 wave32": dict(_wmma(_WMMA_TYPES, gfx12=False, wave=32)),
    "gfx11 wave64": dict(_wmma(_WMMA_TYPES, gfx12=False, wave=64)),
    "gfx12 wave32": dict(_wmma(_WMMA_TYPES + _WMMA_GFX12_TYPES, gfx12=True, wave=32)),
}


def matrix(mnemonic: str, processor: str, wave: int) -> MatrixOp | None:
    """The row of an MFMA or WMMA instruction on a processor, with 32 or 64 lanes; None for one that is not here."""
    table = processor if processor in TABLES else f"{processor[:5]} wave{wave}"
    return TABLES.get(table, {}).get(mnemonic)
