"""Kernels written in assembly, for tests of the emulator: assembled with llvm-mc, linked with the compiler's lld, launched by hand."""

import ctypes
import re
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from iq.emulator.machine import Options, launch
from iq.emulator.memory import Memory
from iq.emulator.program import LoadedCode
from iq.emulator.statistics import Statistics
from iq.inspect.disassembly import Objdump

PROCESSORS = ("gfx906", "gfx90a", "gfx942", "gfx1030", "gfx1100", "gfx1201")
EVERYWHERE = pytest.mark.parametrize("processor", PROCESSORS)
NOTHING = np.zeros(1, np.uint32)
WAVE64 = ("gfx906", "gfx908", "gfx90a", "gfx942", "gfx950")


def lanes(processor: str) -> int:
    return 64 if processor in WAVE64 else 32


def llvm_mc() -> str:
    """The assembler of the LLVM whose disassembler is used (both in the same package); conftest.py checks that it is there."""
    objdump = Objdump.find()
    assert isinstance(objdump, Objdump), objdump
    path = Path(objdump.executable)
    return str(path.with_name(path.name.replace("llvm-objdump", "llvm-mc")))


def _lld() -> str:
    import iree.compiler as compiler

    return str(Path(compiler.__path__[0]) / "_mlir_libs" / "iree-lld")


