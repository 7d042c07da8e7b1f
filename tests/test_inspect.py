"""Reading compiled kernels back: code objects, instruction classes, and what is said where something cannot be known."""

import struct
from collections.abc import Mapping
from pathlib import Path

import pytest

from iq.bundle import codeobject
from iq.bundle.codeobject import CodeObject
from iq.bundle.vmfb import Vmfb
from iq.cache import Cache
from iq.compile.build import Module, compile_module
from iq.compile.compiler import Compilations, Compiler
from iq.errors import BytecodeError, ManifestError
from iq.inspect import Report, inspect
from iq.inspect.classes import classify, ptx_mixes
from iq.inspect.disassembly import Objdump
from iq.kernels import KernelSpec, plan
from iq.targets import TARGETS

SPEC = KernelSpec.parse("mul_mat_vec.q4_0.2")
# The same on the GPU targets here.
QUANTIZE, MATVEC = (dispatch.name for dispatch in plan(SPEC, TARGETS["gfx942"]))
CUDA_MATVEC = plan(SPEC, TARGETS["sm_90"])[-1].name
WAVES = 4


@pytest.fixture(scope="session")
def vmfbs(environment: Path) -> Mapping[str, Path]:
    """One kernel for each of some targets: in the cache, under its name in a vmfb."""
    with Compilations(Compiler.find()) as compilations:
        return {
            t: compile_module(Module(TARGETS[t], "q4_0", (SPEC,)), compilations, Cache())
            for t in ("gfx942", "gfx1100", "sm_80", "x86-64-v3")
        }


def elf_of(vmfb: Path) -> bytes:
    [executable] = Vmfb.parse(vmfb.read_bytes()).executables.values()
    [elf] = codeobject.find(executable)
    return elf


def report_of(vmfb: Path) -> Report:
    [report] = inspect(vmfb)
    assert report.functions == (SPEC.key,)
    return report


# ---- Code objects


@pytest.mark.parametrize("target", ["gfx942", "gfx1100"])
def test_code_object(vmfbs: Mapping[str, Path], target: str) -> None:
    code = CodeObject.parse(elf_of(vmfbs[target]))
    assert code.processor == target
    assert str(code.device_id) == target
    kernels = {k.name: k for k in code.kernels}
    assert set(kernels) == {QUANTIZE, MATVEC}
    kernel = kernels[MATVEC]
    wave = TARGETS[target].wave
    assert kernel.wave == wave
    assert kernel.workgroup == (wave * WAVES, 1, 1)
    assert (kernel.vgpr_spills, kernel.sgpr_spills, kernel.scratch) == (0, 0, 0)
    assert kernel.kernarg >= 4 * 8 + 3 * 4  # four buffers and three sizes
    assert 16 < kernel.vgprs < 256
    assert 400 < kernel.code_bytes < len(code.elf)


def test_features_pinned_in_the_elf_header(vmfbs: Mapping[str, Path]) -> None:
    elf = bytearray(elf_of(vmfbs["gfx942"]))
    (flags,) = struct.unpack_from("<I", elf, 48)
    code = CodeObject.parse(bytes(elf))
    assert (code.sramecc, code.xnack) == ("any", "any")
    # EF_AMDGPU_FEATURE_SRAMECC_ON_V4, EF_AMDGPU_FEATURE_XNACK_OFF_V4
    struct.pack_into("<I", elf, 48, flags & ~0xF00 | 0xC00 | 0x200)
    code = CodeObject.parse(bytes(elf))
    assert (code.sramecc, code.xnack) == ("on", "off")
    assert str(code.device_id) == "gfx942:sramecc+:xnack-"


def test_malformed_code_objects(vmfbs: Mapping[str, Path]) -> None:
    elf = elf_of(vmfbs["gfx942"])
    for data in (
        b"",
        b"\x7fELF",
        elf[:100],
        elf[:1500],
        elf.replace(b"AMDGPU\0", b"NVIDIA\0"),
        elf.replace(b".vgpr_count", b".vgpr_c0unt"),
    ):
        with pytest.raises(BytecodeError, match="malformed code object"):
            CodeObject.parse(data)
    with pytest.raises(BytecodeError, match="EF_AMDGPU_MACH 0xff"):
        codeobject.device_id(elf[:48] + b"\xff\0\0\0" + elf[52:])


def test_several_code_objects_in_one_executable(vmfbs: Mapping[str, Path]) -> None:
    one, two = elf_of(vmfbs["gfx942"]), elf_of(vmfbs["gfx1100"])
    assert codeobject.find(b"header" + one + b"\0" * 7 + two + b"rest") == [one, two]
    assert codeobject.find(b"nothing") == []


# ---- Instruction classes


