"""The emulated machine: modifiers of sources and results, data that moves between lanes."""

import numpy as np
import pytest
from assembly import EVERYWHERE, NOTHING, WAVE64, Kernel, lanes

from iq.emulator.faults import UnknownInstruction

# Modifiers of arithmetic.


def half(x: float) -> int:
    return int(np.float16(x).view(np.uint16))


@pytest.mark.parametrize(("processor", "text", "expected"), [
    ("gfx90a", "v_mov_b32 v3, 0x40000000\n v_add_f32 v2, v3, v3 clamp", np.float32(1).view(np.uint32)),
    ("gfx90a", "v_mov_b32 v3, 0x40000000\n v_add_f32 v2, v3, |v3| mul:4", np.float32(16).view(np.uint32)),
    ("gfx90a", "v_mov_b32 v3, 0xc0000000\n v_sub_f32 v2, -v3, |v3| div:2", np.float32(0).view(np.uint32)),
    ("gfx90a", "v_mov_b32 v3, 0xc0000000\n v_mul_f32 v2, -|v3|, v3", np.float32(4).view(np.uint32)),
    ("gfx90a", "v_mov_b32 v3, 0xffffffff\n v_add_u32 v2, v3, 2 clamp", 0xFFFFFFFF),
    # A 16-bit result zeroes the rest on gfx9, keeps it later.
    ("gfx90a", "v_mov_b32 v2, -1\n v_mov_b32 v3, 0x3c004000\n v_add_f16 v2, v3, v3", half(4)),
    ("gfx1030", "v_mov_b32 v2, -1\n v_mov_b32 v3, 0x3c004000\n v_add_f16 v2, v3, v3", 0xFFFF0000 | half(4)),
    ("gfx1100", "v_mov_b32 v2, -1\n v_mov_b32 v3, 0x3c004000\n v_add_f16 v2.h, v3.l, v3.h", 0xFFFF | half(3) << 16),
    ("gfx1201", "v_mov_b32 v2, -1\n v_mov_b32 v3, 0x3c004000\n v_mul_f16 v2.l, v3.h, -v3.l", 0xFFFF0000 | half(-2)),
    ("gfx1030", "v_mov_b32 v2, -1\n v_mov_b32 v3, 0x3c004000\n v_fma_f16 v2, v3, v3, 1.0 op_sel:[1,0,0,1]", 0xFFFF | half(3) << 16),
    ("gfx1100", "v_mov_b32 v2, -1\n v_mov_b32 v3, 0x3c004000\n v_fma_f16 v2.h, v3.h, v3.l, 1.0", 0xFFFF | half(3) << 16),
    # Packed: low element from op_sel, high from op_sel_hi.
        ("gfx90a", "v_mov_b32 v3, 0x3c004000\n v_pk_add_f16 v2, v3, v3", half(4) | half(2) << 16),
    ("gfx90a", "v_mov_b32 v3, 0x3c004000\n v_pk_add_f16 v2, v3, v3 op_sel:[1,0] op_sel_hi:[1,1] neg_hi:[0,1]", half(3) | half(0) << 16),
    ("gfx1100", "v_mov_b32 v3, 0x3c004000\n v_pk_mul_f16 v2, v3, 2.0 op_sel_hi:[1,0]", half(4) | half(2) << 16),
    ("gfx90a", "v_mov_b32 v3, 0x0003fffe\n v_pk_sub_i16 v2, 5, v3 op_sel_hi:[0,1]", 7 | 2 << 16),
    ("gfx90a", "v_mov_b32 v4, 1.0\n v_mov_b32 v5, 2.0\n v_pk_fma_f32 v[2:3], v[4:5], v[4:5], v[4:5] op_sel:[1,0,0] op_sel_hi:[1,1,0]",
     np.float32(3).view(np.uint32)),
    ("gfx90a", "v_mov_b32 v4, 7\n v_mov_b32 v5, 8\n v_pk_mov_b32 v[2:3], v[4:5], v[4:5] op_sel:[1,0]", 8),
    # Dual issue reads before it writes.
    ("gfx1100", "v_mov_b32 v4, 1\n v_mov_b32 v5, 2\n v_dual_mov_b32 v4, v5 :: v_dual_mov_b32 v5, v4\n v_lshl_add_u32 v2, v4, 4, v5", 0x21),
    # Constants.
    ("gfx90a", "v_mov_b32 v4, 0\n v_mov_b32 v5, 0x3ff00000\n v_add_f64 v[2:3], v[4:5], 2.0\n v_mov_b32 v2, v3", 0x40080000),
    ("gfx1030", "v_mov_b32 v4, 0\n v_mov_b32 v5, 0x3ff00000\n v_add_f64 v[2:3], v[4:5], 0x40140000\n v_mov_b32 v2, v3", 0x40180000),
    ("gfx90a", "v_pk_add_f16 v2, 1.0, 1.0 op_sel_hi:[0,0]", half(2) | half(2) << 16),
    ("gfx90a", "v_mov_b32 v3, 0x4000\n v_add_f16 v2, 1.0, v3", half(3)),
    ("gfx90a", "s_mov_b64 s[20:21], -2\n v_mov_b32 v2, s21", 0xFFFFFFFF),
    ("gfx90a", "s_cmp_eq_u32 s0, s0\n v_mov_b32 v2, src_scc", 1),
    # Mix.
    ("gfx90a", "v_mov_b32 v3, 0x3c004000\n v_mov_b32 v4, 0x40400000\n v_fma_mix_f32 v2, v3, v4, -v3 op_sel:[1,0,0] op_sel_hi:[1,0,1]",
     np.float32(1).view(np.uint32)),
    # Lanes below this one whose bit is set.
    ("gfx906", "v_mbcnt_lo_u32_b32 v2, -1, 0\n v_mbcnt_hi_u32_b32 v2, -1, v2\n v_sub_u32 v2, v2, v0", 0),
])  # fmt: skip
def test_modifiers(processor: str, text: str, expected: int) -> None:
    found = Kernel(text, processor)(NOTHING, 64)
    assert [f"{x:08x}" for x in np.unique(found)] == [f"{int(expected) & 0xFFFFFFFF:08x}"]


