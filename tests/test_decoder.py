"""The decoder: lines of llvm-objdump's listings to instructions."""

import pytest

from iq.emulator.decoder import ACCUMULATORS, EXEC, M0, NULL, TTMP, VCC, Instruction, Operand, decode, lines
from iq.emulator.faults import UnknownInstruction


def v(register: int, count: int = 1, **more: object) -> dict[str, object]:
    return {"kind": "v", "register": register, "count": count, **more}


def s(register: int, count: int = 1, **more: object) -> dict[str, object]:
    return {"kind": "s", "register": register, "count": count, **more}


@pytest.mark.parametrize(("text", "expected"), [
    ("v7", v(7)),
    ("v[4:7]", v(4, 4)),
    ("a[0:15]", v(ACCUMULATORS, 16)),
    ("a3", v(ACCUMULATORS + 3)),
    ("v9.h", v(9, half="h")),
    ("-v9.l", v(9, half="l", negate=True)),
    ("|v1|", v(1, absolute=True)),
    ("-|v1|", v(1, absolute=True, negate=True)),
    ("-v[2:3]", v(2, 2, negate=True)),
    ("sext(v12)", v(12, sext=True)),
    ("s[8:11]", s(8, 4)),
    ("vcc", s(VCC, 2)),
    ("vcc_hi", s(VCC + 1)),
    ("exec_lo", s(EXEC)),
    ("m0", s(M0)),
    ("null", s(NULL, 2)),
    ("ttmp9", s(TTMP + 9)),
    ("off", {"kind": "off"}),
    ("0x3f800000", {"kind": "literal", "value": 0x3F800000}),
    ("lit(0xffffffff)", {"kind": "literal", "value": 0xFFFFFFFF}),
    ("lit(0x40)", {"kind": "literal", "value": 0x40}),
    ("-16", {"kind": "integer", "value": -16}),
    ("64", {"kind": "integer", "value": 64}),
    ("neg(0)", {"kind": "integer", "value": 0, "negate": True}),
    ("-4.0", {"kind": "float", "value": -4.0}),
    ("0.15915494", {"kind": "float", "value": 0.15915494}),
    ("src_scc", {"kind": "state"}),
    ("src_shared_base", {"kind": "address", "value": 0x1_0000_0000_0000}),
    ("hwreg(HW_REG_MODE, 4, 4)", {"kind": "word"}),
])  # fmt: skip
def test_operands(text: str, expected: dict[str, object]) -> None:
    [operand] = decode(0, f"s_mov_b32 {text}").operands
    default = Operand("", "")
    fields = ("kind", "register", "count", "value", "half", "negate", "absolute", "sext")
    assert {f: getattr(operand, f) for f in fields} == {f: getattr(default, f) for f in fields} | expected


