"""Which disassemblers are used: those that decode the probes, whatever their version."""

import os
import shutil
from pathlib import Path

import pytest

from iq.inspect.disassembly import Objdump
from iq.inspect.probe import PROBES

REAL = Objdump.find()


def tool(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def altered(path: Path, edit: str = "") -> Path:
    """The real disassembler, with its output edited, that counts its runs in a file beside it."""
    assert isinstance(REAL, Objdump), REAL
    return tool(path, f"echo >> {path}.runs; {REAL.executable} \"$@\" | sed '{edit}'")


def runs(path: Path) -> int:
    return len(Path(f"{path}.runs").read_text().splitlines())


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IQ_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("IQ_LLVM_OBJDUMP", raising=False)


def named(path: Path, monkeypatch: pytest.MonkeyPatch) -> Objdump | str:
    monkeypatch.setenv("IQ_LLVM_OBJDUMP", str(path))
    return Objdump.find()


def test_one_that_decodes_all_is_used_whatever_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = altered(tmp_path / "disassembler")
    assert named(path, monkeypatch) == Objdump(str(path))


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        # What LLVM 19.1.7 prints.
        (
            r"s|v_add_co_u32 v3, s4, s4, v3  *//|.long 0xd70f0403//|",
            "prints '.long 0xd70f0403' for gfx1030's 'v_add_co_u32 v3, s4, s4, v3'",
        ),
        (
            r"s|v_cvt_f16_f32_e32 v10.h, v12  *//|.long 0x7f14150c//|",
            "prints '.long 0x7f14150c' for gfx1100's 'v_cvt_f16_f32_e32 v10.h, v12'",
        ),
        (r"s|v10\.h|v10|", "prints 'v_cvt_f16_f32_e32 v10, v12' for gfx1100's 'v_cvt_f16_f32_e32 v10.h, v12'"),
        (r"/v_mfma/d", "prints '' for gfx90a's 'v_mfma_f32_16x16x16f16"),
        (r"/global_load_b128/d", "prints '' for gfx1201's 'global_load_b128"),
    ],
)
def test_one_that_does_not_decode_an_instruction_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edit: str, fault: str) -> None:
    path = altered(tmp_path / "llvm-objdump", edit)
    refusal = named(path, monkeypatch)
    assert isinstance(refusal, str)
    assert f"({path} {fault}" in refusal
    assert refusal.endswith("apt-get install llvm-22, or name one with IQ_LLVM_OBJDUMP")


def test_one_that_cannot_read_the_elf_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tool(tmp_path / "llvm-objdump", "echo 'no such target' >&2; exit 1")
    assert f"({path} cannot disassemble gfx90a's code)" in str(named(path, monkeypatch))
    assert f"(there is no {tmp_path}/none)" in str(named(tmp_path / "none", monkeypatch))


def test_the_answer_is_kept_until_the_executable_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = altered(tmp_path / "llvm-objdump")
    for _ in range(3):
        assert isinstance(named(path, monkeypatch), Objdump)
    assert runs(path) == len(PROBES)
    os.utime(path, (1, 1))
    assert isinstance(Objdump.find(), Objdump)
    assert runs(path) == 2 * len(PROBES)
    altered(path, "/v_mfma/d")
    assert isinstance(Objdump.find(), str)
    assert isinstance(Objdump.find(), str)
    assert runs(path) == 2 * len(PROBES) + 1


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("IQ_CACHE_DIR", str(tmp_path / "file"))
    assert isinstance(named(altered(tmp_path / "llvm-objdump"), monkeypatch), Objdump)


def test_the_search_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "sed"):
        (folder / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(folder))
    assert "(there is none on PATH)" in str(Objdump.find())
    plain = altered(folder / "llvm-objdump")
    assert Objdump.find() == Objdump(str(plain))
    good, bad = altered(folder / "llvm-objdump-9"), altered(folder / "llvm-objdump-101", "/v_mfma/d")
    altered(folder / "llvm-objdump-99-wrapper")
    assert Objdump.find() == Objdump(str(good))
    good.unlink()
    plain.unlink()
    assert f"({bad} prints '' for gfx90a's" in str(Objdump.find())
