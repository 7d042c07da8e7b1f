"""Files and directories that appear whole or not at all."""

from collections.abc import Callable
from pathlib import Path

import pytest

from iq.atomic import replacing


def a_file(path: Path, text: str) -> None:
    path.write_text(text)


def a_directory(path: Path, text: str) -> None:
    path.mkdir()
    (path / "file").write_text(text)


def contents(directory: Path) -> dict[str, str]:
    return {str(p.relative_to(directory)): p.read_text() for p in directory.rglob("*") if p.is_file()}


Make = Callable[[Path, str], None]
KINDS = pytest.mark.parametrize("make", [a_file, a_directory])


@KINDS
@pytest.mark.parametrize("old", [None, a_file, a_directory])
def test_replacing(tmp_path: Path, make: Make, old: Make | None) -> None:
    path = tmp_path / "it"
    if old:
        old(path, "old")
    with replacing(path) as new:
        assert new.name == path.name
        make(new, "new")
        assert path.exists() == bool(old)
    assert list(contents(tmp_path).values()) == ["new"]
    assert [p.name for p in path.parent.iterdir()] == ["it"]


@KINDS
@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_what_was_there(tmp_path: Path, make: Make, failure: type[BaseException]) -> None:
    make(tmp_path / "it", "old")
    before = contents(tmp_path)
    with pytest.raises(failure), replacing(tmp_path / "it") as new:
        make(new, "half")
        raise failure
    assert contents(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["it"]


def test_an_interrupt_between_the_two_renames_of_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_directory(tmp_path / "it", "old")
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if (self / "file").read_text() == "new":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "it") as new:
        a_directory(new, "new")
    assert contents(tmp_path) == {"it/file": "old"}


def test_nothing_was_built(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "it"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "none" / "it"):
        pass
    assert list(tmp_path.iterdir()) == []
