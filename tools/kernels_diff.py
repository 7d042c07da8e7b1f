"""Compares the compiled kernels of the working tree with those of a git revision: what a change of templates or schedules did to them.

    make kernels-diff BASE=main~3
    python tools/kernels_diff.py HEAD --target gfx1100,sm_90 --format q4_k
    python tools/kernels_diff.py --before old-artifacts --after artifacts

Dispatches are paired by kernel and by the columns or the element type that they are for; the rest of a name is the schedule, which may
differ. Each pair is the same to the byte (in PTX for CUDA), or shown with its figures before and after. On x86, where code loads constants
from elsewhere in the file, a kernel that did not change may be "as long" because these moved.

The exit status is 1 where a kernel exceeds the budget: it spills or uses scratch, has over 5% more vector instructions or code, or fewer of
its waves fit a SIMD; 2 where nothing could be compared. Registers on CUDA are those that ptxas gives; where it is not installed, PTX alone
is compared.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from kernel_code import Dispatch, dispatches_of

from iq.inspect import Objdump

REPOSITORY = Path(__file__).resolve().parent.parent
TARGETS = "gfx90a,gfx942,gfx1030,gfx1100,gfx1201,sm_90,cpu"
GROWTH = 1.05  # what a kernel may gain of vector instructions and code bytes

# Instructions whose number is held to the budget: AMD's, PTX's, x86's, aarch64's.
VECTOR_CLASSES = ("valu", "alu", "vector", "fma", "other")

# KERNEL, then _<columns>, _m<columns> or _<dtype>, then the schedule: parts of letters and numbers, or single letters.
_NAME = re.compile(r"(?P<kernel>\w+?)(?:_(?:m?(?P<columns>\d+)|(?P<dtype>b?f\d+)))?(?:_(?:[a-z]+\d+(?:x\d+)*|[a-z]))*")


def normalised(name: str) -> str:
    """A dispatch's name without its schedule. "mul_mat_vec_3" and "mul_mat_vec_m3_n4_w4" both become "mul_mat_vec 3"."""
    found = _NAME.fullmatch(name)
    return " ".join(part for part in found.groups() if part) if found else name


def memory_for_registers(dispatch: Dispatch) -> list[str]:
    """What a kernel spills and uses of scratch, in words."""
    return [f"{name} {dispatch.figures[name]}" for name in ("spills", "scratch") if dispatch.figures.get(name)]


@dataclass(frozen=True)
class Pair:
    """A dispatch before and after. file: the vmfb that both are in, as in "gfx942/q4_k"."""

    file: str
    before: Dispatch
    after: Dispatch

    @property
    def verdict(self) -> str:
        """ "same" to the byte; else "shorter", "longer" or "as long", by code bytes, or by instructions where those are not known."""
        if self.before.code == self.after.code:
            return "same"
        before, after = (d.figures.get("code bytes", d.figures.get("instructions", len(d.code))) for d in (self.before, self.after))
        return "shorter" if after < before else "longer" if after > before else "as long"

    @property
    def excesses(self) -> list[str]:
        """What exceeds the budget, in words."""
        if self.verdict == "same":
            return []
        before, after = self.before.figures, self.after.figures
        found = memory_for_registers(self.after)
        for name, counted in (("vector instructions", VECTOR_CLASSES), ("code bytes", ("code bytes",))):
            was, now = (sum(figures.get(c, 0) for c in counted) for figures in (before, after))
            if was and now > GROWTH * was:
                found.append(f"{name} {was} -> {now} (+{100 * (now / was - 1):.0f}%)")
        if self.before.waves and self.after.waves and self.after.waves < self.before.waves:
            found.append(f"vgprs {before['vgprs']} -> {after['vgprs']}, waves that fit {self.before.waves} -> {self.after.waves}")
        return found

    @property
    def changes(self) -> str:
        """The figures, before -> after where they differ; what is 0 in both is left out."""
        before, after = self.before.figures, self.after.figures
        pairs = {name: (before.get(name, 0), after.get(name, 0)) for name in {**before, **after}}
        return ", ".join(f"{name} {a} -> {b}" if a != b else f"{name} {a}" for name, (a, b) in pairs.items() if a or b)


@dataclass(frozen=True)
class Comparison:
    """The dispatches of two trees: pairs, and those that only one has, by names such as "gfx942/q4_k: mul_mat_vec_3"."""

    pairs: list[Pair]
    removed: dict[str, Dispatch]
    added: dict[str, Dispatch]

    @property
    def excesses(self) -> dict[str, list[str]]:
        """By dispatch, what exceeds the budget; new ones may neither spill nor use scratch."""
        found = {f"{pair.file}: {pair.after.name}": pair.excesses for pair in self.pairs}
        found |= {name: memory_for_registers(dispatch) for name, dispatch in self.added.items()}
        return {name: words for name, words in found.items() if words}


Vmfbs = Mapping[str, bytes]


