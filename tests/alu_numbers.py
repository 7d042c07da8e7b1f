"""Numbers for the tests of the emulator's arithmetic, and the exact arithmetic that it is held against: Python's integers, fractions."""

from __future__ import annotations

import itertools
import math
import random
import struct
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import strategies as st

from iq.emulator.alu import Mode, Op
from iq.emulator.alu.types import dtype

KEEP = Mode()
M32 = 2**32 - 1
PACK = {"f16": "<e", "f32": "<f", "f64": "<d"}
UNSIGNED = {"f16": "<H", "f32": "<I", "f64": "<Q"}
DTYPE = {"f16": np.float16, "f32": np.float32, "f64": np.float64}
# mantissa bits with the hidden one, exponent of the smallest denormal, largest exponent
SHAPE = {"f16": (11, -24, 15), "f32": (24, -149, 127), "f64": (53, -1074, 1023)}


def bits(value: float, code: str) -> int:
    return int(struct.unpack(UNSIGNED[code], struct.pack(PACK[code], value))[0])


def value(pattern: int, code: str) -> float:
    return float(struct.unpack(PACK[code], struct.pack(UNSIGNED[code], pattern))[0])


def rounded(exact: Fraction, code: str, zero: float = 0.0) -> float:
    """The nearest value of a type, ties to even, by integer arithmetic only."""
    if exact == 0:
        return zero
    precision, lowest, highest = SHAPE[code]
    size = abs(exact)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    while Fraction(2) ** exponent > size:
        exponent -= 1
    while Fraction(2) ** (exponent + 1) <= size:
        exponent += 1
    unit = Fraction(2) ** max(exponent - precision + 1, lowest)
    steps, rest = divmod(size, unit)
    steps += rest * 2 > unit or (rest * 2 == unit and steps % 2 == 1)
    result = steps * unit
    limit = Fraction(2) ** (highest + 1)
    return (-1 if exact < 0 else 1) * (math.inf if result >= limit else float(result))


def same(got: Any, wanted: float) -> bool:
    return math.isnan(wanted) if math.isnan(got) else float(got) == wanted and math.copysign(1, got) == math.copysign(1, wanted)


EDGES = {
    "f16": [0, 1, 2, 0x3FF, 0x400, 0x401, 0x3BFF, 0x3C00, 0x3C01, 0x4000, 0x3555, 0x7BFF, 0x7C00, 0x7E00],
    "f32": [
        0,
        1,
        2,
        0x7FFFFF,
        0x800000,
        0x800001,
        0x3F7FFFFF,
        0x3F800000,
        0x3F800001,
        0x40000000,
        0x3EAAAAAB,
        0x7F7FFFFF,
        0x7F800000,
        0x7FC00000,
    ],
    "f64": [
        *(0, 1, 2, (1 << 52) - 1, 1 << 52, (1 << 52) + 1, 0x3FEFFFFFFFFFFFFF, 0x3FF0000000000000, 0x3FF0000000000001),
        *(0x4000000000000000, 0x3FD5555555555555, 0x7FEFFFFFFFFFFFFF, 0x7FF0000000000000, 0x7FF8000000000000),
    ],
}


def edges(code: str) -> list[float]:
    """Zeros, denormals, the neighbours of 1 and of the smallest normal, the largest, infinity and NaN; of both signs."""
    top = 1 << (8 * np.dtype(DTYPE[code]).itemsize - 1)
    return [value(pattern | sign, code) for pattern in EDGES[code] for sign in (0, top)]


def numbers(code: str) -> st.SearchStrategy[float]:
    """Values by their bits, so that all exponents are as likely, the edges, and neighbours of powers of two."""
    width = 8 * np.dtype(DTYPE[code]).itemsize
    return st.one_of(
        st.sampled_from(edges(code)),
        st.integers(0, 2**width - 1).map(lambda pattern: value(pattern, code)),
        st.integers(-64, 64).map(float),
    )


def exact_binary(name: str, a: float, b: float, code: str) -> float:
    if math.isfinite(a) and math.isfinite(b):
        x, y = Fraction(a), Fraction(b)
        if name == "mul":
            return rounded(x * y, code, zero=math.copysign(0.0, math.copysign(1, a) * math.copysign(1, b)))
        if name == "sub":
            b, y = -b, -y
        elif name == "subrev":
            a, x = -a, -x
        return rounded(x + y, code, zero=-0.0 if math.copysign(1, a) + math.copysign(1, b) == -2 and a == b == 0 else 0.0)
    return {"add": a + b, "sub": a - b, "subrev": b - a, "mul": a * b}[name]


def exact_fma(a: float, b: float, c: float, code: str) -> float:
    if not all(map(math.isfinite, (a, b, c))):
        return a * b + c  # infinite or NaN, whatever the rounding
    product = Fraction(a) * Fraction(b)
    negative_zero = math.copysign(1, a) * math.copysign(1, b) < 0 and math.copysign(1, c) < 0 and (product == 0 and c == 0)
    return rounded(product + Fraction(c), code, zero=-0.0 if negative_zero else 0.0)


# The orderings: by the manuals' words, on Python floats.


def larger(a: float, b: float) -> float:
    if math.isnan(a) or math.isnan(b):
        return b if math.isnan(a) else a
    if a == b == 0:
        return a if math.copysign(1, a) > 0 else b
    return max(a, b)


def smaller(a: float, b: float) -> float:
    return -larger(-a, -b)


def nan_or(function: Callable[..., float]) -> Callable[..., float]:
    return lambda *x: math.nan if any(map(math.isnan, x)) else function(*x)


