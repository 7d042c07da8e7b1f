"""What runs on every commit: every kernel of each format on one emulated GPU, and something of everything on all kinds of them.

Each format's kernels run on the processor of one generation, the formats taking them in turn. What can differ between processors is the
instructions and the state that a kernel starts with, not what a format's weights are: on each processor of a kind of its own a few kernels
run, others on each. Processors that differ from one of these in their
number only are compiled for and looked at, with one kernel. `make emulate-all` runs every kernel of every format. IQ_EMULATED_TARGETS names
targets to run every kernel on instead ("all": every ROCm target).
"""

import os
from collections.abc import Hashable
from dataclasses import replace

import numpy as np

from iq import kernels
from iq.formats import FORMATS, Format
from iq.kernels import KernelSpec, plan
from iq.targets import TARGETS, Target

# One of each generation: the formats' kernels run on them in turn.
GENERATIONS = ("gfx942", "gfx1030", "gfx1100", "gfx1201")
# Something of everything runs on these, which are of a kind of their own.
OTHERS = ("gfx906", "gfx908", "gfx90a", "gfx950", "gfx1010", "gfx1012", "gfx1036", "gfx1103", "gfx1151", "gfx1200")
ROCM = [target.id for target in TARGETS.values() if target.family == "rocm"]
NAMED = os.environ.get("IQ_EMULATED_TARGETS", "")
EMULATED = ROCM if NAMED == "all" else NAMED.split(",") if NAMED else list(GENERATIONS)


def formats_of(target: str) -> list[str]:
    """The formats whose kernels all run on a target."""
    if target not in EMULATED:
        return []
    with_kernels = [name for name in FORMATS if kernels.select(name)]
    return [name for n, name in enumerate(with_kernels) if NAMED or GENERATIONS[n % len(GENERATIONS)] == target]


# A target and a format each, whose kernels all run.
EVERY_KERNEL = [(target, name) for target in EMULATED for name in formats_of(target)]


def decode_shape(fmt: type[Format]) -> Hashable:
    """What the code that decodes weights follows from; formats of equal shape differ in where their bytes lie."""
    entries = tuple(table.shape[1:] for table in fmt.tables().values())
    return fmt.kind, fmt.sub_block, fmt.interleave, fmt.zero != 0, fmt.signed, fmt.mins, entries


# The first format of each decode shape.
REPRESENTATIVES = list({decode_shape(fmt): name for name, fmt in reversed(FORMATS.items())}.values())[::-1]


def row_of(target: Target) -> Target:
    """What a target's row says beside its name: processors whose rows are equal have the same kernels, laid out in the same way."""
    return replace(target, id=target.like or target.id, like="")


_QUANTIZED = [name for name in REPRESENTATIVES if FORMATS[name].kind == "weights"]

# Targets that have kernels of their own, the first of those with equal rows; GENERATIONS are among them.
DISTINCT = list({row_of(t): t for t in sorted(TARGETS.values(), key=lambda t: t.id in GENERATIONS)}.values())

# Modules to look at, not to run: targets and formats. Those that are emulated, and of each other target with kernels of its own one, of
# quantized weights in another decode shape each; gfx90a has the kernels of gfx942, and fewer registers.
MODULES = [(TARGETS[id], FORMATS[name]) for id, name in EVERY_KERNEL]
MODULES += [
    (target, FORMATS[_QUANTIZED[n % len(_QUANTIZED)]])
    for n, target in enumerate(
        (t for t in (TARGETS["gfx90a"], *DISTINCT) if t.family == "rocm" and t.id not in EMULATED), start=_QUANTIZED.index("q4_k")
    )
]


def something_of_everything(target: Target) -> list[KernelSpec]:
    """Kernels with every arithmetic unit, a table, a codebook, and every third kernel function among them; the target's name decides.

    Three of OTHERS that follow one another have all functions; other targets have all of them.
    """
    everything = [spec for spec in kernels.kernels(target) if spec.format in REPRESENTATIVES]
    functions = sorted({dispatch.kernel.name for spec in everything for dispatch in plan(spec, target)})
    wanted: set[Hashable] = {"dot", "matrix", "vector", "table", "codebook", *_third(functions, target)}
    chosen, seen = [], set[Hashable]()
    for n in np.random.default_rng(list(target.id.encode())).permutation(len(everything)):
        spec = everything[n]
        dispatches, fmt = plan(spec, target), FORMATS[spec.format]
        brings = {dispatches[-1].kernel.unit, *(d.kernel.name for d in dispatches)}
        brings |= {name for name, has in (("table", fmt.tables()), ("codebook", fmt.codebook)) if has}
        if not brings & wanted <= seen:
            chosen.append(spec)
            seen |= brings
    return chosen


def _third(names: list[str], target: Target) -> list[str]:
    """Every third of the names, another third for each of OTHERS; all of them for other targets."""
    return [name for n, name in enumerate(names) if target.id not in OTHERS or (n - OTHERS.index(target.id)) % 3 == 0]


def generation(processor: str) -> str:
    """The generation of a processor: gfx9, gfx10, gfx11, gfx12."""
    return processor.removesuffix(processor[-2:])


assert {generation(id) for id in GENERATIONS} == {generation(id) for id in ROCM}
assert {t.id for t in DISTINCT if t.family == "rocm"} <= {*GENERATIONS, *OTHERS}