def compare(before: Vmfbs, after: Vmfbs, renamed: Mapping[str, str], objdump: Objdump | None) -> Comparison:
    """Pair the dispatches of vmfbs of the same name. renamed: old names, with or without schedules, and the new ones.

    Raises BytecodeError for a file that is no vmfb.
    """
    result = Comparison([], {}, {})
    for file in sorted({**before, **after}):
        olds = dispatches_of(before[file], objdump) if file in before else []
        news = dispatches_of(after[file], objdump) if file in after else []
        by_name, by_key = {d.name: d for d in news}, defaultdict(list)
        for new in sorted(news, key=lambda d: (len(d.name), d.name)):  # of several schedules, the default has the shortest name
            by_key[normalised(new.name)].append(new)
        left = set(by_name)
        for old in olds:
            key = normalised(old.name)
            wanted = renamed.get(old.name) or renamed.get(key) or old.name
            candidates = [by_name[wanted]] if wanted in by_name else by_key[wanted if wanted != old.name else key]
            if free := [d for d in candidates if d.name in left]:
                left.discard(free[0].name)
                result.pairs.append(Pair(file, old, free[0]))
            else:
                result.removed[f"{file}: {old.name}"] = old
        result.added.update((f"{file}: {name}", new) for name, new in by_name.items() if name in left)
    return result


def fail(message: str) -> NoReturn:
    """Exit with status 2: nothing was compared."""
    print(message, file=sys.stderr)
    raise SystemExit(2)


def vmfbs_at(folder: Path) -> Vmfbs:
    """The vmfbs below a folder, by their paths in it without the suffix."""
    return {str(path.relative_to(folder).with_suffix("")): path.read_bytes() for path in sorted(folder.rglob("*.vmfb"))}


def compiled(tree: Path, out: Path, targets: str, formats: str | None) -> Vmfbs:
    """What the `iq compile` of a source tree makes; what the cache of kernels has is not compiled again. Exits when it fails."""
    command = [sys.executable, "-c", "from iq.cli import main; main()", "compile", "--target", targets, "--out", str(out)]
    command += ["--format", formats] if formats else []
    done = subprocess.run(command, cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        fail(f"{tree}: `iq compile` failed with status {done.returncode}")
    return vmfbs_at(out)


def checkout(revision: str, folder: Path) -> Path:
    """The package's sources at a git revision, in a folder: no worktree that could be left behind. Exits for an unknown revision."""
    git = shutil.which("git")
    if git is None:
        fail("no git to get the revision with: compare two folders of bundles with --before and --after")
    done = subprocess.run([git, "archive", revision, "iq"], cwd=REPOSITORY, capture_output=True, check=False)
    if done.returncode:
        fail(f"git archive {revision}: {done.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def show(result: Comparison) -> None:
    """Print the pairs file by file, what has no partner, the summary, and what exceeds the budget."""
    for file in dict.fromkeys(pair.file for pair in result.pairs):
        pairs = [pair for pair in result.pairs if pair.file == file]
        print(file)
        if same := [pair.after.name for pair in pairs if pair.verdict == "same"]:
            print(f"  same: {', '.join(same)}")
        for pair in (p for p in pairs if p.verdict != "same"):
            name = pair.after.name if pair.after.name == pair.before.name else f"{pair.before.name} -> {pair.after.name}"
            print(f"  {pair.verdict}: {name}\n    {pair.changes}")
    for title, names in (("only before", result.removed), ("only after", result.added)):
        if names:
            print(f"{title}:\n  " + "\n  ".join(names))
    counts = Counter(pair.verdict for pair in result.pairs)
    print("\n" + ", ".join(f"{counts[v]} {v}" for v in ("same", "shorter", "as long", "longer")), end=", ")
    print(f"{len(result.removed)} only before, {len(result.added)} only after")
    for name, words in result.excesses.items():
        print(f"over the budget: {name}: {'; '.join(words)}")


def as_json(result: Comparison) -> dict[str, Any]:
    """The comparison as it is written with --json. Kernels that are the same have no figures."""
    pairs = [
        {
            "file": pair.file,
            "before": pair.before.name,
            "after": pair.after.name,
            "verdict": pair.verdict,
            "figures": None if pair.verdict == "same" else {"before": pair.before.figures, "after": pair.after.figures},
            "excesses": pair.excesses,
        }
        for pair in result.pairs
    ]
    return {"pairs": pairs, "only_before": [*result.removed], "only_after": [*result.added], "excesses": result.excesses}


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", nargs="?", help="the git revision to compare the working tree with")
    parser.add_argument("--target", default=TARGETS, help=f"comma-separated targets or groups; {TARGETS} by default")
    parser.add_argument("--format", help="comma-separated formats; all of each tree by default")
    parser.add_argument("--before", type=Path, help="a folder of compiled bundles, in place of a revision")
    parser.add_argument("--after", type=Path, help="a folder of compiled bundles, in place of the working tree")
    parser.add_argument(
        "--pair", action="append", default=[], metavar="OLD=NEW", help="a dispatch that has another name now; may be repeated"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(None if arguments is None else list(arguments))
    if (options.base is None) == (options.before is None):
        parser.error("name either a revision or --before FOLDER")
    if wrong := [pair for pair in options.pair if pair.count("=") != 1]:
        parser.error(f"--pair {wrong[0]}: expected OLD=NEW")
    objdump = Objdump.find()
    if isinstance(objdump, str):
        fail(objdump)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kernels-diff-")))
        if options.before:
            before = vmfbs_at(options.before)
        else:
            before = compiled(checkout(options.base, folder / "base"), folder / "before", options.target, options.format)
        after = vmfbs_at(options.after) if options.after else compiled(REPOSITORY, folder / "after", options.target, options.format)
    if not before or not after:
        parser.error(f"no vmfb in {options.before if not before else options.after}")
    result = compare(before, after, dict(pair.split("=") for pair in options.pair), objdump)
    if options.json:
        print(json.dumps(as_json(result), indent=2))
    else:
        show(result)
    return 1 if result.excesses else 0


if __name__ == "__main__":
    sys.exit(main())
