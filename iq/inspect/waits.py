"""A static check of AMDGPU machine code: what a load brings is waited for on every path before it is used, and LDS before a barrier.

Memory instructions return when they return; counters say how many are still out, and s_waitcnt (from gfx12 on s_wait_loadcnt and others)
waits until at most so many are. Neither an emulator without timing nor most runs on hardware show a wait that is missing or too weak.

Every kernel is followed through its control-flow graph: a worklist of basic blocks, to a fixpoint over what may still be out. The rules are
those of LLVM's SIInsertWaitcnts and of the ISA manuals ("Manually inserted wait states", "Data dependency resolution"):

- Vector loads return in order, and so do LDS instructions: a wait for n leaves the n youngest out. On gfx9 stores count with the loads.
- Scalar loads return in any order, and flat ones count twice: only a wait for 0 is for them.
- No instruction may read or write a register that a load is still to write; except that until gfx11 vector loads write theirs in order.
  Loads of 16 bits to either half of a register may be out together (LLVM's #194477), but who reads a half waits for both (#157795).
- No LDS instruction of a wave is out when it arrives at a barrier.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest

from iq.bundle import Bundle, codeobject
from iq.bundle.codeobject import CodeObject
from iq.bundle.vmfb import Vmfb
from iq.extras import missing
from iq.inspect.disassembly import Objdump

# No counter holds more: what is older has returned.
_MOST = 64

# Stands for LDS itself among registers: who arrives at a barrier hands it on.
_LDS = "LDS"

_LINE = re.compile(r"\t(.*?)\s*// ([0-9A-F]{12,}): ([0-9A-F]{8})")
_REGISTER = re.compile(
    r"\b(v|s|a|ttmp)(?:(\d+)(?:\.[lh])?\b|\[(\d+)(?::(\d+))?\])|\b(vcc|exec|flat_scratch|xnack_mask)(?:_(lo|hi))?\b|\b(m0)\b"
)

Registers = frozenset[str]
_NONE: Registers = frozenset()


@dataclass(frozen=True)
class Finding:
    """A place that a wait is missing before. kernel, address (in the code object) and text of the instruction; problem: what is wrong."""

    kernel: str
    address: int
    text: str
    problem: str

    def __str__(self) -> str:
        return f"{self.kernel} at {self.address:#x}: {self.text}: {self.problem}"


@dataclass(frozen=True)
class _Counters:
    """Which counter each kind of memory instruction counts in.

    writes_in_order: whether vector loads write registers in the order of issue (LLVM's feature vmem-write-vgpr-in-order).
    """

    load: str
    store: str
    lds: str
    scalar: str
    writes_in_order: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.load, self.store, self.lds, self.scalar)))


_GENERATIONS: Mapping[str, _Counters] = {
    "gfx9": _Counters(load="vmcnt", store="vmcnt", lds="lgkmcnt", scalar="lgkmcnt"),
    "gfx10": _Counters(load="vmcnt", store="vscnt", lds="lgkmcnt", scalar="lgkmcnt"),
    "gfx11": _Counters(load="vmcnt", store="vscnt", lds="lgkmcnt", scalar="lgkmcnt"),
    "gfx12": _Counters(load="loadcnt", store="storecnt", lds="dscnt", scalar="kmcnt", writes_in_order=False),
}


@dataclass(frozen=True)
class Instruction:
    """An instruction of a listing. encoding: its first word."""

    address: int
    text: str
    encoding: int

    @cached_property
    def mnemonic(self) -> str:
        return self.text.partition(" ")[0]

    @cached_property
    def operands(self) -> list[str]:
        """Those of the first instruction of a dual-issue pair; modifiers stand with the last."""
        return re.findall(r"(?:[^,\[]|\[[^\]]*\])+", self.text.partition(" ")[2])

    @cached_property
    def target(self) -> int | None:
        """Where it may branch to."""
        if not self.mnemonic.startswith(("s_cbranch", "s_branch")):
            return None
        offset = self.encoding & 0xFFFF
        return self.address + 4 + 4 * (offset - 0x10000 if offset & 0x8000 else offset)

    @property
    def falls_through(self) -> bool:
        return not self.mnemonic.startswith(("s_endpgm", "s_branch"))


def instructions(listing: str) -> list[Instruction]:
    """Those of a listing of llvm-objdump."""
    found = map(_LINE.match, listing.splitlines())
    return [Instruction(int(line[2], 16), line[1], int(line[3], 16)) for line in found if line]


@dataclass(frozen=True)
class _Effect:
    """What an instruction does to counters.

    uses: registers that it reads, or writes at once. issues: (counter, registers that it will write, whether it is counted in order).
    overwrites: the counter whose loads write registers before it does, "" for none. waits: how many may be left out, by counter.
    problem: why it is not understood, "" where it is.
    """

    uses: Registers = _NONE
    issues: tuple[tuple[str, Registers, bool], ...] = ()
    overwrites: str = ""
    waits: tuple[tuple[str, int], ...] = ()
    problem: str = ""

    @property
    def loads(self) -> Registers:
        return _NONE.union(*(registers for _, registers, _ in self.issues))


def registers(text: str) -> Registers:
    """The registers that a text names, each by itself: "s[2:3]" is s2 and s3; of vector registers both halves, v2.l and v2.h, always."""
    found: set[str] = set()
    for kind, one, first, last, pair, half, m0 in _REGISTER.findall(text):
        if kind:
            numbers = range(int(one or first), int(one or last or first) + 1)
            found.update(f"{kind}{n}{part}" for n in numbers for part in ((".l", ".h") if kind == "v" else ("",)))
        elif pair:
            found.update(f"{pair}_{h}" for h in ([half] if half else ["lo", "hi"]))
        else:
            found.add(m0)
    return frozenset(found)


def _effect(instruction: Instruction, counters: _Counters) -> _Effect:
    name, text = instruction.mnemonic, instruction.text
    if name.startswith(("s_waitcnt", "s_wait_")) and not name.startswith(("s_waitcnt_depctr", "s_wait_alu")):
        return _wait(instruction, counters)
    if name in ("s_barrier", "s_barrier_signal", "s_barrier_signal_isfirst"):
        return _Effect(uses=frozenset({_LDS}) | registers(text.partition(" ")[2]))
    if name.startswith(("s_setpc", "s_swappc", "s_call", "s_rfe", "s_cbranch_g_fork", "s_cbranch_i_fork")):
        return _Effect(problem="control flow that is not followed")
    everything = registers(text.partition(" ")[2])
    if name.startswith("s_cbranch_vcc"):
        return _Effect(uses=registers("vcc"))
    if re.match(r"s_(buffer_|scratch_)?load|s_atomic|s_mem(real)?time|s_sendmsg_rtn", name):
        return _load(instruction, counters.scalar, ordered=False)
    if match := re.match(r"(global|scratch|buffer|flat|tbuffer)_(load|store|atomic)", name):
        space, kind = match[1], match[2]
        returns = kind == "load" or (kind == "atomic" and re.search(r"\b(glc|sc0|TH_ATOMIC_RETURN)\b", text) is not None)
        counter = counters.load if returns else counters.store
        if "_lds" in name or re.search(r"\blds\b", text):
            return _Effect(everything, ((counter, frozenset({_LDS}), True),))
        if space != "flat":
            if not returns:
                return _Effect(everything, ((counter, _NONE, True),))
            return replace(_load(instruction, counter, ordered=True), overwrites=counter if counters.writes_in_order else "")
        if not returns:
            return _Effect(everything, ((counter, _NONE, False), (counters.lds, frozenset({_LDS}), False)))
        load = _load(instruction, counter, ordered=False)
        return _Effect(load.uses, (*load.issues, (counters.lds, load.loads | {_LDS}, False)))
    if name.startswith("ds_"):
        if re.match(r"ds_(gws|param|direct|bvh|ordered)", name):
            return _Effect(problem="an LDS instruction that is not known")
        if re.search(r"read|load|permute|swizzle|_rtn|append|consume", name):
            load = _load(instruction, counters.lds, ordered=True)
            return _Effect(load.uses, ((counters.lds, load.loads | {_LDS}, True),))
        return _Effect(everything, ((counters.lds, frozenset({_LDS}), True),))
    if name.startswith(("image_", "exp", "lds_")):
        return _Effect(problem="a memory instruction that is not known")
    return _Effect(uses=everything)


def _load(instruction: Instruction, counter: str, ordered: bool) -> _Effect:
    """Of a load whose result is its first operand."""
    first, *rest = instruction.operands or [""]
    loads = registers(first)
    if "_d16" in instruction.mnemonic and "_format" not in instruction.mnemonic:
        half = ".h" if "_d16_hi" in instruction.mnemonic else ".l"
        loads = frozenset(register for register in loads if register.endswith(half))
    return _Effect(registers(",".join(rest)), ((counter, loads, ordered),))


def _wait(instruction: Instruction, counters: _Counters) -> _Effect:
    name, text = instruction.mnemonic, instruction.text
    if name == "s_wait_idle":
        return _Effect(waits=tuple((counter, 0) for counter in counters.names))
    if name == "s_waitcnt":  # s_waitcnt vmcnt(1) lgkmcnt(0)
        waits = tuple((counter, int(n)) for counter, n in re.findall(r"(\w+)\((\d+)\)", text))
        return _Effect(waits=waits, problem="" if waits else "a wait that is not understood")
    number = int(text.replace(",", " ").split()[-1], 0)
    if name.startswith("s_waitcnt_"):  # s_waitcnt_vscnt null, 0x0
        return _Effect(waits=((name.removeprefix("s_waitcnt_"), number),))
    both = name.removeprefix("s_wait_").split("_")  # s_wait_loadcnt 0x1, s_wait_loadcnt_dscnt 0x101
    values = [number] if len(both) == 1 else [number >> 8, number & 0x3F]
    return _Effect(waits=tuple(zip(both, values, strict=True)))


@dataclass(frozen=True)
class _Out:
    """What may be out on some path, of one counter.

    queue: the registers of instructions that return in order, the youngest first. unordered: those of the others.
    """

    queue: tuple[Registers, ...] = ()
    unordered: Registers = _NONE

    def issue(self, loads: Registers, ordered: bool) -> _Out:
        if ordered:
            return _Out((loads, *self.queue[: _MOST - 1]), self.unordered)
        return _Out(self.queue, self.unordered | loads)

    def wait(self, count: int) -> _Out:
        # At most `count` are out. One in the queue is out only if all that are younger are, whatever the others do.
        return _Out(self.queue[:count], self.unordered if count else _NONE)

    def join(self, other: _Out) -> _Out:
        queue = tuple(a | b for a, b in zip_longest(self.queue, other.queue, fillvalue=_NONE))
        return _Out(queue, self.unordered | other.unordered)

    @cached_property
    def in_order(self) -> Registers:
        return _NONE.union(*self.queue)


_State = Mapping[str, _Out]


def _after(state: _State, effect: _Effect) -> _State:
    after = dict(state)
    for counter, count in effect.waits:
        after[counter] = after.get(counter, _Out()).wait(count)
    for counter, loads, ordered in effect.issues:
        after[counter] = after.get(counter, _Out()).issue(loads, ordered)
    return after


def _join(one: _State, other: _State) -> _State:
    return {counter: one.get(counter, _Out()).join(other.get(counter, _Out())) for counter in {*one, *other}}


def _problems(state: _State, effect: _Effect) -> Iterable[str]:
    if effect.problem:
        yield effect.problem
    for counter, out in state.items():
        under_way = out.in_order | out.unordered
        overwritable = out.in_order if counter == effect.overwrites else frozenset({_LDS})
        if late := effect.uses & under_way | effect.loads & (under_way - overwritable):
            names = sorted({register.partition(".")[0] for register in late})
            yield f"{', '.join(names)} may still be under way ({counter})"


def check_kernel(name: str, code: Sequence[Instruction], processor: str) -> list[Finding]:
    """The findings of one kernel, which starts with the first instruction of `code`."""
    counters = _GENERATIONS[processor[:-2]]  # gfx90a is of gfx9, gfx1100 of gfx11
    number = {instruction.address: n for n, instruction in enumerate(code)}
    effects = [_effect(instruction, counters) for instruction in code]
    starts = {0} | {n + 1 for n, i in enumerate(code) if i.target is not None} | {number[i.target] for i in code if i.target in number}
    entries: dict[int, _State] = {0: {}}
    worklist = [0]
    findings: list[Finding] = []

    def walk(start: int, record: bool) -> tuple[_State, list[int]]:
        """The state after a basic block, and the blocks that follow."""
        state, n = entries[start], start
        while True:
            instruction, effect = code[n], effects[n]
            if record:
                findings.extend(Finding(name, instruction.address, instruction.text, problem) for problem in _problems(state, effect))
            state = _after(state, effect)
            n += 1
            if instruction.target is not None or not instruction.falls_through or n in starts or n == len(code):
                break
        ways = [number[instruction.target]] if instruction.target in number else []
        outside = (instruction.target is not None and not ways) or (instruction.falls_through and n == len(code))
        if record and outside:
            findings.append(Finding(name, instruction.address, instruction.text, "control flow leaves the kernel"))
        return state, ways + ([n] if instruction.falls_through and n < len(code) else [])

    while worklist:
        state, ways = walk(worklist.pop(), record=False)
        for way in ways:
            joined = _join(entries[way], state) if way in entries else state
            if joined != entries.get(way):
                entries[way] = joined
                worklist.append(way)
    for start in sorted(entries):
        walk(start, record=True)
    return findings


def check(code: CodeObject, listing: str) -> list[Finding]:
    """The findings of all kernels of a code object, given what Objdump.listing says of it."""
    everything = instructions(listing)
    findings = []
    for kernel in code.kernels:
        own = [i for i in everything if kernel.address <= i.address < kernel.address + kernel.code_bytes]
        findings += check_kernel(kernel.name, own, code.processor)
    return findings


def check_vmfb(data: bytes | memoryview, objdump: Objdump) -> list[Finding]:
    """The findings of all kernels in a ROCm vmfb.

    Raises BytecodeError for a malformed code object, RuntimeError when the disassembler fails.
    """
    elves = [elf for executable in Vmfb.parse(data).executables.values() for elf in codeobject.find(executable)]
    return [finding for elf in elves for finding in check(CodeObject.parse(elf), objdump.listing(elf, "rocm"))]


def check_bundle(bundle: Bundle) -> list[Finding] | str:
    """The findings of all kernels of a ROCm bundle; or a sentence that says what this machine lacks to check them. Raises as check_vmfb."""
    if lacking := missing("emulate"):
        return lacking
    objdump = Objdump.find()
    if isinstance(objdump, str):
        return objdump
    return [finding for file in bundle.manifest.files for finding in check_vmfb(bundle.data(file.name), objdump)]
