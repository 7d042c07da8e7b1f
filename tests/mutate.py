"""Changes one instruction of a kernel at a time, runs the kernel under emulation, and says which changes went unnoticed, and why.

    make mutate
    python tests/mutate.py gfx1100/mul_mat_vec.q4_0.2 --sample 200

An instruction is deleted (s_nop in its place), gets another immediate, another source register, or its last two sources swapped; the new
bytes come from llvm-mc and are as long as the old ones. Each mutant runs through IREE's hip driver on the cases of `iq verify --emulate`.

A survivor has a reason when it is of a kind that cannot matter (HARMLESS), when the instruction is never executed in these cases, when it
leaves the registers as it did before the change, or when nothing depends on what it changes: junk in the same lanes goes unnoticed too.
The rest computes something else that the results do not show, and is for the reader to judge. The exit status is 1 when too few changes
are noticed (ENOUGH).
"""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import click
import numpy as np
from assembly import llvm_mc
from elftools.elf.elffile import ELFFile
from numpy.typing import NDArray

from iq import bundle, runtime
from iq.bundle import codeobject
from iq.cache import Cache
from iq.compile.build import Module, compile_module
from iq.compile.compiler import Compilations, Compiler
from iq.emulator import machine
from iq.emulator.compiler import compile_step
from iq.emulator.decoder import SCALAR_REGISTERS, VECTOR_REGISTERS
from iq.emulator.device import EmulatedGpu, Launch, Launcher
from iq.emulator.kernargs import Dim3
from iq.emulator.machine import Options
from iq.emulator.memory import Memory
from iq.emulator.program import LoadedCode
from iq.emulator.registers import Waves
from iq.emulator.statistics import Statistics
from iq.emulator.steps import Result, Step
from iq.emulator.steps import Target as StepTarget
from iq.inspect.disassembly import Objdump
from iq.kernels import KernelSpec
from iq.targets import TARGETS, DeviceId, Target
from iq.verify.devices import APPROXIMATIONS, EMULATED, Opened
from iq.verify.run import Runner

# One of each kind: cross-lane sums, dot4 tiles through LDS, matrix units, bytes in and floats out.
KERNELS = (
    "gfx1100/mul_mat_vec.q4_0.2",
    "gfx90a/mul_mat.q8_0.q8_1",
    "gfx1201/mul_mat.q4_0.float",
    "gfx942/dequantize.q6_k.f16",
    "gfx1030/quantize_q8_1.q8_1.f32",
)

# The share of changes that must be noticed, those that are harmless for a known reason left out.
ENOUGH = 0.8

S_NOP = bytes.fromhex("000080bf")  # the same on every generation
S_TRAP = "s_trap 2"  # no kernel of ours has it; the emulator refuses to execute it

TIMING = r"s_waitcnt|s_wait_|s_delay_alu|s_nop|s_clause"

# Why a change, written "kind instruction", cannot change a result. First match wins.
HARMLESS = (
    (rf"\w+ ({TIMING})", "timing: the emulator finishes each instruction before the next"),
    (r"\w+ (s_setprio|s_sleep|s_set_inst_prefetch|s_inst_prefetch|s_icache|\w*prefetch|s_sendmsg)", "a hint"),
    (r"\w+ (buffer_(gl|inv|wb)|global_(inv|wb))", "caches: emulated memory is coherent"),
    (r"delete s_cbranch_exec", "a shortcut around code whose lanes are all off"),
    (r"\w+ v_div_(scale|fmas)", "a step of a division, whose v_rcp is rounded correctly under emulation and needs it less than hardware's"),
    (r"swap v_sub_f32", "the distance to a rounded value, of which only the size counts"),
)
# These do something else than leave a result in registers.
NO_RESULT = r"s_c?branch|s_barrier|s_endpgm|\w+_(store|write)"
COMMUTATIVE = r"[sv]_(pk_)?(dual_)?(add|mul|fmac|mac|and|or|xor|max|min|bcnt|med3|cmpx?_(eq|ne|lg))|v_mad_[iu]32|v_dot"
NEVER_EXECUTED = "never executed in these cases"
NEVER_TAKEN = "a branch that is never taken in these cases"
SAME = "it leaves the same in the registers in these cases, with the change as without"
UNUSED = "nothing depends on what it changes in these cases: junk in the same lanes goes unnoticed too"

