"""The emulated machine: loads and stores of global, private memory and LDS, atomic operations."""

from collections.abc import Callable

import numpy as np
import pytest
from assembly import NOTHING, Kernel, lanes

from iq.emulator.faults import LdsFault, ScratchFault

WIDTHS = {
    "ubyte": lambda b: b[:, 3].astype("u4"),
    "sbyte": lambda b: b[:, 3].view("i1").astype("i4").view("u4"),
    "ushort": lambda b: b[:, 3].astype("u4") | b[:, 4].astype("u4") << 8,
    "sshort": lambda b: (b[:, 3].astype("u2") | b[:, 4].astype("u2") << np.uint16(8)).view("i2").astype("i4").view("u4"),
    "dword": lambda b: np.ascontiguousarray(b[:, 3:7]).view("u4")[:, 0],
    "dwordx4": lambda b: np.bitwise_xor.reduce(np.ascontiguousarray(b[:, 3:19]).view("u4"), axis=1),
}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("aligned", (True, False))
def test_loads(width: str, aligned: bool, rng: np.random.Generator) -> None:
    octets = rng.integers(0, 256, (64, 32), np.uint8)
    registers = "v[4:7]" if width == "dwordx4" else "v4"
    fold = "v_xor_b32 v4, v4, v5\n v_xor_b32 v6, v6, v7\n v_xor_b32 v4, v4, v6" if width == "dwordx4" else ""
    text = f"v_lshlrev_b32 v3, 5, v0\n global_load_{width} {registers}, v3, s[8:9] offset:{3 + aligned}\n {fold}\n v_mov_b32 v2, v4"
    if aligned:
        octets = np.roll(octets, 1, axis=1)
        expected = WIDTHS[width](np.roll(octets, -1, axis=1))
    else:
        expected = WIDTHS[width](octets)
    kernel = Kernel(text, "gfx90a")
    assert np.array_equal(kernel(octets, 64), expected)
    bits = {"dwordx4": 128, "dword": 32}.get(width, 16 if "short" in width else 8)
    assert kernel.statistics.bytes_read[bits] == 64 * bits // 8 + (16 if bits == 128 else 0)  # and the prologue's scalar load of 128 bits


@pytest.mark.parametrize(
    ("processor", "load", "high"),
    [("gfx90a", "global_load_short_d16", "global_load_short_d16_hi"), ("gfx1201", "global_load_d16_b16", "global_load_d16_hi_b16")],
)
def test_loads_into_halves(processor: str, load: str, high: str) -> None:
    text = f"""
    v_mov_b32 v2, 0x11112222
    v_lshlrev_b32 v3, 2, v0
    {load} v2, v3, s[8:9] offset:2
    v_mov_b32 v4, v2
    {high} v2, v3, s[8:9]
    """
    given = np.arange(64, dtype=np.uint32) * 0x00030005 + 7
    assert np.array_equal(Kernel(text, processor)(given, 64), given << 16 | given >> 16)


@pytest.mark.parametrize("size", (1, 2, 4, 8, 12, 16))
def test_stores(size: int) -> None:
    name = {1: "byte", 2: "short", 4: "dword", 8: "dwordx2", 12: "dwordx3", 16: "dwordx4"}[size]
    registers = "v4" if size <= 4 else f"v[4:{3 + size // 4}]"
    text = f"""
    v_mov_b32 v4, 0x04030201
    v_mov_b32 v5, 0x08070605
    v_mov_b32 v6, 0x0c0b0a09
    v_mov_b32 v7, 0x100f0e0d
    v_lshlrev_b32 v3, 4, v0
    v_cmp_ne_u32 vcc, 5, v0
    s_and_saveexec_b64 s[20:21], vcc
    global_store_{name} v3, {registers}, s[10:11]
    """
    found = Kernel(text, "gfx90a", store=False)(NOTHING, 256).view(np.uint8).reshape(64, 16)
    expected = np.tile(np.where(np.arange(16) < size, np.arange(1, 17), 0), (64, 1))
    expected[5] = 0
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("processor", "store"),
    [("gfx942", "global_store_short_d16_hi"), ("gfx1030", "global_store_short_d16_hi"), ("gfx1100", "global_store_d16_hi_b16")],
)
def test_stores_of_upper_halves(processor: str, store: str) -> None:
    text = f"v_mov_b32 v3, 0x12345678\n v_lshlrev_b32 v4, 2, v0\n {store} v4, v3, s[10:11] offset:2"
    assert (Kernel(text, processor, store=False)(NOTHING, 64) == 0x12340000).all()