@pytest.mark.parametrize(("processor", "instruction", "selectors", "expected"), [
    ("gfx90a", "v_add_u32_sdwa v2, v3, sext(v3)", "dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:BYTE_3 src1_sel:BYTE_1", 0x92 - 0x76),
    ("gfx1030", "v_mov_b32_sdwa v2, sext(v3)", "dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:WORD_1", 0xFFFF92F4),
    ("gfx906", "v_mov_b32_sdwa v2, v3", "dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:WORD_1", 0x92F4),
    ("gfx906", "v_mov_b32_sdwa v2, v3", "dst_sel:BYTE_2 dst_unused:UNUSED_PRESERVE src0_sel:DWORD", 0xFF56FFFF),
    ("gfx906", "v_mov_b32_sdwa v2, v3", "dst_sel:WORD_1 dst_unused:UNUSED_PAD src0_sel:DWORD", 0x8A560000),
    ("gfx90a", "v_mov_b32_sdwa v2, v3", "dst_sel:BYTE_1 dst_unused:UNUSED_SEXT src0_sel:BYTE_1", 0xFFFF8A00),
    ("gfx90a", "v_cvt_f32_i32_sdwa v2, sext(v3)", "dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:BYTE_0", np.float32(0x56).view(np.uint32)),
])  # fmt: skip
def test_sdwa(processor: str, instruction: str, selectors: str, expected: int) -> None:
    found = Kernel(f"v_mov_b32 v2, -1\n v_mov_b32 v3, 0x92f48a56\n {instruction} {selectors}", processor)(NOTHING, 64)
    assert [f"{x:08x}" for x in np.unique(found)] == [f"{int(expected):08x}"]


def test_sdwa_comparison() -> None:
    text = """
    v_mov_b32 v3, 0x00090001
    v_cmp_lt_u32_sdwa vcc, v0, v3 src0_sel:BYTE_0 src1_sel:WORD_1
    v_cndmask_b32_e64 v2, 0, 1, vcc
    """
    found = Kernel(text, "gfx90a")(NOTHING, 64)
    assert np.array_equal(found, np.arange(64) < 9)


@pytest.mark.parametrize("processor", ("gfx90a", "gfx1100"))
def test_denormals_as_the_mode_says(processor: str) -> None:
    """Kept by default; flushed where the kernel says so, or after s_setreg."""
    tiny = "v_mov_b32 v3, 0x00400000\n"
    add = "v_add_f32 v2, v3, v3"
    flush = "s_setreg_imm32_b32 hwreg(HW_REG_MODE, 4, 2), 0\n"
    keep = "s_setreg_imm32_b32 hwreg(HW_REG_MODE, 4, 2), 3\n"
    off, on = ".amdhsa_float_denorm_mode_32 0", ".amdhsa_float_denorm_mode_32 3"
    for mode, text, expected in ((on, add, 0x00800000), (off, add, 0), (on, flush + add, 0), (off, keep + add, 0x00800000)):
        assert (Kernel(tiny + text, processor, mode=mode)(NOTHING, 64) == expected).all()


# Data between lanes.