# Places in registers, by name ("v12", "s3", "scc"), of the waves that execute an instruction.
Registers = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Instruction:
    """One instruction: its address in the ELF, its text and its bytes."""

    address: int
    text: str
    size: int


@dataclass(frozen=True)
class Mutant:
    """A change: what was there, what it became, and the bytes of that."""

    instruction: Instruction
    kind: str
    text: str
    code: bytes

    def __str__(self) -> str:
        return f"{self.instruction.address:#x} {self.kind}: {self.instruction.text} -> {self.text}"


def disassemble(elf: bytes) -> list[Instruction]:
    """The instructions of an ELF's kernels."""
    objdump = Objdump.find()
    if isinstance(objdump, str):
        raise click.ClickException(objdump)
    listing = objdump.listing(elf, "rocm", encodings=True)
    kernels = [(k.address, k.address + k.code_bytes) for k in codeobject.CodeObject.parse(elf).kernels]
    found = []
    for line in re.findall(r"^\t(.*?)\s*// ([0-9A-F]+): ((?:[0-9A-F]{8} ?)+)", listing, re.MULTILINE):
        text, address, words = line[0], int(line[1], 16), line[2].split()
        if any(start <= address < end for start, end in kernels):
            found.append(Instruction(address, text, 4 * len(words)))
    return found


def candidates(instruction: Instruction) -> Iterator[tuple[str, str]]:
    """Kinds of change and the texts they lead to."""
    text = instruction.text
    if "::" in text or re.match(TIMING, text):  # of two instructions at once, the operands depend on each other
        return
    # (By a word: the last two bits of a scalar load's address do not count.)
    if offset := re.search(r"(?:offset:|^s_load\S* .*, )(0x[0-9a-f]+|\d+)", text):
        yield "immediate", text[: offset.start(1)] + str(int(offset[1], 0) + 4) + text[offset.end(1) :]
    elif not re.search(r"_b?f(16|32|64)|cndmask", text) and (immediate := re.search(r"(?<=[ ,])(0x[0-9a-f]+|\d+)(?=$|,| )", text)):
        # (As a float, the next integer is the next denormal.)
        yield "immediate", text[: immediate.start()] + hex(int(immediate[0], 0) + 1) + text[immediate.end() :]
    if source := re.search(r"(?<=, )v(\d+)(?=$|,| )", text):
        yield "register", text[: source.start()] + f"v{int(source[1]) + 1}" + text[source.end() :]
    operands = re.fullmatch(r"(\S+ .*, )(\S+), (\S+)", text)
    if operands and operands[2] != operands[3] and not re.match(COMMUTATIVE, text):
        yield "swap", f"{operands[1]}{operands[3]}, {operands[2]}"


def assemble(texts: list[str], processor: str) -> list[bytes | None]:
    """The code of each text; None for what is no instruction of the processor."""
    source = "".join(f"m{i}:\n{text}\n" for i, text in enumerate(texts))
    wave = ["--mattr=+wavefrontsize64"] if processor.startswith("gfx9") else []
    command = [llvm_mc(), "--triple=amdgcn-amd-amdhsa", f"--mcpu={processor}", "--mattr=+real-true16", *wave, "--show-encoding"]
    said = subprocess.run(command, input=source, capture_output=True, text=True, check=False).stdout
    code: list[bytes | None] = [None] * len(texts)
    for label, body in re.findall(r"^m(\d+):\n(.*?)(?=^m\d+:|\Z)", said, re.MULTILINE | re.DOTALL):
        if encoding := re.search(r"encoding: \[(.*?)\]", body):
            code[int(label)] = bytes(int(byte, 16) for byte in encoding[1].split(","))
    return code