def test_addresses_in_registers_with_a_negative_offset() -> None:
    text = """
    s_add_u32 s14, s8, 4
    v_mov_b32 v5, s9
    v_add_co_u32 v4, vcc, s14, v1
    v_addc_co_u32 v5, vcc, 0, v5, vcc
    global_load_dword v2, v[4:5], off offset:-4
    global_load_dword v3, v[4:5], off
    v_lshl_add_u32 v2, v3, 8, v2
    """
    given = np.arange(65, dtype=np.uint32)
    assert np.array_equal(Kernel(text, "gfx90a")(given, 64), given[1:] * 256 + given[:-1])


@pytest.mark.parametrize(("processor", "load"), [("gfx90a", "buffer_load_dwordx2"), ("gfx1201", "buffer_load_b64")])
def test_buffers_end_where_they_say(processor: str, load: str) -> None:
    text = f"""
    s_mov_b32 s20, s8
    s_mov_b32 s21, s9
    s_mov_b32 s22, 44
    s_mov_b32 s23, 0
    {load} v[2:3], v1, s[20:23], {"null" if processor == "gfx1201" else "0"} offen offset:4
    v_lshl_add_u32 v2, v3, 8, v2
    """
    given = np.arange(1, 65, dtype=np.uint32)
    words = np.where(np.arange(66) < 11, np.arange(1, 67), 0)
    assert np.array_equal(Kernel(text, processor)(given, 64), words[1:65] + 256 * words[2:66])


@pytest.mark.parametrize(("processor", "store", "load"), [
    ("gfx90a", "buffer_store_dword v3, off, s[0:3], 0 offset:4", "buffer_load_dword v4, v5, s[0:3], 0 offen"),
    ("gfx942", "scratch_store_dword off, v3, off offset:4", "scratch_load_dword v4, v5, off"),
    ("gfx1201", "scratch_store_b32 off, v3, off offset:4", "scratch_load_b32 v4, v5, off"),
])  # fmt: skip
def test_private_memory_is_each_lanes_own(processor: str, store: str, load: str) -> None:
    text = f"v_mul_u32_u24 v3, 3, v0\n {store}\n v_mov_b32 v5, 4\n {load}\n v_mov_b32 v2, v4"
    assert np.array_equal(Kernel(text, processor, scratch=16, workgroup=128)(NOTHING, 128), 3 * np.arange(128))


def test_private_memory_ends() -> None:
    with pytest.raises(ScratchFault, match=r"scratch_load_dword: 4 bytes at 0x10 are outside the 16 bytes of private memory \[test at 0x"):
        Kernel("scratch_load_dword v2, off, off offset:16", "gfx942", scratch=16)(NOTHING, 64)


def test_flat_reaches_all_three_memories() -> None:
    text = """
    s_mov_b64 s[20:21], src_shared_base
    v_mov_b32 v4, v1
    v_mov_b32 v5, s21
    v_mov_b32 v6, 0x77
    flat_store_dword v[4:5], v0
    v_mov_b32 v6, s8
    v_mov_b32 v7, s9
    v_cmp_gt_u32 vcc, 32, v0
    v_cndmask_b32 v4, v6, v4, vcc
    v_cndmask_b32 v5, v7, v5, vcc
    flat_load_dword v2, v[4:5]
    """
    assert np.array_equal(Kernel(text, "gfx90a", lds=256)(np.array([99], np.uint32), 64), np.where(np.arange(64) < 32, np.arange(64), 99))


@pytest.mark.parametrize(("processor", "text", "new"), [
    ("gfx90a", "global_atomic_add v2, v3, v4, s[8:9] glc", lambda old: old + 3),
    ("gfx1201", "global_atomic_add_u32 v2, v3, v4, s[8:9] th:TH_ATOMIC_RETURN", lambda old: old + 3),
    ("gfx90a", "global_atomic_umax v2, v3, v4, s[8:9] glc", lambda old: max(old, 3)),
    ("gfx1030", "global_atomic_inc v2, v3, v4, s[8:9] glc", lambda old: 0 if old >= 3 else old + 1),
    ("gfx1100", "global_atomic_dec_u32 v2, v3, v4, s[8:9] glc", lambda old: 3 if old == 0 or old > 3 else old - 1),
    ("gfx1100", "global_atomic_cmpswap_b32 v2, v3, v[4:5], s[8:9] glc", lambda old: 3 if old == 10 else old),
])  # fmt: skip
def test_atomics_take_turns(processor: str, text: str, new: Callable[[int], int]) -> None:
    """Each of 64 lanes in order, at two addresses; the old values come back."""
    setup = "v_and_b32 v3, 1, v0\n v_lshlrev_b32 v3, 2, v3\n v_mov_b32 v4, 3\n v_mov_b32 v5, 10\n"
    found = Kernel(setup + text, processor, workgroup=lanes(processor))(np.array([10, 1], np.uint32), lanes(processor))
    values, expected = [10, 1], []
    for lane in range(lanes(processor)):
        expected.append(values[lane & 1])
        values[lane & 1] = new(values[lane & 1])
    assert found.tolist() == expected


# LDS.