def assemble(
    text: str,
    processor: str,
    *,
    lds: int = 0,
    scratch: int = 0,
    workgroup: tuple[int, int, int] = (64, 1, 1),
    vgprs: int = 64,
    mode: str = "",
) -> bytes:
    """A code object with the kernel `test`, whose s[0:1] is the address of its arguments and s2 (gfx12: ttmp9) its workgroup's number."""
    wave32 = lanes(processor) == 32
    before_gfx11 = processor.startswith(("gfx9", "gfx10"))
    scratch_lines = [f".amdhsa_private_segment_fixed_size {scratch}"]
    if scratch and processor in ("gfx90a", "gfx1030"):
        scratch_lines += [".amdhsa_user_sgpr_private_segment_buffer 1"]
    source = f"""
.amdgcn_target "amdgcn-amd-amdhsa--{processor}"
.text
.globl test
.p2align 8
.type test,@function
test:
{text}
.Lend:
.size test, .Lend-test
.p2align 6
.rodata
.amdhsa_kernel test
  .amdhsa_group_segment_fixed_size {lds}
  {chr(10).join(scratch_lines)}
  .amdhsa_kernarg_size 64
  .amdhsa_user_sgpr_kernarg_segment_ptr 1
  .amdhsa_system_sgpr_workgroup_id_x 1
  {".amdhsa_wavefront_size32 1" if wave32 else ""}
  {".amdhsa_accum_offset 64" if processor in ("gfx90a", "gfx942", "gfx950") else ""}
  .amdhsa_next_free_vgpr {vgprs}
  .amdhsa_next_free_sgpr 64
  {".amdhsa_reserve_flat_scratch 0" if before_gfx11 and processor not in ("gfx942", "gfx950") else ""}
  {mode}
.end_amdhsa_kernel
.amdgpu_metadata
amdhsa.version: [1, 2]
amdhsa.kernels:
  - .name: test
    .symbol: test.kd
    .vgpr_count: {vgprs}
    .sgpr_count: 64
    .group_segment_fixed_size: {lds}
    .private_segment_fixed_size: {scratch}
    .wavefront_size: {32 if wave32 else 64}
    .kernarg_segment_size: 64
    .kernarg_segment_align: 8
    .max_flat_workgroup_size: 1024
    .reqd_workgroup_size: {list(workgroup)}
.end_amdgpu_metadata
"""
    with TemporaryDirectory() as folder:
        object_file, linked = Path(folder, "test.o"), Path(folder, "test.hsaco")
        command = [llvm_mc(), "-triple=amdgcn-amd-amdhsa", f"-mcpu={processor}", "-mattr=+real-true16", "-filetype=obj"]
        done = subprocess.run([*command, "-o", object_file], input=source, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        subprocess.run([_lld(), "-flavor", "gnu", "-shared", "-o", linked, object_file], check=True)
        return linked.read_bytes()


# The mnemonics that every generation spells its own way, as gfx9 spells them.
_RENAMED = {
    "gfx10": {"v_add_u32": "v_add_nc_u32", "v_sub_u32": "v_sub_nc_u32"},
    "gfx11": {
        "v_add_u32": "v_add_nc_u32", "v_sub_u32": "v_sub_nc_u32", "global_load_dword": "global_load_b32",
        "global_store_dword": "global_store_b32", "s_load_dwordx2": "s_load_b64", "s_load_dwordx4": "s_load_b128",
        "ds_write_b32": "ds_store_b32", "ds_read_b32": "ds_load_b32", "global_atomic_add": "global_atomic_add_u32",
    },
}  # fmt: skip
_RENAMED["gfx12"] = {**_RENAMED["gfx11"], "s_add_u32": "s_add_co_u32"}


def spelled(text: str, processor: str) -> str:
    """gfx9's assembly in another generation's spelling, with EXEC, VCC, {b} and {n} of the wave's size."""
    wave32 = lanes(processor) == 32
    for name, value in {
        "exec": "exec_lo" if wave32 else "exec",
        "vcc": "vcc_lo" if wave32 else "vcc",
        "b": "b32" if wave32 else "b64",
    }.items():
        text = text.replace("{" + name + "}", value)
    text = re.sub(r"\{s(\d+)\}", lambda m: f"s{m[1]}" if wave32 else f"s[{m[1]}:{int(m[1]) + 1}]", text)
    renamed = _RENAMED.get(processor[:5], {})
    return re.sub(r"\b[a-z]+_\w+", lambda m: renamed.get(m[0], m[0]), text)


def prologue(processor: str, workgroup: int, pointers: str = "s[0:1]", number: str = "s2") -> str:
    """s[8:9]: the input, s[10:11]: the output, s12: the workgroup's number, v1: 4 times the work item's number in the grid."""
    return f"""
    s_load_dwordx4 s[8:11], {pointers}, 0x0
    s_mov_b32 s12, {"ttmp9" if processor.startswith("gfx12") else number}
    s_mul_i32 s13, s12, {workgroup}
    v_add_u32 v1, s13, v0
    v_lshlrev_b32 v1, 2, v1
    s_waitcnt_all
    """.replace("s_waitcnt_all", "s_wait_kmcnt 0x0" if processor.startswith("gfx12") else "s_waitcnt lgkmcnt(0)")


class Kernel:
    """An assembled kernel on a memory of its own."""

    def __init__(self, text: str, processor: str, *, workgroup: int = 64, store: bool = True, **more: Any) -> None:
        """text: between the prologue and, with `store`, the storing of v2 to the output at the work item's place."""
        end = "global_store_dword v1, v2, s[10:11]\n" if store else ""
        pointers, number = ("s[4:5]", "s6") if more.get("scratch") and processor in ("gfx90a", "gfx1030") else ("s[0:1]", "s2")
        body = prologue(processor, workgroup, pointers, number) + text + "\n" + end + "s_endpgm\n"
        self.elf = assemble(spelled(body, processor), processor, workgroup=(workgroup, 1, 1), **more)
        self.code = LoadedCode.load(self.elf)
        self.workgroup = workgroup
        self.memory = Memory()
        self.statistics = Statistics()

    def put(self, array: NDArray[Any]) -> int:
        address = self.memory.allocate(max(array.nbytes, 1))
        ctypes.memmove(address, np.ascontiguousarray(array).ctypes.data, array.nbytes)
        return address

    def __call__(self, given: NDArray[Any], shape: int, *, groups: int = 1, seed: int = 0, limit: int = 1_000_000) -> NDArray[np.uint32]:
        """Run it on an input; the output as `shape` words."""
        source, output = self.put(given), self.put(np.zeros(shape, np.uint32))
        arguments = np.array([source, output], np.uint64).tobytes() + bytes(48)
        try:
            self.statistics = launch(
                self.code, "test", (groups, 1, 1), (self.workgroup, 1, 1), arguments, self.memory, Options(seed, limit)
            )
            found = np.empty(shape, np.uint32)
            ctypes.memmove(found.ctypes.data, output, found.nbytes)
            return found
        finally:
            self.memory.free(source)
            self.memory.free(output)