def mutants(instructions: list[Instruction], elf: bytes, processor: str) -> list[Mutant]:
    """Every change that can be made."""
    wanted = [(i, kind, text) for i in instructions for kind, text in candidates(i)]
    found = [Mutant(i, "delete", "s_nop 0", S_NOP * (i.size // 4)) for i in instructions if not i.text.startswith("s_nop")]
    shift = file_offset(elf, 0)
    for (instruction, kind, text), code in zip(wanted, assemble([text for _, _, text in wanted], processor), strict=True):
        at = instruction.address + shift
        if code and len(code) == instruction.size and code != elf[at : at + instruction.size]:
            found.append(Mutant(instruction, kind, text, code))
    return found


def file_offset(elf: bytes, address: int) -> int:
    """Where in the file the code at an address lies."""
    text = ELFFile(BytesIO(elf)).get_section_by_name(".text")
    return address - text["sh_addr"] + text["sh_offset"]


class Laboratory:
    """Runs one kernel in altered forms. (It is what a device gets its modules from.)"""

    def __init__(self, target: Target, spec: KernelSpec) -> None:
        self._target, self._spec = target, spec
        with Compilations(Compiler.find()) as compilations:
            self._vmfb = compile_module(Module(target, spec.format, (spec,)), compilations, Cache()).read_bytes()
        self._altered = self._vmfb
        self._options = Options()
        self._launch: Launcher = machine.launch
        [self.elf] = codeobject.find(self._vmfb)

    def target(self, device_id: DeviceId, cpu_flags: frozenset[str]) -> Target:
        return self._target

    def module(self, target: Target, spec: KernelSpec) -> bundle.Module:
        return bundle.Module.of("altered", self._altered, (self._spec,), target)

    def _open(self, target: Target, path: Path) -> tuple[runtime.Device, list[Launch]]:
        self._gpu = EmulatedGpu(f"emulated:{target.id}", self._options, self._launch)
        return Opened(runtime.Device(self._gpu.runtime, provider=self), EMULATED, APPROXIMATIONS, self._gpu.launches)

    def check(self) -> None:
        """Run the kernel as it is, which must pass; limit altered ones to a few times its instructions, as a loop may become endless."""
        if trouble := self.fate():
            raise click.ClickException(f"{self._spec.key} for {self._target.id} fails unaltered: {trouble}")
        self._options = Options(instruction_limit=4 * max(launch.statistics.wave_instructions for launch in self._gpu.launches))

    def fate(self, address: int = 0, code: bytes = b"") -> str:
        """What happens to the kernel with this code at this address: "" when nothing is noticed."""
        at = file_offset(self.elf, address) if code else 0
        self._altered = self._vmfb_with(self.elf[:at] + code + self.elf[at + len(code) :])
        report = Runner(self._target, Path(), self._open).kernel(self._spec, first_failure=True)
        if report.passed:
            return ""
        failure = report.cases[-1].failure
        return failure.partition(":")[0] or next(check.measure for check in report.cases[-1].checks if not check.passed)

    def _vmfb_with(self, elf: bytes) -> bytes:
        """The vmfb with another code object, and with the checksums of a zip, which are read."""
        out = BytesIO()
        with ZipFile(BytesIO(self._vmfb)) as members, ZipFile(out, "w") as altered:
            for name in members.namelist():
                altered.writestr(name, members.read(name).replace(self.elf, elf))
        return out.getvalue()

    def differences(self, mutant: Mutant) -> list[Registers] | None:
        """Each time the instruction is executed: the places in registers where the altered one leaves something else than it does. None
        when the altered one cannot be executed where it is."""
        address, code = mutant.instruction.address, mutant.code
        at = file_offset(self.elf, address)
        altered = LoadedCode.load(self.elf[:at] + code + self.elf[at + len(code) :])
        index = altered.program.index(address)
        altered_step = cache(lambda lanes: compile_step(altered, index, StepTarget(altered.code.processor, lanes)))
        found: list[Registers] = []

        def compare(waves: Waves, step: Step) -> Result | None:
            twin = copy.deepcopy(waves, {id(waves.environment): waves.environment})
            altered_step(waves.lanes)(twin)
            result = step(waves)
            both = [
                ("scc", waves.scc, twin.scc),
                *((f"s{k}", waves.scalar(k), twin.scalar(k)) for k in range(SCALAR_REGISTERS)),
                *((f"v{k}", waves.vector(k), twin.vector(k)) for k in range(VECTOR_REGISTERS)),
            ]
            found.append({name: one != other for name, one, other in both if one is not other and (one != other).any()})
            return result

        return None if self._fate_watched(address, compare) else found

    def junk_goes_unnoticed(self, address: int, where: list[Registers]) -> bool:
        """Whether nothing is noticed when the unaltered instruction leaves junk at places in registers, each time it is executed."""
        for seed in range(2):
            random, executions = np.random.default_rng(seed), iter(where)

            def spoil(
                waves: Waves, step: Step, random: np.random.Generator = random, executions: Iterator[Registers] = executions
            ) -> Result | None:
                result = step(waves)
                for name, places in next(executions).items():
                    if name == "scc":
                        waves.scc = waves.scc ^ places
                        continue
                    register, junk = int(name[1:]), random.integers(1, 1 << 32, places.shape, np.uint32)
                    if name.startswith("v"):
                        waves.write_vector(register, waves.vector(register) ^ junk, places)
                    else:
                        waves.write_scalar(register, np.where(places, waves.scalar(register) ^ junk, waves.scalar(register)))
                return result

            if self._fate_watched(address, spoil):
                return False
        return True

    def _fate_watched(self, address: int, watch: Callable[[Waves, Step], Result | None]) -> str:
        """The fate of the unaltered kernel when `watch` executes the instruction at the address."""

        def launch(
            code: LoadedCode, kernel: str, grid: Dim3, workgroup: Dim3, kernarg: bytes, memory: Memory, options: Options
        ) -> Statistics:
            index, lanes = code.program.index(address), code.kernels[kernel].wave
            step = compile_step(code, index, StepTarget(code.code.processor, lanes))
            code.compiled[lanes][index] = lambda waves: watch(waves, step)
            return machine.launch(code, kernel, grid, workgroup, kernarg, memory, options)

        self._launch = launch
        try:
            return self.fate()
        finally:
            self._launch = machine.launch


def reason_of(mutant: Mutant, laboratory: Laboratory, processor: str) -> str:
    """Why a survivor is harmless; "" when that is not known."""
    instruction = mutant.instruction
    if known := next((reason for pattern, reason in HARMLESS if re.match(pattern, f"{mutant.kind} {instruction.text}")), ""):
        return known
    [trap] = assemble([S_TRAP], processor)
    assert trap is not None
    if not laboratory.fate(instruction.address, trap + S_NOP * (instruction.size // 4 - 1)):
        return NEVER_EXECUTED
    if instruction.text.startswith("s_cbranch"):
        [elsewhere] = assemble([f"{instruction.text.split()[0]} 0x7fff"], processor)
        assert elsewhere is not None
        return "" if laboratory.fate(instruction.address, elsewhere) else NEVER_TAKEN
    if re.match(NO_RESULT, instruction.text):
        return ""
    differences = laboratory.differences(mutant)
    if differences is None:
        return ""
    if not any(differences):
        return SAME
    return UNUSED if laboratory.junk_goes_unnoticed(instruction.address, differences) else ""


def study(name: str, sample: int, seed: int) -> bool:
    """Try the mutants of one kernel and print what came of them; whether enough were noticed."""
    processor, _, key = name.partition("/")
    laboratory = Laboratory(TARGETS[processor], KernelSpec.parse(key))
    laboratory.check()
    everything = mutants(disassemble(laboratory.elf), laboratory.elf, processor)
    chosen = sorted(np.random.default_rng(seed).permutation(len(everything))[:sample])
    fates: Counter[str] = Counter()
    survivors: dict[str, list[Mutant]] = defaultdict(list)
    with click.progressbar([everything[i] for i in chosen], label=name, file=sys.stderr) as bar:
        for mutant in bar:
            fate = laboratory.fate(mutant.instruction.address, mutant.code)
            fates[fate or "unnoticed"] += 1
            if not fate:
                survivors[reason_of(mutant, laboratory, processor)].append(mutant)
    unexplained = len(survivors[""])
    noticed = len(chosen) - fates["unnoticed"]
    share = noticed / max(noticed + unexplained, 1)
    click.echo(f"\n{name}: {noticed} of {len(chosen)} changes noticed ({noticed / len(chosen):.0%}), a sample of {len(everything)};")
    click.echo(
        f"  {share:.1%} of those that are not harmless for a known reason. {', '.join(f'{n} {fate}' for fate, n in fates.most_common())}"
    )
    for reason, those in sorted(survivors.items(), key=lambda item: -len(item[1])):
        click.echo(f"  {len(those)} survivors: {reason or 'UNEXPLAINED: the same result in these cases'}")
        for mutant in those:
            click.echo(f"    {mutant}")
    return share >= ENOUGH


@click.command(help=__doc__)
@click.argument("kernels", nargs=-1, metavar="[TARGET/KEY]...")
@click.option("--sample", default=120, show_default=True, help="Mutants of each kernel.")
@click.option("--seed", default=0, show_default=True)
def main(kernels: tuple[str, ...], sample: int, seed: int) -> None:
    enough = [study(name, sample, seed) for name in kernels or KERNELS]
    sys.exit(not all(enough))


if __name__ == "__main__":
    main()
