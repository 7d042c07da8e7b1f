"""Matrix instructions: MFMA (gfx908, gfx90a, gfx942, gfx950) and WMMA (gfx11, gfx12): D = A B + C over the registers of a whole wave.

A row of the tables knows where the elements lie ("Matrix arithmetic instructions" in the CDNA3 ISA, "Wave matrix" in RDNA3 and RDNA4).
Lanes below are l, registers r, elements within a lane e, in the order of registers and, inside one, from its lowest bits.

Approximate: a float sum starts from C and adds the products in the order of k, rounded to f32 each time (f64 in f64); with a 16-bit
result it is rounded to that at the end. The hardware's order and inner width are not documented. Integers are exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from iq.emulator.alu.floats import flush, fma32, fma64
from iq.emulator.alu.types import SCALAR_TYPES, Array
from iq.errors import IqError

Registers = NDArray[np.uint32]  # [waves, lanes, registers]

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
    """Where elements lie: each array [..., 2] of (lane, element in the lane).

    a: [blocks, M, K]; b: [blocks, K, N]; d (and C): [blocks, M, N].
    copies: lanes l and l % copies have to hold the same A and B; 0 where every lane holds its own.
    """

    a: NDArray[np.intp]
    b: NDArray[np.intp]
    d: NDArray[np.intp]
    copies: int = 0


@dataclass(frozen=True)
class MatrixOp:
    """One matrix instruction of a processor.

    a, b, d: element types (C's is D's). registers_a, registers_b, registers_d: 32-bit registers a lane gives. spread_d: 16-bit elements of
    C and D take a register each, in the half that op_sel names (gfx11). flush: with f16
    and bf16 sources, denormals become zero, in C and D as well (gfx90a; PyTorch's notes on numerical accuracy, MI200).
    """

    a: str
    b: str
    d: str
    layout: Layout = field(repr=False)
    registers_a: int
    registers_b: int
    registers_d: int
    spread_d: bool = False
    flush: bool = False
    small_floats: Mapping[str, np.dtype[np.generic]] | None = None

    def __call__(self, a: Registers, b: Registers, c: Registers, old: Registers, modifiers: Modifiers = Modifiers()) -> Registers:
        """D's registers. `old`: what D's registers hold before, for the halves that a gfx11 f16 result leaves alone."""
        if self.layout.copies:
            self._require_copies(a, b)
        if len(a) > _TOGETHER:
            parts = [slice(at, at + _TOGETHER) for at in range(0, len(a), _TOGETHER)]
            return np.concatenate([self(a[p], b[p], c[p], old[p], modifiers) for p in parts])
        left = _gathered(self._elements(a, self.a, modifiers, 0), self.layout.a)
        right = _gathered(self._elements(b, self.b, modifiers, 1), self.layout.b)
        sums = _gathered(self._sums_in(c, modifiers), self.layout.d)
        return self._sums_out(self._multiply(left, right, sums, modifiers.clamp), old, modifiers)

    @property
    def flushes(self) -> bool:
        """Whether denormals become zero."""
        return self.flush and self.a in _SMALLEST

    def _require_copies(self, *operands: Registers) -> None:
        for x in operands:
            first = x[:, : self.layout.copies]
            if any((x[:, at : at + self.layout.copies] != first).any() for at in range(self.layout.copies, x.shape[1], self.layout.copies)):
                raise MatrixOperandError(f"lanes {self.layout.copies} and up must hold copies of the lanes below in A and B of this WMMA")

    def _elements(self, registers: Registers, code: str, modifiers: Modifiers, operand: int) -> Array:
        """A lane's elements on the last axis."""
        x = np.ascontiguousarray(registers)
        low, high = modifiers.neg_lo[operand], modifiers.neg_hi[operand]
        if code == "iu4":
            nibbles = ((x[..., None] >> np.arange(0, 32, 4, dtype=np.uint32)) & np.uint32(15)).reshape(*x.shape[:2], -1).astype(np.int8)
            return (nibbles ^ 8) - 8 if low else nibbles
        if code == "iu8":
            return x.view(np.int8 if low else np.uint8)
        if _ELEMENT_BITS[code] == 16:
            x = x ^ np.uint32(0x8000 * low | 0x80000000 * high)
        dtype = (self.small_floats or {}).get(code) or SCALAR_TYPES[code]
        elements: Array = x.view(dtype)
        return np.where(np.abs(elements.astype(np.float32)) < _SMALLEST[code], dtype.type(0), elements) if self.flushes else elements

    def _sums_in(self, c: Registers, modifiers: Modifiers) -> Array:
        dtype = SCALAR_TYPES[self.d]
        if self.spread_d:
            c = c >> np.uint32(16 * modifiers.op_sel[2])
            sums: Array = c.astype(np.uint16).view(dtype)
        else:
            sums = np.ascontiguousarray(c).view(dtype)
        if dtype.kind != "i":
            sums = np.abs(sums) if modifiers.neg_hi[2] else sums
            sums = -sums if modifiers.neg_lo[2] else sums
        return flush(sums) if self.flushes else sums

    def _sums_out(self, sums: Array, old: Registers, modifiers: Modifiers) -> Registers:
        waves, lanes = old.shape[:2]
        per_lane = sums[0].size // lanes
        order = np.argsort((self.layout.d[..., 0] * per_lane + self.layout.d[..., 1]).ravel())
        d = sums.reshape(waves, -1).take(order, axis=1).reshape(waves, lanes, per_lane)
        if not self.spread_d:
            return d.view(np.uint32)
        shift = np.uint32(16 * modifiers.op_sel[2])
        halves: Registers = d.view(np.uint16).astype(np.uint32) << shift
        return halves | (old & ~(np.uint32(0xFFFF) << shift))

    def _multiply(self, a: Array, b: Array, c: Array, clamp: bool) -> Array:
        """a [waves, blocks, M, K], b [waves, blocks, K, N], c [waves, blocks, M, N]."""
        if self.d == "i32":
            # Sums of at most 64 products of 8 bits are exact in f32.
            exact: Array = np.matmul(a.astype(np.float32), b.astype(np.float32)).astype(np.int64) + c
            exact = np.clip(exact, -(2**31), 2**31 - 1) if clamp else exact
            return exact.astype(np.int32)
        wide = np.float64 if self.d == "f64" else np.float32
        total = c.astype(wide)
        # k first, so that each step reads memory in order
        columns = np.ascontiguousarray(np.moveaxis(a, -1, 0), wide)[..., :, None]
        rows = np.ascontiguousarray(np.moveaxis(b, -2, 0), wide)[..., None, :]
        for column, row in zip(columns, rows, strict=True):
            if self.d == "f64":
                total = fma64(column, row, total)
            elif self.a == "f32":
                total = fma32(column, row, total)
            else:
                total = total + column * row  # the product of two narrower floats is exact
        result: Array = (flush(total) if self.flushes else total).astype(SCALAR_TYPES[self.d])
        return result


def _gathered(elements: Array, places: NDArray[np.intp]) -> Array:
    """A matrix [waves, ...] from the lanes' elements [waves, lanes, elements]."""
    flat = places[..., 0] * elements.shape[2] + places[..., 1]
    matrices: Array = elements.reshape(elements.shape[0], -1).take(flat, axis=1)
    return matrices


def _indices(*shape: int) -> tuple[NDArray[np.intp], ...]:
    return tuple(np.indices(shape))


def _pairs(lane: Array, element: Array) -> NDArray[np.intp]:
    return np.stack(np.broadcast_arrays(lane, element), axis=-1).astype(np.intp)


def _mfma_layout(side: int, k: int, blocks: int, double: bool) -> Layout:
    """A's row i (B's column) of block b: element k lies in lane i + side (b + blocks (k // per_lane)), `per_lane` of them in a lane.
    D's column is l % side; its rows: four to a lane, then the next lanes; f64: one to a lane."""
    per_lane = side * k * blocks // 64
    b, i, kk = _indices(blocks, side, k)
    a = _pairs(i + side * (b + blocks * (kk // per_lane)), kk % per_lane)
    b, row, column = _indices(blocks, side, side)
    together = 1 if double else 4  # rows in consecutive registers of a lane
    if side == 4:
        d = _pairs(column + 4 * (b + blocks * (row // together)), row % together)
    else:
        groups = 64 // side  # lanes that share a column
        register = row // (groups * together) * together + row % together
        per_block = side * side // 64
        d = _pairs(column + side * (row // together % groups), b * per_block + register)
    return Layout(a, a.transpose(0, 2, 1, 3), d)


def _wmma_gfx11_layout(k: int, wave: int) -> Layout:
    """A's row i in lane i, all K elements, with copies in the lanes 16 and up; B's columns likewise. D's column is l % 16; its rows go
    round the groups of 16 lanes, register by register."""
    _, i, kk = _indices(1, 16, k)
    a = _pairs(i, kk)
    _, row, column = _indices(1, 16, 16)
    groups = wave // 16
    return Layout(a, a.transpose(0, 2, 1, 3), _pairs(column + 16 * (row % groups), row // groups), copies=16)


def _wmma_gfx12_layout(k: int) -> Layout:
    """A's row i in the lanes i (first half of K) and i + 16 (second half); B's columns likewise. D's column is l % 16, rows 0 to 7 in the
    lower lanes, 8 to 15 in the upper ones."""
    _, i, kk = _indices(1, 16, k)
    a = _pairs(i + 16 * (kk // (k // 2)), kk % (k // 2))
    _, row, column = _indices(1, 16, 16)
    return Layout(a, a.transpose(0, 2, 1, 3), _pairs(column + 16 * (row // 8), row % 8))


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
        layout = _wmma_gfx12_layout(k) if gfx12 else _wmma_gfx11_layout(k, wave)
        registers = k * _ELEMENT_BITS[a] // 32 // (2 if gfx12 else 1)
        spread = not gfx12 and _ELEMENT_BITS[result] == 16
        results = 256 * (32 if spread else _ELEMENT_BITS[result]) // (32 * wave)
        yield name, MatrixOp(a, b, result, layout, registers, registers, results, spread_d=spread, small_floats=_OCP)


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
