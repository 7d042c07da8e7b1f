"""The tables of the emulator's arithmetic hold every instruction of iq's own kernels."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from compiled import module_of
from tiers import MODULES

from iq.bundle import codeobject
from iq.bundle.vmfb import Vmfb
from iq.emulator.alu import COMPARE, DOT, PACKED, SAVEEXEC, SCALAR, VECTOR, matrix
from iq.inspect.disassembly import Objdump, mnemonics
from iq.targets import Target

# What the machine does itself: memory, control, and moving between lanes and registers.
MACHINE = re.compile(
    r"(global|flat|buffer|scratch|ds)_|s_(buffer_)?load|s_(c?branch|endpgm|barrier|wait|nop|delay_alu|clause|code_end|sendmsg|inst_prefetch"
    r"|set_inst_prefetch|getpc|setpc|swappc|getreg|setreg|sleep|setprio|icache|dcache|denorm_mode|round_mode)"
    r"|v_(readlane|readfirstlane|writelane|permlane\w+|swap_b\d+|pk_mov_b32|nop)"
)


def mnemonics_of(elf: bytes, objdump: Objdump) -> Iterator[str]:
    for line in objdump.listing(elf, "rocm").splitlines():
        if line.startswith("\t"):
            yield from mnemonics(line.split("//")[0])


def row_name(mnemonic: str) -> str:
    """A mnemonic as the tables spell it."""
    name = re.sub(r"(_e64)?(_e32|_e64|_dpp8|_dpp|_sdwa)$", "", mnemonic)
    return name.replace("v_dual_", "v_").replace("v_cmpx_", "v_cmp_")


@pytest.mark.parametrize("target", dict.fromkeys(target for target, _ in MODULES), ids=lambda t: t.id)
def test_kernels_need_no_other_instruction(environment: object, target: Target) -> None:
    objdump = Objdump.find()
    assert isinstance(objdump, Objdump), objdump
    known = {*VECTOR, *COMPARE, *SCALAR, *SAVEEXEC, *PACKED, *DOT}
    needed = set()
    for fmt in [fmt for its_target, fmt in MODULES if its_target is target][:3]:
        executables = Vmfb.parse(module_of(target, fmt.name).vmfb).executables.values()
        for elf in (elf for executable in executables for elf in codeobject.find(executable)):
            needed |= {row_name(mnemonic) for mnemonic in mnemonics_of(elf, objdump)}
    arithmetic = {name for name in needed if not MACHINE.match(name)}
    assert len(arithmetic & known) > 60  # of about a hundred
    assert {name for name in arithmetic - known if matrix(name, target.id, target.wave) is None} == set()
