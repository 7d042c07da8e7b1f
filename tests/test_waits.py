"""The check of waits: each kind of missing or weak wait is found, in small programs and in code objects as they ship; sound code passes."""

import re
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iq.bundle import codeobject
from iq.bundle.codeobject import CodeObject
from iq.bundle.vmfb import Vmfb
from iq.cache import Cache
from iq.compile.build import Module, compile_module
from iq.compile.compiler import Compilations, Compiler
from iq.inspect import Objdump
from iq.inspect.waits import Instruction, check, check_kernel, instructions, registers
from iq.kernels import KernelSpec
from iq.targets import TARGETS


def program(text: str) -> list[Instruction]:
    """Lines of assembly, 8 bytes each; "name:" is a label, which a branch names."""
    lines = [line.strip() for line in text.strip().splitlines()]
    labels: dict[str, int] = {}
    code: list[str] = []
    for line in lines:
        if line.endswith(":"):
            labels[line[:-1]] = 8 * len(code)
        else:
            code.append(line)
    result = []
    for n, line in enumerate(code):
        name, _, label = line.partition(" ")
        offset = (labels[label] - (8 * n + 4)) // 4 if label in labels else 0
        result.append(Instruction(8 * n, name if label in labels else line, offset & 0xFFFF))
    return result


def problems(processor: str, text: str) -> list[str]:
    return [finding.problem for finding in check_kernel("kernel", program(text), processor)]


# Sound programs, a wait in each; and the problem where it is left out or waits for one fewer. WAIT stands for the wait.
SOUND = {
    "vector load, gfx9": ("gfx90a", "global_load_dword v1, v0, s[0:1]", "s_waitcnt vmcnt(0)", "v_add_f32_e32 v2, v1, v1", "v1"),
    "vector load": ("gfx1100", "global_load_b32 v1, v0, s[0:1]", "s_waitcnt vmcnt(0)", "v_add_f32_e32 v2, v1, v1", "v1"),
    "vector load, gfx12": ("gfx1201", "global_load_b32 v1, v0, s[0:1]", "s_wait_loadcnt 0x0", "v_add_f32_e32 v2, v1, v1", "v1"),
    "half a register": ("gfx1100", "global_load_d16_b16 v1, v0, s[0:1]", "s_waitcnt vmcnt(0)", "v_add_f16_e32 v2.l, v1.h, v2.l", "v1"),
    "accumulation register": ("gfx942", "global_load_dword a7, v0, s[0:1]", "s_waitcnt vmcnt(0)", "v_accvgpr_read_b32 v1, a7", "a7"),
    "written, not read": ("gfx1030", "global_load_dword v1, v0, s[0:1]", "s_waitcnt vmcnt(0)", "v_mov_b32_e32 v1, 0", "v1"),
    "address": ("gfx942", "global_load_dwordx2 v[2:3], v0, s[0:1]", "s_waitcnt vmcnt(0)", "global_load_dword v4, v[2:3], off", "v2, v3"),
    "stored": ("gfx1100", "ds_load_b32 v1, v0", "s_waitcnt lgkmcnt(0)", "global_store_b32 v0, v1, s[0:1]", "v1"),
    "dual issue": (
        "gfx1100",
        "ds_load_b32 v9, v0",
        "s_waitcnt lgkmcnt(0)",
        "v_dual_mov_b32 v1, v2 :: v_dual_mov_b32 v4, v9",
        "v9",
    ),
    "the younger may be out": (
        "gfx1030",
        "global_load_dword v1, v0, s[0:1]\nglobal_load_dword v2, v0, s[0:1]",
        "s_waitcnt vmcnt(1)",
        "v_mov_b32_e32 v3, v1",
        "v1",
    ),
    "stores count on gfx9": (
        "gfx942",
        "global_load_dword v1, v0, s[0:1]\nglobal_store_dword v0, v2, s[0:1]",
        "s_waitcnt vmcnt(1)",
        "v_mov_b32_e32 v3, v1",
        "v1",
    ),
    "LDS": ("gfx90a", "ds_read_b128 v[4:7], v0", "s_waitcnt lgkmcnt(0)", "v_mov_b32_e32 v0, v6", "v6"),
    "LDS, gfx12": ("gfx1201", "ds_load_b128 v[4:7], v0", "s_wait_dscnt 0x0", "v_mov_b32_e32 v0, v6", "v6"),
    "LDS, not scalar": ("gfx1201", "ds_load_b32 v1, v0\nds_load_b32 v2, v0", "s_wait_dscnt 0x1", "v_mov_b32_e32 v0, v1", "v1"),
    "both, gfx12": (
        "gfx1201",
        "global_load_b32 v1, v0, s[0:1]\nds_load_b32 v2, v0\nds_load_b32 v3, v0",
        "s_wait_loadcnt_dscnt 0x1",
        "v_add_f32_e32 v0, v1, v2",
        "v1|v2",
    ),
    "across lanes": ("gfx942", "ds_bpermute_b32 v1, v2, v3", "s_waitcnt lgkmcnt(0)", "v_mov_b32_e32 v0, v1", "v1"),
    "scalar load": ("gfx942", "s_load_dwordx4 s[4:7], s[0:1], 0x0", "s_waitcnt lgkmcnt(0)", "s_mov_b32 s9, s6", "s6"),
    "scalar load, gfx12": ("gfx1201", "s_load_b128 s[4:7], s[0:1], 0x0", "s_wait_kmcnt 0x0", "s_mov_b32 s9, s6", "s6"),
    "scalar load to vcc": ("gfx942", "s_load_dwordx2 vcc, s[0:1], 0x0", "s_waitcnt lgkmcnt(0)", "s_cbranch_vccnz end", "vcc_hi, vcc_lo"),
    "barrier": ("gfx1100", "ds_store_b32 v0, v1", "s_waitcnt lgkmcnt(0)", "s_barrier", "LDS"),
    "barrier, gfx12": ("gfx1201", "ds_store_b32 v0, v1", "s_wait_dscnt 0x0", "s_barrier_signal -1", "LDS"),
    "barrier after a read": ("gfx90a", "ds_read_b32 v1, v0", "s_waitcnt lgkmcnt(0)", "s_barrier", "LDS"),
    "from memory to LDS": ("gfx942", "global_load_lds_dword v0, s[0:1]", "s_waitcnt vmcnt(0)", "s_barrier", "LDS"),
    "writes out of order, gfx12": (
        "gfx1201",
        "global_load_b32 v1, v0, s[0:1]",
        "s_wait_loadcnt 0x0",
        "global_load_b32 v1, v0, s[0:1] offset:4",
        "v1",
    ),
    "atomic that returns": ("gfx1100", "global_atomic_add_u32 v1, v0, v2, s[0:1] glc", "s_waitcnt vmcnt(0)", "v_mov_b32_e32 v0, v1", "v1"),
    "flat": ("gfx942", "flat_load_dword v1, v[2:3]", "s_waitcnt vmcnt(0) lgkmcnt(0)", "v_mov_b32_e32 v0, v1", "v1"),
    "stores, gfx10": ("gfx1030", "flat_store_dword v[2:3], v1", "s_waitcnt lgkmcnt(0)", "s_barrier", "LDS"),
}