@pytest.mark.parametrize(
    ("isa", "mnemonic", "expected"),
    [
        ("rocm", "v_dot4c_i32_i8_e32", "dot"),
        ("rocm", "v_dot4_i32_iu8", "dot"),
        ("rocm", "v_mfma_f32_16x16x16_f16", "mfma"),
        ("rocm", "v_smfmac_i32_16x16x64_i8", "mfma"),
        ("rocm", "v_wmma_f32_16x16x16_f16", "wmma"),
        ("rocm", "v_swmmac_f32_16x16x32_f16", "wmma"),
        ("rocm", "v_accvgpr_read_b32", "agpr move"),
        ("rocm", "v_dual_mov_b32", "valu"),
        ("rocm", "v_fma_mix_f32", "valu"),
        ("rocm", "s_mul_i32", "salu"),
        ("rocm", "s_load_b256", "scalar load"),
        ("rocm", "s_waitcnt", "wait"),
        ("rocm", "s_wait_loadcnt", "wait"),
        ("rocm", "s_barrier_signal", "barrier"),
        ("rocm", "s_cbranch_execz", "branch"),
        ("rocm", "global_load_dwordx4", "global load 128"),
        ("rocm", "global_load_dwordx3", "global load 96"),
        ("rocm", "buffer_load_dword", "global load 32"),
        ("rocm", "global_load_ushort", "global load 16"),
        ("rocm", "global_load_short_d16_hi", "global load 16"),
        ("rocm", "global_load_sbyte", "global load 8"),
        ("rocm", "global_store_byte", "global store 8"),
        ("rocm", "global_load_b128", "global load 128"),
        ("rocm", "global_load_d16_b16", "global load 16"),
        ("rocm", "global_load_d16_hi_u8", "global load 8"),
        ("rocm", "global_load_u16", "global load 16"),
        ("rocm", "global_store_b8", "global store 8"),
        ("rocm", "global_store_dwordx2", "global store 64"),
        ("rocm", "global_atomic_add_f32", "atomic"),
        ("rocm", "ds_read_b128", "lds read"),
        ("rocm", "ds_load_u16_d16", "lds read"),
        ("rocm", "ds_store_b64", "lds write"),
        ("rocm", "ds_bpermute_b32", "lds permute"),
        ("rocm", "scratch_store_dword", "scratch"),
        ("rocm", ".long", "unknown"),
        ("x86_64", "vpmaddubsw", "dot"),
        ("x86_64", "vpdpbusd", "dot"),
        ("x86_64", "vfnmadd231ps", "fma"),
        ("x86_64", "vaddps", "vector"),
        ("x86_64", "jne", "branch"),
        ("x86_64", "movq", "scalar"),
        ("aarch64", "sdot", "dot"),
        ("aarch64", "fmla", "fma"),
        ("aarch64", "b.ne", "branch"),
        ("aarch64", "bic", "other"),
        ("aarch64", "ldp", "load"),
        ("cuda", "dp4a.s32.s32", "dot"),
        ("cuda", "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32", "mma"),
        ("cuda", "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16", "mma"),
        ("cuda", "ld.global.nc.v4.b32", "global load 128"),
        ("cuda", "ld.global.b16", "global load 16"),
        ("cuda", "ld.global.L1::no_allocate.v2.f32", "global load 64"),
        ("cuda", "st.global.v2.b32", "global store 64"),
        ("cuda", "ld.shared.v4.f32", "lds read"),
        ("cuda", "st.local.b32", "scratch"),
        ("cuda", "bar.sync", "barrier"),
        ("cuda", "bra.uni", "branch"),
        ("cuda", "shfl.sync.bfly.b32", "shuffle"),
        ("cuda", "add.rn.f32", "alu"),
    ],
)
def test_classes(isa: str, mnemonic: str, expected: str) -> None:
    assert classify(mnemonic, isa) == expected


def test_instructions_belong_to_the_function_they_lie_in(tmp_path: Path) -> None:
    listing = """
0000000000001000 <one>:
\ts_nop 0                                   // 000000001000: BF800000
\tv_dual_add_f32 v1, v1, v2 :: v_dual_mov_b32 v3, 0 // 000000001004: C9082101 010E1F0E
\tv_dot4_i32_iu8 v1, v2, v3, v4              // 00000000100C: CC164001
\ts_code_end                                 // 000000001010: BF9F0000
0000000000001100 <two>:
\tv_mov_b32_e32 v1, v2                       // 000000001100: 7E020302
\ts_code_end                                 // 000000001104: BF9F0000
"""
    (tmp_path / "listing").write_text(listing)
    objdump = tmp_path / "objdump"
    objdump.write_text(f"#!/bin/sh\ncat {tmp_path}/listing\n")
    objdump.chmod(0o755)
    assert Objdump(str(objdump)).mixes(b"", {"two": (0x1100, 4), "one": (0x1000, 16)}, "rocm") == {
        "one": {"wait": 1, "valu": 2, "dot": 1},
        "two": {"valu": 1},
    }


