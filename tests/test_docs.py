"""The documentation is about this tree: what it lists stands in the files that it names, and what it points to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(p for folder in (ROOT, ROOT / "docs", ROOT / "docs/decisions") for p in folder.glob("*.md") if p.name != "CHANGELOG.md")
pages = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))

# A listing: a line with nothing but a file's path, then the fenced lines of it.
LISTING = re.compile(r"^`([^`\n]+)`\n\n```(?:python|mlir)\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"`((?:iq|tests|tools|benchmarks|docs|examples|templates|formats)/[\w./-]+)`")
LINK = re.compile(r"\]\(([\w./-]+)\)")
COMMAND = re.compile(r"(?:pytest|python) ((?:(?:tests|tools|benchmarks)/[\w./-]+ ?)+)")


def lines(text: str) -> str:
    """The text without its indentation."""
    return "\n".join(line.strip() for line in text.splitlines())


def is_there(name: str) -> bool:
    return any((ROOT / folder / name).exists() for folder in (".", "iq", "iq/templates"))


@pages
def test_listings(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    listings = LISTING.findall(text)
    for file, listing in listings:
        assert lines(listing) in lines((ROOT / file).read_text(encoding="utf-8")), f"{page.name} lists what {file} does not have"
    if page.name.startswith("new-"):
        assert len(listings) == len(re.findall(r"^```\w+$", text, re.MULTILINE)) > 0, "a listing of no file"


@pages
def test_what_is_pointed_to_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    names = [*FILE.findall(text), *(name for found in COMMAND.findall(text) for name in found.split())]
    assert [name for name in names if not is_there(name)] == []
    assert [name for name in LINK.findall(text) if not (page.parent / name).exists()] == []


def test_all_decisions_are_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    assert set(LINK.findall((folder / "README.md").read_text(encoding="utf-8"))) == {p.name for p in folder.glob("*.md")} - {"README.md"}


@pages
def test_only_this_project_is_named(page: Path) -> None:
    """No paths of the machine that a page was written on."""
    assert not re.findall(r"(?:^|[\s(`])/(?:work|tmp|home|root)/\S*", page.read_text(encoding="utf-8"))