def weakened(wait: str) -> Iterator[str]:
    """Nothing in a wait's place; the wait without one of its counters; the wait for one fewer of one of them."""
    yield "s_nop 0"
    if wait.startswith("s_waitcnt "):
        parts = re.findall(r"(\w+)\((\d+)\)", wait)
        for at, (counter, count) in enumerate(parts):
            rest = " ".join(f"{c}({n})" for c, n in parts[:at] + parts[at + 1 :])
            if rest:
                yield f"s_waitcnt {rest}"
            yield f"s_waitcnt {rest} {counter}({int(count) + 1})"
        return
    name, number = wait.split()
    first, *second = name.removeprefix("s_wait_").split("_")
    value = int(number, 0)
    yield f"{name} {value + 1:#x}"
    if second:
        yield f"s_wait_{first} {value >> 8:#x}"
        yield f"s_wait_{second[0]} {value & 0x3F:#x}"
        yield f"{name} {value + 0x100:#x}"


@pytest.mark.parametrize("name", SOUND)
def test_each_kind_of_wait(name):
    processor, before, wait, use, late = SOUND[name]

    def of(wait: str) -> list[str]:
        return problems(processor, f"{before}\n{wait}\n{use}\nend:\ns_endpgm")

    assert of(wait) == []
    for weak in weakened(wait):
        found = of(weak)
        assert found and re.match(rf"({late}) may still be under way", found[0]), (weak, found)


