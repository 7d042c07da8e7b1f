"""Which kernel multiplies a matrix, and how it is laid over the target: read off the tables, nothing compiled, nothing run."""

from __future__ import annotations

from dataclasses import dataclass

from iq.compile.render import dispatch as dispatch_of
from iq.errors import ShapeError
from iq.formats import format_of
from iq.ops import choose_mul_mat
from iq.targets import Target


@dataclass(frozen=True)
class Dispatch:
    """One launch: the kernel, its threads a workgroup, the sizes it is given, its tiles and its workgroups along x and y."""

    name: str
    threads: int
    sizes: dict[str, int]
    tiles: dict[str, int]
    workgroups: tuple[int, ...]


@dataclass(frozen=True)
class Explanation:
    """A matrix multiplication: the kernel's key, the target, and the dispatches it makes."""

    key: str
    target: str
    dispatches: tuple[Dispatch, ...]


def explain(format: str, target: Target, rows: int, k: int, columns: int, via: str | None = None) -> Explanation:
    """How a weight of `rows` x `k` is multiplied with `columns` rows of activations; `via` as in QTensor.matmul.

    Raises FormatError for an unknown format or a `via` it does not have, ShapeError for sizes that it cannot have.
    """
    fmt = format_of(format)
    if rows < 1 or k < 1 or k % fmt.weights():
        raise ShapeError(f"a weight of {rows} x {k}: rows must be positive and k a positive multiple of {fmt.weights()} for {fmt.name}")
    spec = choose_mul_mat(fmt, target, columns, via)
    sizes = {"columns": columns, "rows": rows, "k": k, "blocks": k // fmt.weights(), "spans": k // 32}
    dispatches = []
    for stage in spec.stages(target):
        dispatch = dispatch_of(stage, spec, target)
        dispatches.append(
            Dispatch(
                dispatch.name,
                dispatch.schedule.threads,
                {name: sizes[name] for name in stage.sizes},
                dispatch.schedule.tiles,
                tuple(-(-sizes[size] // getattr(dispatch.schedule, tile)) for size, tile in stage.grid),
            )
        )
    return Explanation(spec.key, target.id, tuple(dispatches))