def test_comparisons_leave_no_bits_of_inactive_lanes() -> None:
    text = """
    s_mov_b64 vcc, -1
    s_mov_b32 exec_lo, 0x0000ff0f
    v_cmp_eq_u32 vcc, v0, v0
    s_mov_b32 exec_lo, -1
    v_mov_b32 v2, vcc_lo
    """
    assert (Kernel(text, "gfx90a")(NOTHING, 64) == 0xFF0F).all()


@EVERYWHERE
def test_comparison_to_exec(processor: str) -> None:
    """v_cmpx: on gfx9 it has a destination as well."""
    destination = "vcc, " if processor in WAVE64 else ""
    text = f"v_mov_b32 v2, 0\n v_cmpx_gt_u32 {destination}20, v0\n v_mov_b32 v2, v0\n s_mov_{{b}} {{exec}}, -1"
    assert np.array_equal(Kernel(text, processor)(NOTHING, 64), np.where(np.arange(64) < 20, np.arange(64), 0))


def test_matrix_instructions_and_inactive_lanes() -> None:
    """MFMA ignores EXEC; WMMA with part of it off is undefined."""
    zeros = "".join(f"v_mov_b32 v{k}, 0\n" for k in range(6, 38))
    mfma = "s_mov_b64 exec, 1\n v_mfma_f32_16x16x16f16 v[2:5], v[6:7], v[8:9], 1.0\n s_mov_b64 exec, -1"
    assert (Kernel(zeros + mfma, "gfx90a")(NOTHING, 64).view(np.float32) == 1).all()
    wmma = "s_mov_b32 exec_lo, 1\n v_wmma_f32_16x16x16_f16 v[6:13], v[14:21], v[22:29], v[30:37]"
    with pytest.raises(UnknownInstruction, match="WMMA with inactive lanes"):
        Kernel(zeros + wmma, "gfx1100")(NOTHING, 64)


T = np.arange(64)
ROW, COLUMN = T & ~15, T & 15
DPP: dict[str, tuple[str, np.ndarray, np.ndarray]] = {
    "quad_perm:[3,1,0,2]": ("gfx906", (T & ~3) + np.array([3, 1, 0, 2])[T & 3], T >= 0),
    "row_shl:3": ("gfx90a", T + 3, COLUMN + 3 < 16),
    "row_shr:1": ("gfx90a", T - 1, COLUMN >= 1),
    "row_ror:5": ("gfx90a", ROW + (COLUMN - 5) % 16, T >= 0),
    "row_mirror": ("gfx90a", ROW + 15 - COLUMN, T >= 0),
    "row_half_mirror": ("gfx90a", (T & ~7) + 7 - (T & 7), T >= 0),
    "row_bcast:15": ("gfx90a", ROW - 1, T >= 16),
    "row_bcast:31": ("gfx90a", np.full(64, 31), T >= 32),
    "wave_shr:1": ("gfx906", T - 1, T >= 1),
    "wave_rol:1": ("gfx906", (T + 1) % 64, T >= 0),
    "row_newbcast:4": ("gfx942", ROW + 4, T >= 0),
    "row_share:4": ("gfx1100", ROW + 4, T >= 0),
    "row_xmask:6": ("gfx1201", ROW + (COLUMN ^ 6), T >= 0),
    "dpp8:[7,6,5,4,3,2,1,0]": ("gfx1030", (T & ~7) + 7 - (T & 7), T >= 0),
}


@pytest.mark.parametrize("pattern", DPP)
def test_dpp(pattern: str) -> None:
    """A lane without a source keeps its old value."""
    processor, source, valid = DPP[pattern]
    n = lanes(processor)
    masks = "" if "dpp8" in pattern else " row_mask:0xf bank_mask:0xf"
    text = f"v_mov_b32 v2, -1\n v_mul_u32_u24 v3, 3, v0\n v_mov_b32_dpp v2, v3 {pattern}{masks}"
    expected = np.where(valid, 3 * np.where(valid, source, 0), 0xFFFFFFFF)
    assert np.array_equal(Kernel(text, processor, workgroup=n)(NOTHING, n), expected[:n])


