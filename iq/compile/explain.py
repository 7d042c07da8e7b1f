"""Which kernel multiplies a matrix, why, what else there is, and how it is laid over the target: nothing compiled, nothing run."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from iq.errors import ShapeError
from iq.formats import format_of
from iq.kernels import Problem, choose, plan
from iq.kernels.kernel import all_sizes
from iq.targets import Target


@dataclass(frozen=True)
class Dispatch:
    """One launch: the function on the device, the sizes it is given, its schedule, the threads of a workgroup, workgroups along x, y, z."""

    name: str
    sizes: dict[str, int]
    schedule: dict[str, int]
    threads: int
    workgroups: tuple[int, ...]


@dataclass(frozen=True)
class Explanation:
    """A matrix multiplication: the kernel's key, the target, why this kernel, the keys of the others, and the dispatches it makes."""

    key: str
    target: str
    why: str
    others: tuple[str, ...]
    dispatches: tuple[Dispatch, ...]


def explain(format: str, target: Target, problem: Problem, via: str | None = None) -> Explanation:
    """How a weight of [n, k] is multiplied with m rows of activations, or those of experts for m picks; `via` as in QTensor.matmul.

    Raises FormatError for an unknown format or a `via` it does not have, ShapeError for sizes that it cannot have.
    """
    fmt = format_of(format)
    if problem.k % fmt.kernel_block_weights():
        raise ShapeError(f"{fmt.name} kernels take rows of a multiple of {fmt.kernel_block_weights()} weights, not K = {problem.k}")
    choice = choose("mul_mat_id" if problem.experts else "mul_mat", fmt, target, problem, via)
    given = {"m": problem.m, "n": problem.n, "blocks": problem.k // fmt.kernel_block_weights()}
    if problem.experts:  # each pick with its own row of activations
        given |= {"share": 1, "picks": problem.m, "experts": problem.experts}
    planned = plan(choice.spec, target)
    sizes = all_sizes(fmt, given, {name: number for dispatch in planned for name, number in dispatch.constants})
    dispatches = tuple(
        Dispatch(
            dispatch.name,
            {name: sizes[name] for name in dispatch.kernel.sizes},
            asdict(dispatch.schedule),
            dispatch.schedule.threads(target.wave),
            dispatch.workgroups(sizes),
        )
        for dispatch in planned
    )
    return Explanation(choice.spec.key, target.id, choice.why, choice.others, dispatches)
