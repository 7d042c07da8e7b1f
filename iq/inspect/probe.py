"""Whether an llvm-objdump decodes what kernels are made of: a few instructions of each generation, in small ELFs made here.

A version number does not say it. LLVM 19 knows every processor below, and yet prints `.long` for gfx10's and later VOP3 instructions of two
operands whose unused third field is not zero, as newer compilers leave it, and for 16-bit halves of registers (v10.h).
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from iq.bundle.codeobject import MACHINES
from iq.cache import Cache

# Encodings as IREE's compiler emits them, and their text: the kinds of instruction in which generations and disassemblers differ.
PROBES: dict[str, dict[str, str]] = {
    "gfx90a": {
        "D3CD003E 04FAD95C": "v_mfma_f32_16x16x16f16 v[62:65], v[92:93], v[108:109], v[62:65]",
        "D3B04006 1C1A3524": "v_pk_fma_f32 v[6:7], v[36:37], v[26:27], v[6:7]",
        "72500104": "v_dot4c_i32_i8_e32 v40, v4, v0",
        "7E2216F9 00050609": "v_cvt_f32_f16_sdwa v17, v9 dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:WORD_1",
        "7E0E02FA AF014207": "v_mov_b32_dpp v7, v7 row_bcast:15 row_mask:0xa bank_mask:0xf",
        "DC5C8000 067F0004": "global_load_dwordx4 v[6:9], v[4:5], off",
        "BF8CC07F": "s_waitcnt lgkmcnt(0)",
    },
    "gfx942": {
        "D3CD003E 04FAC55A": "v_mfma_f32_16x16x16_f16 v[62:65], v[90:91], v[98:99], v[62:65]",
        "D3B1400C 10021D0A": "v_pk_mul_f32 v[12:13], v[10:11], v[14:15] op_sel_hi:[0,1]",
        "72880908": "v_dot4c_i32_i8_e32 v68, v8, v4",
        "D28F003C 00026485": "v_lshlrev_b64 v[60:61], 5, v[50:51]",
        "D9FE2800 5A000050": "ds_read_b128 v[90:93], v80 offset:10240",
    },
    "gfx1030": {
        "D70F0403 02020604": "v_add_co_u32 v3, s4, s4, v3",
        "D4E10001 02000008": "v_cmp_lt_u64_e64 s1, s[8:9], s[0:1]",
        "04600900": "v_dot2c_f32_f16 v48, v0, v4",
        "CC200012 0C4A3114": "v_fma_mix_f32 v18, v20, v24, v18 op_sel_hi:[1,0,0]",
        "D7780807 03058306": "v_permlanex16_b32 v7, v6, -1, -1 op_sel:[1,0]",
        "DC388000 077D0003": "global_load_dwordx4 v[7:10], v[3:4], off",
    },
    "gfx1100": {
        "CC404002 1C0AC351": "v_wmma_f32_16x16x16_f16 v[2:9], v[81:88], v[97:104], v[2:9]",
        "CC164058 7A02512C": "v_dot4_i32_iu8 v88, v44, v40, 0 neg_lo:[1,1,0]",
        "CA240080 0100009F": "v_dual_mov_b32 v1, 0 :: v_dual_and_b32 v0, 31, v0",
        "D7000203 02020606": "v_add_co_u32 v3, s2, s6, v3",
        "D73C0034 02020484": "v_lshlrev_b64 v[52:53], 4, v[2:3]",
        "7F14150C": "v_cvt_f16_f32_e32 v10.h, v12",
        "D763080D 02020301": "v_or_b16 v13.l, v1.h, v1.l op_sel:[1,0,0]",
        "DC820000 107C0003": "global_load_d16_b16 v16, v[3:4], off",
        "F4080200 F8000000": "s_load_b128 s[8:11], s[0:1], null",
    },
    "gfx1201": {
        "CC404001 1C06B355": "v_wmma_f32_16x16x16_f16 v[1:8], v[85:88], v[89:92], v[1:8]",
        "D5160208 02022108": "v_max_num_f32_e64 v8, v8, |v16|",
        "D7000003 02020600": "v_add_co_u32 v3, s0, s0, v3",
        "7E24178A": "v_cvt_f32_f16_e32 v18, v10.h",
        "EE05C07C 00000007 00000003": "global_load_b128 v[7:10], v[3:4], off",
        "AA92060C": "s_mul_u64 s[18:19], s[12:13], s[6:7]",
        "BFC80000": "s_wait_loadcnt_dscnt 0x0",
        "BE804EC1": "s_barrier_signal -1",
    },
}

# Changes with the probes: what an accepted disassembler printed may be kept under it.
DIGEST = hashlib.sha256(repr(PROBES).encode()).hexdigest()


def fault_of(executable: str, listing: Callable[[bytes], str]) -> str:
    """What a disassembler does instead of decoding what kernels are made of ("prints ..."); "" for one that can be used.

    listing: the disassembly of an ELF by it, RuntimeError where it fails. The answer is kept in iq's cache directory until the
    executable's path, size or time of change is another.
    """
    file, kept = Path(executable).stat(), Cache()
    entry = kept.path(".probe", DIGEST, executable, str(file.st_size), str(file.st_mtime_ns))
    with suppress(OSError):
        return entry.read_text()
    fault = next((fault for processor in PROBES if (fault := _fault(processor, listing))), "")
    with suppress(OSError):  # a cache that cannot be written costs time, no more
        kept.store(entry, fault.encode())
    return fault


def _fault(processor: str, listing: Callable[[bytes], str]) -> str:
    words = [word for encoding in PROBES[processor] for word in encoding.split()]
    try:
        said = listing(_elf(processor, struct.pack(f"<{len(words)}I", *(int(word, 16) for word in words))))
    except RuntimeError:
        return f"cannot disassemble {processor}'s code"
    texts = {int(address, 16): text for text, address in re.findall(r"^\t(.*?)\s*// ([0-9A-F]+):", said, re.MULTILINE)}
    address = 0
    for encoding, text in PROBES[processor].items():
        if texts.get(address) != text:
            return f"prints {texts.get(address, '')!r} for {processor}'s {text!r}"
        address += 4 * len(encoding.split())
    return ""


def _elf(processor: str, code: bytes) -> bytes:
    """A relocatable ELF for a processor, of one section with this code."""
    names = b"\0.text\0.shstrtab\0"
    sections = -(-(64 + len(code) + len(names)) // 8) * 8
    ident = b"\x7fELF\x02\x01\x01\x40\x02" + bytes(7)  # 64-bit, little endian, AMDGPU HSA, code object version 4
    header = ident + struct.pack("<HHIQQQIHHHHHH", 1, 224, 1, 0, 0, sections, MACHINES[processor], 64, 0, 0, 64, 3, 2)
    text = struct.pack("<IIQQQQIIQQ", 1, 1, 6, 0, 64, len(code), 0, 0, 4, 0)  # PROGBITS, ALLOC | EXECINSTR
    strings = struct.pack("<IIQQQQIIQQ", 7, 3, 0, 0, 64 + len(code), len(names), 0, 0, 1, 0)  # STRTAB
    return (header + code + names).ljust(sections, b"\0") + bytes(64) + text + strings
