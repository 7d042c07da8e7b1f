"""What runs on every commit: each kernel of each format on one processor a generation, and on the others something of everything.

On the others, what can differ is the instructions and the state that a kernel starts with, not what a format's weights are: there, a few
kernels run that have every way to decode weights and every kernel function among them, others on each processor. Processors that differ
from one of these in their number only are compiled for and looked at, with one kernel. `make emulate-all` runs every kernel on every
target. IQ_EMULATED_TARGETS names targets to run every kernel on instead ("all": every ROCm target).
"""

import os
from collections.abc import Hashable
from dataclasses import replace

import numpy as np

from iq import kernels
from iq.formats import FORMATS, Format
from iq.kernels import KernelSpec, plan
from iq.targets import TARGETS, Target

# Every kernel runs on these.
GENERATIONS = ("gfx942", "gfx1030", "gfx1100", "gfx1201")
# Something of everything runs on these, which are of a kind of their own.
OTHERS = ("gfx906", "gfx908", "gfx90a", "gfx950", "gfx1010", "gfx1012", "gfx1036", "gfx1103", "gfx1151", "gfx1200")
ROCM = [target.id for target in TARGETS.values() if target.family == "rocm"]
NAMED = os.environ.get("IQ_EMULATED_TARGETS", ",".join(GENERATIONS))
EMULATED = ROCM if NAMED == "all" else NAMED.split(",")


def decode_shape(fmt: type[Format]) -> Hashable:
    """What the code that decodes weights follows from; formats of equal shape differ in where their bytes lie."""
    entries = tuple(table.shape[1:] for table in fmt.tables().values())
    return fmt.kind, fmt.sub_block, fmt.interleave, fmt.zero != 0, fmt.signed, fmt.mins, entries


# The first format of each decode shape.
REPRESENTATIVES = list({decode_shape(fmt): name for name, fmt in reversed(FORMATS.items())}.values())[::-1]


def _row(target: Target) -> Target:
    """What a target's row says beside its name: processors whose rows are equal have the same kernels, laid out in the same way."""
    return replace(target, id=target.like or target.id, like="")


# Targets that have kernels of their own, the first of those with equal rows; those that run all kernels are among them.
DISTINCT = list({_row(t): t for t in sorted(TARGETS.values(), key=lambda t: t.id in GENERATIONS)}.values())

# Modules to look at, not to run: targets and formats. Those that are emulated, and of each other target with kernels of its own one, of
# quantized weights in another decode shape each; gfx90a has the kernels of gfx942, and fewer registers.
_QUANTIZED = [name for name in REPRESENTATIVES if FORMATS[name].kind == "weights"]
MODULES = [(TARGETS[id], FORMATS[name]) for id in EMULATED for name in FORMATS]
MODULES += [
    (target, FORMATS[_QUANTIZED[n % len(_QUANTIZED)]])
    for n, target in enumerate(
        (t for t in (TARGETS["gfx90a"], *DISTINCT) if t.family == "rocm" and t.id not in EMULATED), start=_QUANTIZED.index("q4_k")
    )
]


def something_of_everything(target: Target) -> list[KernelSpec]:
    """Kernels with every decode shape and every kernel function among them; which ones, the target's name decides."""
    candidates = [spec for spec in kernels.kernels(target) if spec.format in REPRESENTATIVES]
    chosen, seen = [], set[Hashable]()
    for n in np.random.default_rng(list(target.id.encode())).permutation(len(candidates)):
        spec = candidates[n]
        brings = {("format", spec.format), *(("kernel", dispatch.kernel.name) for dispatch in plan(spec, target))}
        if not brings <= seen:
            chosen.append(spec)
            seen |= brings
    return chosen


def generation(processor: str) -> str:
    """The generation of a processor: gfx9, gfx10, gfx11, gfx12."""
    return processor.removesuffix(processor[-2:])


assert {generation(id) for id in GENERATIONS} == {generation(id) for id in ROCM}
assert {t.id for t in DISTINCT if t.family == "rocm"} <= {*GENERATIONS, *OTHERS}
