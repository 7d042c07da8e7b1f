"""What an instruction's arithmetic is: operand types, the floating-point mode, and `Op`, one row of the tables.

The rooms beside this one hold the tables (`iq.emulator.alu` exports them all). A row is pure: arrays in, array out. What stands around the
arithmetic is the machine's: reading and writing registers, neg, abs, omod, clamp of floats, op_sel, DPP, SDWA, exec. neg and abs are bit
operations on a source (its sign bit), so they fit sources of any type code. numpy's floating-point warnings mean nothing here: run under
`numpy.errstate(all="ignore")`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from iq.errors import IqError

Array = NDArray[Any]
Function = Callable[..., Any]

# How a register (pair) is read and written. 16-bit codes are half a register: the low one unless op_sel or the operand (v0.h) says
# otherwise.
SCALAR_TYPES: Mapping[str, np.dtype[Any]] = {
    **{f"u{bits}": np.dtype(f"u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"i{bits}": np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"f{bits}": np.dtype(f"f{bits // 8}") for bits in (16, 32, 64)},
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "bool": np.dtype(bool),
}

# Sources that are not a register read as a number:
#   mask    a lane mask (VCC or an SGPR pair) as bools [waves, lanes]; where the instruction prints no operand for it, VCC
#   scc     the scalar condition code as bools [waves]
#   lane    the lane's number, u32 [1, lanes]; no operand
#   mix     of v_fma_mix and v_mad_mix: f32, or the half that op_sel and op_sel_hi name, converted exactly; always passed as f32
#   simm16  a 16-bit immediate, sign extended to i32;  uimm16: zero extended to u32
#   bitop3  the modifier of that name, a Python int; no operand
# And results that are none: mask (a comparison's lanes, bool), none (only SCC).

# Elements of a whole register, for dot products: the function gets them on one more, last axis (see `unpack`). The signedness of iu8x4 and
# iu4x8 is chosen by neg_lo: the machine replaces the code by `signed(code, bit)`. op_sel and neg apply to f16x2 and bf16x2, half by half.
VECTOR_TYPES: Mapping[str, tuple[str, int]] = {
    "f16x2": ("f16", 2),
    "bf16x2": ("bf16", 2),
    "u16x2": ("u16", 2),
    "i16x2": ("i16", 2),
    "u8x4": ("u8", 4),
    "i8x4": ("i8", 4),
    "u4x8": ("u4", 8),
    "i4x8": ("i4", 8),
}


class UnsupportedMode(IqError, NotImplementedError):
    """A floating-point mode that the emulator does not have: rounding other than to nearest even."""


def dtype(code: str) -> np.dtype[Any]:
    """The numpy type of a value of a scalar type code."""
    return SCALAR_TYPES[code]


def registers(code: str) -> int:
    """How many 32-bit registers a value takes."""
    return 2 if code in ("u64", "i64", "f64") else 1


def signed(code: str, is_signed: bool) -> str:
    """The element code that an iu8 or iu4 source has by its neg_lo bit; any other code as it is."""
    return code if not code.startswith("iu") else ("i" if is_signed else "u") + code[2:]


def unpack(raw: NDArray[np.uint32], code: str) -> Array:
    """The elements of registers [...] as [..., count], first element in the lowest bits."""
    element, _ = VECTOR_TYPES[code]
    words = np.ascontiguousarray(raw, np.uint32)[..., None]
    if element in ("u4", "i4"):
        nibbles = (words >> np.arange(0, 32, 4, dtype=np.uint32)) & np.uint32(15)
        return nibbles.astype(np.uint8) if element == "u4" else ((nibbles ^ np.uint32(8)).astype(np.int8) - np.int8(8))
    return words.view(SCALAR_TYPES[element])


@dataclass(frozen=True)
class Mode:
    """The floating-point part of the MODE register (ISA manuals, "Mode register").

    denormals_f32, denormals_f16_f64: 0 flush sources and results, 1 flush results, 2 flush sources, 3 keep denormals.
    round_f32, round_f16_f64: 0 to nearest even, the only one supported.
    """

    denormals_f32: int = 3
    denormals_f16_f64: int = 3
    round_f32: int = 0
    round_f16_f64: int = 0

    @classmethod
    def of_float_mode(cls, bits: int) -> Mode:
        """From the FLOAT_MODE byte of a kernel descriptor, which is also MODE[7:0]."""
        return cls((bits >> 4) & 3, (bits >> 6) & 3, bits & 3, (bits >> 2) & 3)

    def denormals(self, code: str) -> int:
        """The denormal setting for a float type code. bf16 goes with f32 (it is handled as its upper half)."""
        return self.denormals_f32 if code in ("f32", "bf16", "mix") else self.denormals_f16_f64

    def require_nearest(self, code: str) -> None:
        """Raise UnsupportedMode unless the type's rounding is to nearest even."""
        rounding = self.round_f32 if code in ("f32", "bf16", "mix") else self.round_f16_f64
        if rounding:
            raise UnsupportedMode(f"rounding mode {rounding} for {code}: the emulator rounds to nearest even only")


@dataclass(frozen=True)
class Op:
    """One instruction's arithmetic.

    result, sources: type codes, the sources in the order the instruction prints them.
    function: takes the sources, broadcastable to [waves, lanes] (SALU: [waves]), and returns an array of the result's dtype; with
        `moded` it takes a Mode and returns that function. Call `bind`.
    saturating: what replaces it when an integer instruction has the clamp bit; None: the instruction has no clamp (a float result is
        clamped to [0, 1] by the machine).
    carries: the function returns (result, lane mask); the second goes to the instruction's second destination (VCC or SGPRs).
    tied: the last source is the destination's old value and is not printed (v_fmac_f32, v_dot4c_i32_i8, s_addk_i32).
    half: "low" or "high": only that half of the destination is written, the other one kept, on every generation (v_fma_mixhi_f16).
    keeps: a 16-bit result keeps the other half on gfx9 too. (gfx9 otherwise zeroes the high half; gfx10 and later keep it.)
    """

    result: str
    sources: tuple[str, ...]
    function: Function
    moded: bool = False
    saturating: Function | None = None
    carries: bool = False
    tied: bool = False
    half: str = ""
    keeps: bool = False

    def bind(self, mode: Mode) -> Function:
        """The function for a floating-point mode."""
        return self.function(mode) if self.moded else self.function