@pytest.mark.parametrize(
    ("processor", "text"),
    [
        ("gfx1100", "global_load_b32 v1, v0, s[0:1]\nglobal_load_b32 v1, v0, s[0:1] offset:4\ns_endpgm"),
        (
            "gfx1030",
            "global_load_dword v1, v0, s[0:1]\nglobal_store_dword v0, v2, s[0:1]\ns_waitcnt vmcnt(0)\nv_mov_b32_e32 v2, v1\ns_endpgm",
        ),
        (
            "gfx1100",
            "s_load_b32 s4, s[0:1], 0x0\nds_load_b32 v1, v0\nds_load_b32 v2, v0\ns_waitcnt lgkmcnt(1)\nv_mov_b32_e32 v3, v1\ns_endpgm",
        ),
        ("gfx1201", "global_load_b32 v1, v0, s[0:1]\ns_wait_idle\nv_mov_b32_e32 v2, v1\ns_endpgm"),
        ("gfx1201", "global_load_d16_b16 v1, v0, s[0:1]\nglobal_load_d16_hi_u8 v1, v0, s[0:1]\ns_endpgm"),
        ("gfx1030", "global_store_dword v0, v1, s[0:1]\ns_waitcnt_vscnt null, 0x0\ns_barrier\ns_endpgm"),
        ("gfx942", "global_load_dword v1, v0, s[0:1]\ns_branch on\nv_mov_b32_e32 v2, v1\non:\ns_endpgm"),
    ],
    ids=[
        *("overwritten in order", "stores count apart", "LDS is in order beside scalar loads", "wait for all", "either half", "stores"),
        "never reached",
    ],
)
def test_nothing_is_found_in_sound_code(processor, text):
    assert problems(processor, text) == []


@pytest.mark.parametrize("second", ["global_load_d16_b16", "global_load_d16_u8", "global_load_b32"])
def test_a_half_is_not_loaded_twice_at_a_time(second):
    """From gfx12 on loads write registers in any order."""
    text = f"global_load_d16_b16 v1, v0, s[0:1]\n{second} v1, v0, s[0:1]\ns_endpgm"
    assert problems("gfx1201", text) == ["v1 may still be under way (loadcnt)"]


def test_a_half_is_not_used_while_the_other_is_under_way():
    text = "global_load_d16_hi_b16 v1, v0, s[0:1]\nv_add_f16_e32 v2.l, v1.l, v2.l\ns_endpgm"
    assert problems("gfx1201", text) == ["v1 may still be under way (loadcnt)"]


def test_scalar_loads_come_in_any_order():
    text = "s_load_b32 s4, s[0:1], 0x0\ns_load_b32 s5, s[0:1], 0x4\ns_waitcnt lgkmcnt(1)\ns_mov_b32 s6, s4\ns_endpgm"
    assert problems("gfx1100", text) == ["s4 may still be under way (lgkmcnt)"]


def test_every_path_counts():
    """One way round has the wait, the other has not; and what a loop's last pass loaded is used in the next."""
    one_way = """
        global_load_b32 v1, v0, s[0:1]
        s_cbranch_scc1 around
        s_waitcnt vmcnt(0)
        around:
        v_mov_b32_e32 v2, v1
        s_endpgm"""
    assert problems("gfx1100", one_way) == ["v1 may still be under way (vmcnt)"]
    loop = """
        v_mov_b32_e32 v1, 0
        again:
        v_mov_b32_e32 v2, v1
        global_load_b32 v1, v0, s[0:1]
        s_cbranch_scc1 again
        s_endpgm"""
    assert problems("gfx1100", loop) == ["v1 may still be under way (vmcnt)"]
    assert problems("gfx1100", loop.replace("s_cbranch_scc1", "s_waitcnt vmcnt(0)\ns_cbranch_scc1")) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("s_swappc_b64 s[30:31], s[2:3]\ns_endpgm", "control flow that is not followed"),
        ("image_load v[0:3], v[4:5], s[0:7]\ns_endpgm", "a memory instruction that is not known"),
        ("ds_gws_barrier v0\ns_endpgm", "an LDS instruction that is not known"),
        ("s_waitcnt 0xc07f\ns_endpgm", "a wait that is not understood"),
        ("v_mov_b32_e32 v0, v1", "control flow leaves the kernel"),
    ],
)
def test_what_is_not_understood_is_said(text, problem):
    assert problem in problems("gfx1100", text)


def test_registers():
    assert registers("v[2:3], s7, -|a1|, vcc, exec_lo, v9.h, m0, ttmp9, s[4], off, 0x3") == {
        *("v2.l", "v2.h", "v3.l", "v3.h", "s7", "a1", "vcc_lo", "vcc_hi", "exec_lo", "v9.l", "v9.h", "m0", "ttmp9", "s4")
    }


# ---- Against an enumeration of all paths