@pytest.mark.parametrize(("text", "mnemonic", "encoding", "operands", "modifiers"), [
    ("s_endpgm", "s_endpgm", "", 0, {}),
    ("v_add_f32_e32 v0, 1.0, v1", "v_add_f32", "e32", 3, {}),
    ("v_add_f32_e64 v0, |v1|, -v2 clamp mul:2", "v_add_f32", "e64", 3, {"clamp": 1, "mul": 2}),
    ("v_add_f32_e64_dpp v0, v1, v2 clamp row_share:3 row_mask:0xf bank_mask:0xe", "v_add_f32", "dpp", 3,
     {"clamp": 1, "row_share": 3, "row_mask": 15, "bank_mask": 14}),
    ("v_mov_b32_dpp v0, v1 quad_perm:[1,0,3,2] row_mask:0xf bank_mask:0xf bound_ctrl:1", "v_mov_b32", "dpp", 2,
     {"quad_perm": (1, 0, 3, 2), "row_mask": 15, "bank_mask": 15, "bound_ctrl": 1}),
    ("v_sub_u32_sdwa v6, v1, sext(v1) dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:DWORD src1_sel:WORD_0", "v_sub_u32", "sdwa", 3,
     {"dst_sel": "DWORD", "dst_unused": "UNUSED_PAD", "src0_sel": "DWORD", "src1_sel": "WORD_0"}),
    ("v_fma_mix_f32 v0, v1, -|v2|, v3 op_sel:[1,0,0] op_sel_hi:[1,1,0]", "v_fma_mix_f32", "", 4,
     {"op_sel": (1, 0, 0), "op_sel_hi": (1, 1, 0)}),
    ("global_load_dwordx4 v[0:3], v4, s[2:3] offset:-16 glc", "global_load_dwordx4", "", 3, {"offset": -16, "glc": 1}),
    ("global_atomic_add_u32 v0, v[2:3], v1, off th:TH_ATOMIC_RETURN", "global_atomic_add_u32", "", 4, {"th": "TH_ATOMIC_RETURN"}),
    ("buffer_load_dwordx4 v[0:3], v4, s[4:7], 0 offen offset:16", "buffer_load_dwordx4", "", 4, {"offen": 1, "offset": 16}),
    ('ds_swizzle_b32 v0, v1 offset:swizzle(BITMASK_PERM,"01pip")', "ds_swizzle_b32", "", 2, {"offset": 'swizzle(BITMASK_PERM,"01pip")'}),
    ("ds_read2_b64 v[0:3], v4 offset0:1 offset1:255", "ds_read2_b64", "", 2, {"offset0": 1, "offset1": 255}),
    ("s_setreg_imm32_b32 hwreg(HW_REG_MODE, 4, 4), 15", "s_setreg_imm32_b32", "", 2, {}),
    ("buffer_inv sc1", "buffer_inv", "", 0, {"sc1": 1}),
])  # fmt: skip
def test_instructions(text: str, mnemonic: str, encoding: str, operands: int, modifiers: dict[str, object]) -> None:
    found = decode(16, text)
    assert (found.address, found.mnemonic, found.encoding, len(found.operands), dict(found.modifiers)) == (
        16, mnemonic, encoding, operands, modifiers
    )  # fmt: skip


def test_a_literal_that_has_an_inline_encoding_too() -> None:
    """As LLVM addresses a constant table, a codebook's: s_getpc_b64, then the table's distance, whose upper half is often -1."""
    found = decode(0, "s_addc_u32 s1, s1, lit(0xffffffff)")
    assert [o.kind for o in found.operands] == ["s", "s", "literal"]
    assert found.operands[2].value == 0xFFFFFFFF
    assert decode(0, "v_dual_fmaak_f32 v1, v2, v3, lit(0x0) :: v_dual_mov_b32 v4, v5").operands[3].kind == "literal"


def test_dual_issue() -> None:
    found = decode(0, "v_dual_fmaak_f32 v1, v2, v3, 0x3f800000 :: v_dual_mov_b32 v4, v5")
    assert found.mnemonic == "v_fmaak_f32"
    assert found.second
    assert (found.second.mnemonic, [o.register for o in found.second.operands]) == ("v_mov_b32", [4, 5])


def test_listing() -> None:
    listing = """
test.hsaco:	file format elf64-amdgpu

0000000000001400 <test>:
	s_load_b32 s4, s[0:1], 0x10                                // 000000001400: F4000100 F8000010
	s_cbranch_execnz 65444                                     // 000000001408: BFA6FFA4 <test+0xc4>
	s_call_b64 s[0:1], helper                                  // 00000000140C: BA000004 <helper>
	s_cbranch_scc1 _ZN1a                                       // 000000001410: BF850010 <_ZN1a>
	v_mov_b32_e32 v0, v1// 000000001414: 7E000301
"""
    assert lines(listing) == [
        (0x1400, "s_load_b32 s4, s[0:1], 0x10"),
        (0x1408, "s_cbranch_execnz 65444"),
        (0x140C, "s_call_b64 s[0:1], 4"),
        (0x1410, "s_cbranch_scc1 16"),
        (0x1414, "v_mov_b32_e32 v0, v1"),
    ]


def test_bits_and_refusals() -> None:
    found = decode(8, "v_pk_add_f16 v0, v1, v2 op_sel:[1,0]")
    assert found.bits("op_sel", 0, 3) == (1, 0, 0)
    assert found.bits("op_sel_hi", 1, 2) == (1, 1)
    found.allow("op_sel")
    with pytest.raises(UnknownInstruction, match=r"unknown instruction 'v_pk_add_f16 v0, v1, v2 op_sel:\[1,0\]': modifier op_sel"):
        found.allow("clamp")
    with pytest.raises(UnknownInstruction):
        Instruction(0, "", "", modifiers={"offset": "swizzle()"}).integer("offset")