@pytest.mark.parametrize(("processor", "write", "read"), [
    ("gfx90a", "ds_write2_b32 v3, v4, v5 offset0:1 offset1:3", "ds_read2_b32 v[6:7], v3 offset0:3 offset1:1"),
    ("gfx1100", "ds_store_2addr_b32 v3, v4, v5 offset0:1 offset1:3", "ds_load_2addr_b32 v[6:7], v3 offset0:3 offset1:1"),
    ("gfx90a", "ds_write2st64_b32 v3, v4, v5 offset0:1 offset1:3", "ds_read2st64_b32 v[6:7], v3 offset0:3 offset1:1"),
    ("gfx1201", "ds_store_2addr_stride64_b32 v3, v4, v5 offset0:1 offset1:3", "ds_load_2addr_stride64_b32 v[6:7], v3 offset0:3 offset1:1"),
])  # fmt: skip
def test_two_lds_addresses(processor: str, write: str, read: str) -> None:
    """Written at one place, read back through the other spelling's single address at the byte offset it stands for."""
    unit = 4 * (64 if "64" in write.split()[0] else 1)
    text = f"""
    v_lshlrev_b32 v3, 4, v0
    v_add_u32 v4, 7, v0
    v_mul_u32_u24 v5, 9, v0
    {write}
    {read}
    ds_read_b32 v8, v3 offset:{3 * unit}
    v_lshl_add_u32 v2, v6, 16, v7
    v_sub_u32 v8, v8, v6
    v_lshl_add_u32 v2, v8, 12, v2
    """
    t = np.arange(32)
    assert np.array_equal(Kernel(text, processor, workgroup=32, lds=2048)(NOTHING, 32), (9 * t << 16) + t + 7)


def test_small_lds_elements() -> None:
    text = """
    v_lshlrev_b32 v3, 2, v0
    v_mov_b32 v4, 0x8182f384
    ds_write_b32 v3, v4
    ds_write_b8 v3, v0 offset:3
    ds_read_i8 v5, v3 offset:1
    ds_read_u16 v6, v3 offset:2
    v_lshl_add_u32 v2, v5, 16, v6
    """
    t = np.arange(64)
    assert np.array_equal(Kernel(text, "gfx90a", lds=256)(NOTHING, 64), ((0xFFFFFFF3 << 16) + (t << 8) + 0x82 & 0xFFFFFFFF))


def test_lds_ends() -> None:
    """The first bad address, of lane 60."""
    with pytest.raises(LdsFault, match=r"ds_read_b64: 8 bytes at 0xf4 are outside the 248 bytes of LDS \[test at 0x\w+: ds_read_b64"):
        Kernel("v_lshlrev_b32 v3, 2, v0\n ds_read_b64 v[2:3], v3 offset:4", "gfx90a", lds=248)(NOTHING, 64)


def test_lds_atomics() -> None:
    text = "v_mov_b32 v3, 0\n v_mov_b32 v4, 2\n ds_write_b32 v3, v3\n ds_add_rtn_u32 v2, v3, v4"
    assert np.array_equal(Kernel(text, "gfx90a", lds=4)(NOTHING, 64), 2 * np.arange(64))


@pytest.mark.parametrize("load", ("buffer_load_dword v3, s[20:23], 0 offen lds", "global_load_lds_dword v[4:5], off"))
def test_loads_to_lds(load: str) -> None:
    """Lane by lane from M0 on, wherever the lanes load from."""
    text = f"""
    s_mov_b32 s20, s8
    s_mov_b32 s21, s9
    s_mov_b32 s22, 256
    s_mov_b32 s23, 0
    v_sub_u32 v3, 0xfc, v1
    v_mov_b32 v5, s9
    v_add_co_u32 v4, vcc, s8, v3
    v_addc_co_u32 v5, vcc, 0, v5, vcc
    s_mov_b32 m0, 16
    {load}
    ds_read_b32 v2, v1 offset:16
    """
    given = np.arange(64, dtype=np.uint32) * 3
    assert np.array_equal(Kernel(text, "gfx942", lds=272)(given, 64), given[::-1])


def test_transposed_loads() -> None:
    """gfx950: of 16 lanes' rows, each lane gets a column; the result is what a loop over the rows says."""
    text = (
        "v_lshlrev_b32 v3, 3, v0\n v_add_u32 v4, 0x100, v0\n ds_write2_b32 v3, v0, v4 offset0:0 offset1:1\n ds_read_b64_tr_b16 v[2:3], v3"
    )
    halves = np.stack([np.arange(64), np.arange(64) + 256], axis=1).astype("u4").view("u2").reshape(4, 4, 16)  # block, row, column
    expected = [halves[lane // 16, 0, lane % 16] | halves[lane // 16, 1, lane % 16].astype(int) << 16 for lane in range(64)]
    assert Kernel(text, "gfx950", lds=512)(NOTHING, 64).tolist() == expected