def test_dpp_bound_control_masks_and_inactive_lanes() -> None:
    def run(text: str, start: str = "") -> np.ndarray:
        setup = "v_mov_b32 v2, 0x100\n v_add_u32 v3, 1, v0\n"
        return Kernel(setup + start + text + "\n s_mov_b64 exec, -1", "gfx90a")(NOTHING, 64)

    shifted = np.where(COLUMN >= 1, T, 0)  # lane k has k + 1
    assert np.array_equal(run("v_mov_b32_dpp v2, v3 row_shr:1 row_mask:0xf bank_mask:0xf bound_ctrl:0"), shifted)
    some = ((0xA >> (T >> 4)) & 1 & (0x6 >> (T >> 2 & 3))).astype(bool)
    assert np.array_equal(run("v_mov_b32_dpp v2, v3 quad_perm:[0,1,2,3] row_mask:0xa bank_mask:0x6"), np.where(some, T + 1, 0x100))
    odd = "s_mov_b32 exec_lo, 0xaaaaaaaa\n s_mov_b32 exec_hi, 0xaaaaaaaa\n"
    # Odd lanes read the even ones, which are inactive: no source, so no write, or 0.
    assert (run("v_mov_b32_dpp v2, v3 row_shr:1 row_mask:0xf bank_mask:0xf", odd) == 0x100).all()
    assert np.array_equal(run("v_mov_b32_dpp v2, v3 row_shr:1 row_mask:0xf bank_mask:0xf bound_ctrl:0", odd), np.where(T & 1, 0, 0x100))


def test_dpp_of_a_sum() -> None:
    text = "v_mov_b32 v3, v0\n v_add_u32_dpp v2, v3, v0 quad_perm:[1,0,3,2] row_mask:0xf bank_mask:0xf"
    assert np.array_equal(Kernel(text, "gfx90a")(NOTHING, 64), (T ^ 1) + T)


@pytest.mark.parametrize(("processor", "text", "expected"), [
    ("gfx90a", "v_readlane_b32 s20, v0, 9\n v_mov_b32 v2, s20", np.full(64, 9)),
    ("gfx90a", "v_mov_b32 v2, 1\n s_mov_b32 s20, 77\n v_writelane_b32 v2, s20, 5", np.where(T == 5, 77, 1)),
    ("gfx90a", "s_mov_b32 exec_lo, 0xffff0000\n v_readfirstlane_b32 s20, v0\n s_mov_b32 exec_lo, -1\n v_mov_b32 v2, s20", np.full(64, 16)),
    ("gfx90a", "v_xor_b32 v3, 33, v0\n v_lshlrev_b32 v3, 2, v3\n ds_bpermute_b32 v2, v3, v0", T ^ 33),
    ("gfx90a", "v_add_u32 v3, 1, v0\n v_lshlrev_b32 v3, 2, v3\n ds_permute_b32 v2, v3, v0", (T - 1) % 64),
    ("gfx90a", 'ds_swizzle_b32 v2, v0 offset:swizzle(BITMASK_PERM,"01pip")', T & 32 | 8 | T & 5 | T & 2 ^ 2),
    ("gfx90a", "ds_swizzle_b32 v2, v0 offset:swizzle(QUAD_PERM,3,2,1,0)", T ^ 3),
    ("gfx90a", "ds_swizzle_b32 v2, v0 offset:swizzle(SWAP,16)", T ^ 16),
    ("gfx90a", "ds_swizzle_b32 v2, v0 offset:swizzle(REVERSE,8)", T ^ 7),
    ("gfx90a", "ds_swizzle_b32 v2, v0 offset:swizzle(BROADCAST,4,2)", (T & ~3) + 2),
    ("gfx1100", "s_mov_b32 s20, 0x76543210\n s_mov_b32 s21, 0xfedcba98\n v_permlanex16_b32 v2, v0, s20, s21", (T ^ 16)[:32]),
    ("gfx1030", "s_mov_b32 s20, 0x01234567\n s_mov_b32 s21, 0x89abcdef\n v_permlane16_b32 v2, v0, s20, s21",
     (ROW + np.where(COLUMN < 8, 7 - COLUMN, 23 - COLUMN))[:32]),
    ("gfx1201", "v_xor_b32 v3, 5, v0\n v_permlane16_var_b32 v2, v0, v3", (T ^ 5)[:32]),
    ("gfx950", "v_mov_b32 v2, v0\n v_add_u32 v3, 0x64, v0\n v_permlane32_swap_b32 v2, v3", np.where(T < 32, T, T + 100 - 32)),
    ("gfx950", "v_mov_b32 v3, v0\n v_add_u32 v2, 0x64, v0\n v_permlane16_swap_b32 v3, v2",
     np.where(T & 16, T + 100, T + 16)),
    ("gfx1100", "v_mov_b32 v2, v0\n v_mov_b32 v3, 9\n v_swap_b32 v2, v3", np.full(32, 9)),
])  # fmt: skip
def test_lane_moves(processor: str, text: str, expected: np.ndarray) -> None:
    assert np.array_equal(Kernel(text, processor, workgroup=len(expected))(NOTHING, len(expected)), expected)
