"""MFMA and WMMA of the emulator, against loops over lanes and registers written from the layouts in the ISA manuals, on exact numbers."""

from __future__ import annotations

import re
import subprocess
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from alu_numbers import rounded
from assembly import llvm_mc
from numpy.typing import NDArray

from iq.emulator.alu import MatrixOp, MatrixOperandError, Modifiers, matrix
from iq.emulator.alu.matrix import TABLES

BITS = {"f16": 16, "bf16": 16, "f32": 32, "f64": 64, "i8": 8, "iu8": 8, "iu4": 4, "fp8": 8, "bf8": 8, "i32": 32}
Words = NDArray[np.uint32]


pytestmark = pytest.mark.usefixtures("quiet")


def encode(x: float, code: str, processor: str) -> int:
    """The bits of a number in an element type."""
    if code in ("i8", "iu8", "iu4", "i32"):
        return int(x) & (1 << BITS[code]) - 1
    if code == "bf16":
        return int(np.float32(x).view(np.uint32)) >> 16
    if code in ("fp8", "bf8"):
        fnuz = processor == "gfx942"
        kind = {"fp8": "float8_e4m3fn", "bf8": "float8_e5m2"}[code] + ("uz" if fnuz and code == "fp8" else "fnuz" if fnuz else "")
        return int(np.array(x, getattr(ml_dtypes, kind)).view(np.uint8))
    return int(np.array(x, f"f{BITS[code] // 8}").view(f"u{BITS[code] // 8}"))


def decode(bits: int, code: str) -> float:
    if code == "i32":
        return bits - (1 << 32) if bits >> 31 else bits
    if code == "bf16":
        return float(np.uint32(bits << 16).view(np.float32))
    return float(np.array(bits, f"u{BITS[code] // 8}").view(f"f{BITS[code] // 8}"))