CHOICES = ("load v1", "load v2", "lds v1", "lds v3", "scalar", "store", "use v1", "use v2", "use v3", "use s4")
CHOICES += ("wait vm 0", "wait vm 1", "wait lgkm 0", "wait lgkm 1", "branch", "jump")
SPELLED = {
    "load": "global_load_b32 {}, v0, s[0:1]",
    "lds": "ds_load_b32 {}, v0",
    "scalar": "s_load_b32 s4, s[0:1], 0x0",
    "store": "global_store_b32 v0, v0, s[0:1]",
    "use": "v_mov_b32_e32 v9, {}",
    "wait": "s_waitcnt {}cnt({})",
    "branch": "s_cbranch_scc1 l{}",
    "jump": "s_branch l{}",
}


def late_uses(steps: list[tuple[str, ...]]) -> set[int]:
    """Where something is used that may not have come, by following every path with what is out on it.

    Of two loads of a kind to one register only the younger is kept: it is out as long, and what waits leave out is one at most.
    """
    found: set[int] = set()
    seen = set()
    todo: list[tuple[int, tuple[tuple[str, str], ...]]] = [(0, ())]  # (counter, register) of what is out, the youngest first
    while todo:
        at, out = todo.pop()
        if (at, out) in seen or at == len(steps):
            continue
        seen.add((at, out))
        kind, *arguments = steps[at]
        used = {"use": arguments[:1], "load": arguments[:1], "lds": arguments[:1], "scalar": ["s4"]}.get(kind, [])
        if any(register in used and not (kind == "load" and counter == "vm") for counter, register in out):
            found.add(at)
        if kind == "wait":
            counter, most = arguments[0], int(arguments[1])
            kept, count = [], 0
            for one in out:
                mine = one[0].startswith(counter)
                in_order = mine and one != ("lgkm any", "s4")
                if not mine or (count < most if in_order else most > 0):
                    kept.append(one)
                count += in_order
            out = tuple(kept)
        elif kind in ("load", "lds", "scalar"):
            counter = {"load": "vm", "lds": "lgkm", "scalar": "lgkm any"}[kind]
            out = tuple(dict.fromkeys(((counter, used[0]), *out)))
        if kind in ("branch", "jump"):
            todo.append((int(arguments[0]), out))
        if kind != "jump":
            todo.append((at + 1, out))
    return found


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(CHOICES), st.integers(0, 12)), min_size=1, max_size=12))
def test_against_all_paths(drawn):
    steps = [(*choice.split(), *([str(to % (len(drawn) + 1))] if choice in ("branch", "jump") else [])) for choice, to in drawn]
    lines = [f"l{n}:\n" + SPELLED[kind].format(*arguments) for n, (kind, *arguments) in enumerate(steps)]
    findings = check_kernel("kernel", program("\n".join([*lines, f"l{len(steps)}:", "s_endpgm"])), "gfx1100")
    assert {finding.address // 8 for finding in findings} == late_uses(steps)


# ---- Code objects as they ship


@pytest.mark.parametrize("target", ["gfx942", "gfx1030", "gfx1100", "gfx1201"])
@pytest.mark.parametrize("key", ["mul_mat.q8_0.float", "mul_mat.q4_0.q8_1", "mul_mat_vec.q6_k.2"])
def test_hardly_a_wait_can_be_weaker(environment, target, key):
    """Nothing is found in a kernel as it is compiled, and something where any one wait is left out or waits for one fewer.

    Except for a few that are there for other reasons: on gfx12 a barrier's fence waits for vector loads too.
    """
    spec = KernelSpec.parse(key)
    with Compilations(Compiler.find()) as compilations:
        vmfb = compile_module(Module(TARGETS[target], spec.format, (spec,)), compilations, Cache())
    objdump = Objdump.find()
    assert isinstance(objdump, Objdump)
    tried, missed = 0, []
    for elf in (elf for executable in Vmfb.parse(vmfb.read_bytes()).executables.values() for elf in codeobject.find(executable)):
        code, listing = CodeObject.parse(elf), objdump.listing(elf, "rocm")
        assert check(code, listing) == []
        for kernel in code.kernels:
            own = [i for i in instructions(listing) if kernel.address <= i.address < kernel.address + kernel.code_bytes]
            waits = [n for n, i in enumerate(own) if re.match(r"s_waitcnt \w+cnt\(|s_wait_(load|ds|km)cnt", i.text)]
            for at in waits[:: max(1, len(waits) // 10)]:
                for weak in weakened(own[at].text):
                    tried += 1
                    altered = [*own[:at], Instruction(own[at].address, weak, 0), *own[at + 1 :]]
                    if not check_kernel(kernel.name, altered, target):
                        missed.append((kernel.name, hex(own[at].address), own[at].text, weak))
    assert tried >= 10
    assert len(missed) <= tried / 10, missed
