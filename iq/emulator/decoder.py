"""llvm-objdump's text to instructions: one line of a listing, its mnemonic, operands and modifiers.

The syntax is LLVM's: https://llvm.org/docs/AMDGPUOperandSyntax.html and AMDGPUModifierSyntax.html.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from iq.emulator.faults import UnknownInstruction

# Where the scalar registers that have names lie in the scalar register file. NULL and M0 swap places in gfx11's encoding; by name they
# are the same on every generation.
FLAT_SCRATCH, XNACK_MASK, VCC, TTMP, NULL, M0, EXEC = 102, 104, 106, 108, 124, 125, 126
SCALAR_REGISTERS = 128

# Accumulation registers (a0...) follow the vector registers in the vector register file.
ACCUMULATORS = 256
VECTOR_REGISTERS = 512

# Upper words of the addresses that flat instructions send to workgroup and to private memory; no host address reaches them.
SHARED_APERTURE, PRIVATE_APERTURE = 0x0001_0000, 0x0002_0000

_NAMED: Mapping[str, tuple[int, int]] = {
    "vcc": (VCC, 2),
    "vcc_lo": (VCC, 1),
    "vcc_hi": (VCC + 1, 1),
    "exec": (EXEC, 2),
    "exec_lo": (EXEC, 1),
    "exec_hi": (EXEC + 1, 1),
    "flat_scratch": (FLAT_SCRATCH, 2),
    "flat_scratch_lo": (FLAT_SCRATCH, 1),
    "flat_scratch_hi": (FLAT_SCRATCH + 1, 1),
    "xnack_mask": (XNACK_MASK, 2),
    "xnack_mask_lo": (XNACK_MASK, 1),
    "xnack_mask_hi": (XNACK_MASK + 1, 1),
    "null": (NULL, 2),
    "m0": (M0, 1),
}
_CONSTANTS: Mapping[str, int] = {
    "src_shared_base": SHARED_APERTURE << 32,
    "src_private_base": PRIVATE_APERTURE << 32,
    "src_shared_limit": (SHARED_APERTURE << 32) | 0xFFFF_FFFF,
    "src_private_limit": (PRIVATE_APERTURE << 32) | 0xFFFF_FFFF,
}
_STATES = ("src_scc", "src_vccz", "src_execz", "scc", "vccz", "execz")

_SUFFIX = re.compile(r"(.*?)_(e64_dpp|e32|e64|dpp|sdwa)$")
_REGISTER = re.compile(r"(v|s|a|ttmp)(?:(\d+)|\[(\d+)(?::(\d+))?\])(?:\.([lh]))?")
_WRAPPERS = (
    ("sext", re.compile(r"sext\((.*)\)")),
    ("negate", re.compile(r"-(?![\d.])(.*)")),
    ("negate", re.compile(r"neg\((.*)\)")),
    ("absolute", re.compile(r"\|(.*)\|")),
    ("absolute", re.compile(r"abs\((.*)\)")),
)
# In lit(...) stands a literal that a shorter encoding would also have: 0xffffffff is -1.
_LITERAL = re.compile(r"(-?0x[0-9a-f]+)|lit\((0x[0-9a-f]+)\)")
_LINE = re.compile(r"\t(.*?)\s*// ([0-9A-F]{12,}): ([0-9A-F]{8})")
# Branches to a symbol are printed with its name.
_TO_SYMBOL = re.compile(r"(s_c?branch\w*|s_call_b64 \S+) [^\d\s]\S*")

Modifier = int | str | tuple[int, ...]


@dataclass(frozen=True)
class Operand:
    """An operand.

    kind: "v" (vector and accumulation registers) or "s" (scalar ones) with `register` and `count`; "integer" (an inline constant),
        "literal" (32 bits of the instruction stream, printed in hexadecimal), "float", "address" (a 64-bit constant) with `value`;
        "state" (src_scc and the like), "off", "word" (anything symbolic, such as hwreg(...)) with `text`.
    half: "l" or "h" where the operand is half a register by its spelling (gfx11 and later).
    """

    kind: str
    text: str
    register: int = 0
    count: int = 1
    value: float = 0
    half: str = ""
    negate: bool = False
    absolute: bool = False
    sext: bool = False

    @property
    def is_null(self) -> bool:
        return self.kind == "s" and self.register == NULL


@dataclass(frozen=True)
class Instruction:
    """An instruction.

    mnemonic: without the encoding's suffix. encoding: "e32", "e64", "dpp", "sdwa", or "". second: the other half of a dual-issue pair.
    """

    address: int
    text: str
    mnemonic: str
    encoding: str = ""
    operands: tuple[Operand, ...] = ()
    modifiers: Mapping[str, Modifier] = field(default_factory=dict)
    second: Instruction | None = None

    def bits(self, modifier: str, default: int, count: int) -> tuple[int, ...]:
        """A modifier of one bit per operand, such as op_sel:[0,1]; `default` where it is absent, 0 beyond what is printed."""
        given = self.modifiers.get(modifier)
        if given is None:
            return (default,) * count
        if not isinstance(given, tuple):
            raise self.unknown(f"modifier {modifier}:{given}")
        return (given + (0,) * count)[:count]

    def integer(self, modifier: str, default: int = 0) -> int:
        """A modifier that is a number."""
        value = self.modifiers.get(modifier, default)
        if not isinstance(value, int):
            raise self.unknown(f"modifier {modifier}:{value}")
        return value

    def allow(self, *modifiers: str) -> None:
        """Raise UnknownInstruction for a modifier that is not one of these."""
        for name in self.modifiers:
            if name not in modifiers:
                raise self.unknown(f"modifier {name}")

    def unknown(self, what: str = "") -> UnknownInstruction:
        """The error that says the emulator does not have this."""
        return UnknownInstruction(f"unknown instruction {self.text!r}{': ' + what if what else ''}")


def lines(listing: str) -> list[tuple[int, str]]:
    """(address, text) of each instruction of a listing. Branches have their offset, the low half of the encoding."""
    return [(int(found[2], 16), _numbered(found[1], int(found[3], 16))) for found in map(_LINE.match, listing.splitlines()) if found]


def _numbered(text: str, encoding: int) -> str:
    found = _TO_SYMBOL.fullmatch(text)
    return f"{found[1]} {encoding & 0xFFFF}" if found else text


def decode(address: int, text: str) -> Instruction:
    """An instruction from its text. Raises UnknownInstruction."""
    first, _, second = (part.strip() for part in text.partition(" :: "))
    if not second:
        return _decode(address, text, first)
    one, other = (_decode(address, text, half.replace("v_dual_", "v_", 1)) for half in (first, second))
    return Instruction(address, text, one.mnemonic, one.encoding, one.operands, one.modifiers, other)


def _decode(address: int, text: str, body: str) -> Instruction:
    name, _, rest = body.partition(" ")
    suffix = _SUFFIX.match(name)
    mnemonic, encoding = (suffix[1], suffix[2].removeprefix("e64_")) if suffix else (name, "")
    operands: list[Operand] = []
    modifiers: dict[str, Modifier] = {}
    for piece in _split(rest, ","):
        head, *tail = _split(piece, " ")
        # An instruction without operands may have modifiers: "buffer_inv sc1".
        if not operands and not _is_operand(head):
            tail.insert(0, head)
        else:
            operands.append(_operand(head))
        for word in tail:
            key, colon, value = word.partition(":")
            modifiers[key] = _value(value) if colon else 1
    return Instruction(address, text, mnemonic, encoding, tuple(operands), modifiers)


def _is_operand(word: str) -> bool:
    return ":" not in word.split("[")[0] and not re.fullmatch(r"(sc[01]|nt|glc|slc|dlc)", word)


def _split(text: str, separator: str) -> list[str]:
    """Split outside of brackets and quotes."""
    parts, depth, quoted = [""], 0, False
    for c in text:
        quoted ^= c == '"'
        depth += (c in "[(") - (c in "])")
        if c == separator and depth == 0 and not quoted:
            parts.append("")
        else:
            parts[-1] += c
    return [part.strip() for part in parts if part.strip()]


def _value(text: str) -> Modifier:
    if text.startswith("["):
        return tuple(int(part, 0) for part in text[1:-1].split(","))
    return int(text, 0) if re.fullmatch(r"-?(0x[0-9a-f]+|\d+)", text) else text


def _operand(text: str) -> Operand:
    bare, marks = text, set[str]()
    unwrapping = True
    while unwrapping:
        unwrapping = False
        for mark, pattern in _WRAPPERS:
            if found := pattern.fullmatch(bare):
                bare, unwrapping = found[1], True
                marks.add(mark)
    return replace(_bare(text, bare), negate="negate" in marks, absolute="absolute" in marks, sext="sext" in marks)


def _bare(text: str, bare: str) -> Operand:
    if found := _REGISTER.fullmatch(bare):
        first = int(found[2] or found[3])
        count = int(found[4]) - first + 1 if found[4] else 1
        file, base = {"v": ("v", 0), "a": ("v", ACCUMULATORS), "s": ("s", 0), "ttmp": ("s", TTMP)}[found[1]]
        return Operand(file, text, register=base + first, count=count, half=found[5] or "")
    if bare in _NAMED:
        register, count = _NAMED[bare]
        return Operand("s", text, register=register, count=count)
    if bare in _CONSTANTS:
        return Operand("address", text, value=_CONSTANTS[bare])
    if bare in _STATES:
        return Operand("state", bare.removeprefix("src_"))
    if found := _LITERAL.fullmatch(bare):
        return Operand("literal", text, value=int(found[1] or found[2], 16))
    if re.fullmatch(r"-?\d+", bare):
        return Operand("integer", text, value=int(bare))
    if re.fullmatch(r"-?\d+\.\d+(e[-+]?\d+)?", bare):
        return Operand("float", text, value=float(bare))
    return Operand("off" if bare == "off" else "word", text)