def middle(a: float, b: float, c: float) -> float:
    if any(map(math.isnan, (a, b, c))):
        return smaller(smaller(a, b), c)
    top = larger(larger(a, b), c)
    if same(top, a):
        return larger(b, c)
    return larger(a, c) if same(top, b) else larger(a, b)


def limits(code: str) -> tuple[int, int]:
    bits = int(code[1:])
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if code[0] == "i" else (0, 2**bits - 1)


def wrap(x: int, code: str) -> int:
    low, high = limits(code)
    return (x - low) % (high - low + 1) + low


def clip(x: int, code: str) -> int:
    low, high = limits(code)
    return min(max(x, low), high)


def integer_edges(code: str) -> list[int]:
    """Extremes, what lies around zero, and the counts at which shifts wrap around."""
    low, high = limits(code)
    inner = (-1, 0, 1, 2, 7, 15, 16, 31, 32, 63, 0x7FFF, 0xFFFFFF, 0x800000, high // 3, high // 2, high - 1)
    return sorted({low, low + 1, high} | {x for x in inner if low <= x <= high})


def integers(code: str) -> st.SearchStrategy[int]:
    """Edges, and any."""
    return st.one_of(st.sampled_from(integer_edges(code)), st.integers(*limits(code)))


def array(values: Any, code: str) -> Any:
    """Values of a source as the machine passes them."""
    kind = {"mask": "bool", "scc": "bool", "simm16": "i32", "uimm16": "u32", "lane": "u32"}.get(code, code)
    return np.array(values, dtype(kind))


def some(code: str, rng: random.Random) -> tuple[list[Any], Callable[[], Any]]:
    """A source's edges, and a way to draw others."""
    if code in ("mask", "scc"):
        return [False, True], lambda: rng.random() < 0.5
    if code in DTYPE:
        width = int(code[1:])
        return edges(code), lambda: value(rng.getrandbits(width), code)
    kind = {"simm16": "i16", "uimm16": "u16", "lane": "u8"}.get(code, code)
    return integer_edges(kind), lambda: rng.randint(*limits(kind))


def cases(op: Op, most: int = 1500) -> list[tuple[Any, ...]]:
    """Sources of a row: all combinations of edges, or `most` of them, and as many random ones with a random edge among them."""
    rng = random.Random(0)
    sources = [some(code, rng) for code in op.sources]
    combinations = list(itertools.product(*(known for known, _ in sources)))
    if len(combinations) > most:
        combinations = rng.sample(combinations, most)
    draws = [tuple(rng.choice(known) if rng.random() < 0.2 else draw() for known, draw in sources) for _ in range(most // 5)]
    return combinations + draws


def apply(function: Callable[..., Any], op: Op, sources: list[tuple[Any, ...]]) -> Any:
    """A row's function on lanes of sources."""
    return function(*(array(column, code) for column, code in zip(zip(*sources, strict=True), op.sources, strict=True)))


def apply_one(function: Callable[..., Any], op: Op, sources: tuple[Any, ...]) -> Any:
    """A row's function on one lane, [1, 1]."""
    return function(*(array([[x]], code) for x, code in zip(sources, op.sources, strict=True)))


def holds(table: Mapping[str, Op], name: str, wanted: Callable[..., Any], *, saturated: bool = False) -> None:
    """The row's function is `wanted` on Python's integers, wrapped to the result's type, or saturated under clamp."""
    op = table[name]
    assert (op.saturating is not None) == saturated, f"{name}: clamp"
    lanes = cases(op)
    got = apply(op.bind(Mode()), op, lanes)
    clamped = apply(op.saturating, op, lanes) if op.saturating else got
    assert got.dtype == clamped.dtype == dtype(op.result), (name, got.dtype)
    for result, limited, sources in zip(got.tolist(), clamped.tolist(), lanes, strict=True):
        exact = wanted(*sources)
        assert result == wrap(exact, op.result), (name, sources)
        assert not saturated or limited == clip(exact, op.result), (name, sources)


def leading(x: int, bits: int = 32) -> int:
    return -1 if x == 0 else bits - x.bit_length()


def trailing(x: int) -> int:
    return -1 if x == 0 else (x & -x).bit_length() - 1


def leading_signs(x: int, bits: int = 32) -> int:
    return leading(~x if x < 0 else x, bits)


CONDITIONS: dict[str, Callable[[Any, Any], bool]] = {
    "f": lambda a, b: False,
    "lt": lambda a, b: a < b,
    "eq": lambda a, b: a == b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "ne": lambda a, b: a != b,
    "t": lambda a, b: True,
}
FLOAT_CONDITIONS: dict[str, Callable[[float, float], bool]] = {
    **{name: CONDITIONS[name] for name in ("f", "lt", "eq", "le", "gt", "ge", "t")},
    "lg": lambda a, b: a < b or a > b,
    "o": lambda a, b: not math.isnan(a) and not math.isnan(b),
    "u": lambda a, b: math.isnan(a) or math.isnan(b),
    "nge": lambda a, b: not a >= b,
    "nlg": lambda a, b: not (a < b or a > b),
    "ngt": lambda a, b: not a > b,
    "nle": lambda a, b: not a <= b,
    "neq": lambda a, b: a != b,
    "nlt": lambda a, b: not a < b,
    "tru": lambda a, b: True,
}


def bf16_bits(x: float) -> int:
    """To nearest even, on the bits of the f32."""
    bits = struct.unpack("<I", struct.pack("<f", x))[0]
    return 0x7FC0 if math.isnan(x) else int((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)