def put(registers: Words, lane: int, element: int, bits: int, size: int) -> None:
    """Set an element of a lane."""
    for part in range(0, size, 32):
        at = element * size + part
        registers[0, at // 32, lane] |= np.uint32((bits >> part & 0xFFFFFFFF) << at % 32 & 0xFFFFFFFF)


def get(registers: Words, lane: int, element: int, size: int) -> int:
    at = element * size
    word = sum(int(registers[0, at // 32 + k, lane]) << 32 * k for k in range(max(1, size // 32)))
    return word >> at % 32 & (1 << size) - 1


# Where the manuals say that a lane's element lies: A's (block, row, k), which for B is (block, column, k), and D's (block, row, column).


# k of a lane's eight 16-bit elements on gfx12, in the lanes 0 to 15 and 16 to 31. As AMD's matrix instruction calculator prints it:
# matrix_calculator.py -a rdna4 -i v_wmma_f32_16x16x16_f16 -w 32 -A -R
GFX12_K = ((0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15))


def mfma_source(side: int, k: int, blocks: int, lane: int, element: int) -> tuple[int, int, int]:
    per_lane = side * k * blocks // 64
    return lane // side % blocks, lane % side, lane // (side * blocks) * per_lane + element


def mfma_result(side: int, double: bool, lane: int, element: int) -> tuple[int, int, int]:
    if side == 4:
        return (lane // 4 % 4, lane // 16, lane % 4) if double else (lane // 4, element, lane % 4)
    if side == 16:
        return (0, 4 * element + lane // 16, lane % 16) if double else (element // 4, 4 * (lane // 16) + element % 4, lane % 16)
    return element // 16, 8 * (element % 16 // 4) + 4 * (lane // 32) + element % 4, lane % 32


def wmma_source(gfx12: bool, k: int, bits: int, lane: int, element: int) -> tuple[int, int, int]:
    if gfx12 and bits == 16:
        return 0, lane % 16, GFX12_K[lane // 16][element]
    return 0, lane % 16, (lane // 16 * (k // 2) + element) if gfx12 else element


def wmma_result(gfx12: bool, wave: int, lane: int, element: int) -> tuple[int, int, int]:
    return 0, (8 * (lane // 16) + element) if gfx12 else (wave // 16 * element + lane // 16), lane % 16


ROWS = [(table, name) for table, rows in TABLES.items() for name in rows]


def shape(name: str, op: MatrixOp) -> tuple[int, int, int]:
    """Side and K by the name; blocks by how many the registers of A hold (whose count the assembler confirms)."""
    side, k = map(int, re.findall(r"_(\d+)x\d+x(\d+)", name)[0])
    blocks = op.registers_a * 32 * 64 // (side * k * BITS[op.a])
    named = re.search(r"_(\d+)b_", name)
    assert named is None or int(named[1]) == blocks
    return side, k, blocks


@pytest.mark.parametrize(("table", "name"), ROWS)
def test_products(table: str, name: str) -> None:
    processor, _, wave_name = table.partition(" wave")
    wave = int(wave_name or 64)
    processor = {"gfx11": "gfx1100", "gfx12": "gfx1201"}.get(processor, processor)
    op = matrix(name, processor, wave)
    assert op is not None and op is TABLES[table][name]
    mfma, gfx12 = "mfma" in name, processor == "gfx1201"
    side, k, blocks = shape(name, op) if mfma else (16, int(name.split("x")[2].split("_")[0]), 1)

    rng = np.random.default_rng(abs(hash(name)) % 1000)
    high = {"iu4": 8, "fp8": 5, "bf8": 5}.get(op.a, 8)
    a = rng.integers(-high if op.a not in ("iu8", "iu4") else 0, high, (blocks, side, k))
    b = rng.integers(-high if op.b not in ("iu8", "iu4") else 0, high, (blocks, side, k))  # by column
    c = rng.integers(-100, 100, (blocks, side, side))

    raw_a, raw_b = (np.zeros((1, n, wave), np.uint32) for n in (op.registers_a, op.registers_b))
    raw_c = np.zeros((1, op.registers_d, wave), np.uint32)
    for values, raw, code in ((a, raw_a, op.a), (b, raw_b, op.b)):
        for lane in range(wave):
            for element in range(raw.shape[1] * 32 // BITS[code]):
                where = mfma_source(side, k, blocks, lane, element) if mfma else wmma_source(gfx12, k, BITS[code], lane, element)
                put(raw, lane, element, encode(values[where], code, processor), BITS[code])
    size = 32 if op.spread_d else BITS[op.d]

    def result(lane: int, element: int) -> tuple[int, int, int]:
        return mfma_result(side, op.d == "f64", lane, element) if mfma else wmma_result(gfx12, wave, lane, element)

    places = {}
    for lane in range(wave):
        for element in range(op.registers_d * 32 // size):
            places[lane, element] = result(lane, element)
            put(raw_c, lane, element, encode(c[result(lane, element)], op.d, processor), size)
    assert sorted(places.values()) == sorted(np.ndindex(blocks, side, side))  # each once

    d = op(raw_a, raw_b, raw_c, old=np.full_like(raw_c, 0xABCD1234))
    assert d.shape == raw_c.shape and d.dtype == np.uint32
    for (lane, element), (block, row, column) in places.items():
        wanted = int(c[block, row, column]) + sum(int(x) * int(y) for x, y in zip(a[block, row], b[block, column], strict=True))
        bits = get(d, lane, element, size)
        if op.spread_d:
            assert bits >> 16 == 0xABCD  # the other half is kept
        got = decode(bits & (1 << BITS[op.d]) - 1, op.d)
        if op.d == "bf16":
            assert got == float(np.float32(wanted).astype(ml_dtypes.bfloat16))
        else:
            assert got == wanted, (lane, element)


def tile(op: MatrixOp, wave: int = 32) -> tuple[Words, Words, Words]:
    a, b, c = (np.zeros((1, n, wave), np.uint32) for n in (op.registers_a, op.registers_b, op.registers_d))
    return a, b, c


def found(name: str, processor: str, wave: int = 32) -> MatrixOp:
    op = matrix(name, processor, wave)
    assert op is not None
    return op


@pytest.mark.parametrize("processor", ["gfx1100", "gfx1201"])
def test_signedness_and_clamp_of_integers(processor: str) -> None:
    op = found("v_wmma_i32_16x16x16_iu8", processor)
    a, b, c = tile(op)
    a[:], b[:] = 0xFFFFFFFF, 0x80808080
    for neg, x, y in (((0, 0, 0), 255, 128), ((1, 0, 0), -1, 128), ((0, 1, 0), 255, -128), ((1, 1, 0), -1, -128)):
        assert (op(a, b, c, Modifiers(neg_lo=neg)).view(np.int32) == 16 * x * y).all()
    c[:] = 0x7FFFFFFF
    assert (op(a, b, c, Modifiers()).view(np.int32) == 2**31 - 1 + 16 * 255 * 128 - 2**32).all()
    assert (op(a, b, c, Modifiers(clamp=True)).view(np.int32) == 2**31 - 1).all()
    four = found("v_wmma_i32_16x16x16_iu4", processor)
    a, b, c = tile(four)
    a[:], b[:] = 0xFFFFFFFF, 0x88888888
    for neg, x, y in (((0, 0, 0), 15, 8), ((1, 0, 0), -1, 8), ((1, 1, 0), -1, -8)):
        assert (four(a, b, c, Modifiers(neg_lo=neg)).view(np.int32) == 16 * x * y).all()


@pytest.mark.parametrize("processor", ["gfx1100", "gfx1201"])
def test_negation_by_halves_and_of_c(processor: str) -> None:
    op = found("v_wmma_f32_16x16x16_f16", processor)
    a, b, c = tile(op)
    a[:], b[:] = 0x40003C00, 0x3C003C00  # even k: 1, odd k: 2; ones
    c.view(np.float32)[:] = -5.0
    for modifiers, wanted in (
        (Modifiers(), 24 - 5),
        (Modifiers(neg_lo=(1, 0, 0)), 8 - 5),
        (Modifiers(neg_hi=(1, 0, 0)), -8 - 5),
        (Modifiers(neg_hi=(0, 1, 0)), -8 - 5),
        (Modifiers(neg_lo=(0, 0, 1)), 24 + 5),
        (Modifiers(neg_hi=(0, 0, 1)), 24 + 5),
        (Modifiers(neg_lo=(0, 0, 1), neg_hi=(0, 0, 1)), 24 - 5),
    ):
        assert (op(a, b, c, modifiers).view(np.float32) == wanted).all(), modifiers


def test_op_sel_of_gfx11_chooses_the_half_of_c_and_d() -> None:
    op = found("v_wmma_f16_16x16x16_f16", "gfx1100")
    a, b, c = tile(op)
    a[:], b[:], c[:] = 0x3C003C00, 0x3C003C00, 0x4000_3C00  # C: 1 below, 2 above
    old = np.full_like(c, 0x1111_2222)
    assert (op(a, b, c, old=old) == (0x1111_0000 | int(np.float16(17).view(np.uint16)))).all()
    assert (op(a, b, c, Modifiers(op_sel=(0, 0, 1)), old) == (0x2222 | int(np.float16(18).view(np.uint16)) << 16)).all()


def test_gfx11_lanes_have_to_hold_copies() -> None:
    op = found("v_wmma_f32_16x16x16_f16", "gfx1100")
    for operand in (0, 1):
        a, b, c = tile(op)
        (a, b)[operand][0, 3, 20] = 1
        with pytest.raises(MatrixOperandError, match="copies"):
            op(a, b, c)


def test_a_sum_is_rounded_once() -> None:
    for name, processor, wave in (("v_wmma_f32_16x16x16_f16", "gfx1201", 32), ("v_mfma_f32_16x16x16_f16", "gfx942", 64)):
        op = found(name, processor, wave)
        a, b, c = tile(op, wave)
        rng = np.random.default_rng(1)
        x, y = ((rng.random((16, 16)) * 8).astype(np.float16) for _ in "ab")
        per_lane = 256 // wave
        for lane in range(wave):
            k = GFX12_K[lane // 16] if processor == "gfx1201" else slice(lane // 16 * per_lane, lane // 16 * per_lane + per_lane)
            a[0, :, lane], b[0, :, lane] = (m[lane % 16, k].copy().view(np.uint32) for m in (x, y))
        c.view(np.float32)[:] = 2.0**12 + 2.0**-11
        d = op(a, b, c).view(np.float32)
        exact = Fraction(float(c.view(np.float32)[0, 0, 0]))
        exact += sum(Fraction(float(p)) * Fraction(float(q)) for p, q in zip(x[0], y[0], strict=True))
        assert float(d[0, 0, 0]) == rounded(exact, "f32")


def test_gfx90a_flushes_halves_and_gfx942_does_not() -> None:
    for name, processor, kept in (("v_mfma_f32_16x16x16f16", "gfx90a", False), ("v_mfma_f32_16x16x16_f16", "gfx942", True)):
        op = found(name, processor, 64)
        a, b, c = tile(op, 64)
        a[:], b[:] = 0x00010001, 0x3C003C00  # denormal ones
        assert (op(a, b, c).view(np.float32) == (16 * 2.0**-24 if kept else 0)).all()
        a[:] = 0
        c[:] = 1  # an f32 denormal
        assert (op(a, b, c) == (1 if kept else 0)).all()
    op = found("v_mfma_f32_16x16x4f32", "gfx90a", 64)
    a, b, c = tile(op, 64)
    c[:] = 1
    assert (op(a, b, c) == 1).all()


def test_waves_are_independent() -> None:
    op = found("v_mfma_i32_16x16x32_i8", "gfx942", 64)
    rng = np.random.default_rng(0)
    a, b, c = (rng.integers(0, 2**32, (5, n, 64), dtype=np.uint32) for n in (op.registers_a, op.registers_b, op.registers_d))
    together = op(a, b, c)
    for wave in range(5):
        one = slice(wave, wave + 1)
        assert (together[one] == op(a[one], b[one], c[one])).all()


def test_what_a_processor_lacks() -> None:
    assert matrix("v_mfma_f32_16x16x16_f16", "gfx90a", 64) is None
    assert matrix("v_mfma_f32_16x16x32_f16", "gfx942", 64) is None
    assert matrix("v_wmma_f32_16x16x16_f16", "gfx1030", 32) is None
    assert matrix("v_wmma_f32_16x16x16_f16", "gfx1201", 64) is None
    assert matrix("v_wmma_f32_16x16x16_fp8_fp8", "gfx1100", 32) is None


@pytest.mark.parametrize("table", TABLES)
def test_names_and_register_counts_are_the_assemblers(table: str) -> None:
    processor, _, wave = table.partition(" wave")
    processor = {"gfx11": "gfx1100", "gfx12": "gfx1201"}.get(processor, processor)

    def registers(first: int, count: int) -> str:
        return f"v[{first}:{first + count - 1}]" if count > 1 else f"v{first}"

    lines = [
        f"{name} {'a' + registers(0, op.registers_d)[1:] if processor == 'gfx908' else registers(0, op.registers_d)},"
        f" {registers(64, op.registers_a)}, {registers(96, op.registers_b)},"
        f" {'a' + registers(128, op.registers_d)[1:] if processor == 'gfx908' else registers(128, op.registers_d)}"
        for name, op in TABLES[table].items()
    ]
    features = ["--mattr=+wavefrontsize64"] if wave == "64" else []
    done = subprocess.run(
        [llvm_mc(), "--triple=amdgcn", f"--mcpu={processor}", *features],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