def test_ptx_instructions_are_counted_by_kernel() -> None:
    kernel = ".visible .entry %s(\n\t.param .b32 p\n)\n.maxntid 32, 1, 1\n{\n\t.reg .b32 %%r<2>;\n%s\n}\n"
    body = "\tld.global.b32 \t%r1, [%rd1];\n$L__BB0_1:\n\t@!%p1 bra \t$L__BB0_1;\n\t{ .reg .b32 t; }\n\tret;"
    ptx = ".version 8.0\n" + kernel % ("one", body) + kernel % ("two", "\tdp4a.s32.s32 %r1, %r2, %r3, %r4;\n\tret;")
    assert ptx_mixes(ptx) == {"one": {"branch": 2, "global load 32": 1}, "two": {"branch": 1, "dot": 1}}


# ---- Reports


@pytest.mark.parametrize("target", ["gfx942", "gfx1100"])
def test_rocm_report(vmfbs: Mapping[str, Path], target: str) -> None:
    report = report_of(vmfbs[target])
    assert (report.processor, report.notes) == (target, ())
    dispatches = {d.name: d for d in report.dispatches}
    assert set(dispatches) == {QUANTIZE, MATVEC}
    mix = dispatches[MATVEC].mix
    assert mix is not None
    assert mix["dot"] == 32  # two columns and two rows of 32 int8, four at a time
    assert mix["global load 128"] >= 3  # a block's quants, and each column's
    assert "global store 32" in mix
    assert "unknown" not in mix
    assert "scratch" not in mix
    # Every instruction is in one class or another, at 4 or 8 bytes each (padding aside, which "wait" counts on gfx9).
    assert dispatches[MATVEC].facts["code_bytes"] in range(4 * sum(mix.values()), 8 * sum(mix.values()) + 1)


def test_cuda_report(vmfbs: Mapping[str, Path]) -> None:
    report = report_of(vmfbs["sm_80"])
    assert report.processor == "sm_80"
    assert "the driver chooses registers" in report.notes[0]
    dispatch = next(d for d in report.dispatches if d.name == CUDA_MATVEC)
    assert dispatch.facts == {"workgroup": (32 * WAVES, 1, 1), "lds": 0}
    assert dispatch.mix is not None
    assert dispatch.mix["dot"] == 32
    assert "global load 128" in dispatch.mix


def test_cpu_report(vmfbs: Mapping[str, Path]) -> None:
    report = report_of(vmfbs["x86-64-v3"])
    assert (report.processor, report.notes) == ("x86_64", ())
    dispatch = next(d for d in report.dispatches if d.name.startswith("mul_mat_vec"))
    assert dispatch.mix is not None
    assert dispatch.mix["dot"] > 0
    assert dispatch.facts["code_bytes"] in range(2 * sum(dispatch.mix.values()), 15 * sum(dispatch.mix.values()))


def test_reports_of_a_pattern(vmfbs: Mapping[str, Path]) -> None:
    [report] = inspect(vmfbs["sm_80"], "mul_mat_vec_*")
    assert (report.functions, [d.name for d in report.dispatches]) == ((), [CUDA_MATVEC])
    [report] = inspect(vmfbs["sm_80"], "mul_mat_vec.*")
    assert (report.functions, report.dispatches) == ((SPEC.key,), ())
    assert inspect(vmfbs["sm_80"], "get_rows*") == []


def without_objdump(vmfb: Path) -> Report:
    report = report_of(vmfb)
    assert {d.name for d in report.dispatches} == {QUANTIZE, MATVEC}
    assert all(d.mix is None for d in report.dispatches)
    assert all(d.facts["vgprs"] for d in report.dispatches)
    return report


def test_without_a_disassembler(vmfbs: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("IQ_LLVM_OBJDUMP", raising=False)
    [note] = without_objdump(vmfbs["gfx942"]).notes
    assert note.startswith("no instruction mix: there is no llvm-objdump that decodes all kernels (there is none on PATH)")
    assert note.endswith("apt-get install llvm-22, or name one with IQ_LLVM_OBJDUMP")


def test_the_disassembler_of_the_environment(vmfbs: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Objdump.find()
    assert isinstance(found, Objdump)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("IQ_LLVM_OBJDUMP", found.executable)
    assert Objdump.find() == found


def test_a_disassembler_that_fails(vmfbs: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = tmp_path / "objdump"
    failing.write_text("#!/bin/sh\necho 'cannot read it' >&2\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setattr(Objdump, "find", classmethod(lambda cls: Objdump(str(failing))))
    [note] = without_objdump(vmfbs["gfx942"]).notes
    assert note == f"no instruction mix: {failing} failed: cannot read it"


def test_paths_that_hold_no_kernels(tmp_path: Path) -> None:
    (tmp_path / "text.vmfb").write_text("text")
    for path, refusal in ((tmp_path / "text.vmfb", BytecodeError), (tmp_path / "none.vmfb", BytecodeError), (tmp_path, ManifestError)):
        with pytest.raises(refusal):
            inspect(path)
