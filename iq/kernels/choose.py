"""Which kernel serves a problem: a pure function of op, format, target and shape, with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from iq.errors import FormatError, KernelKeyError, ShapeError
from iq.formats import FORMATS, Format
from iq.kernels.ops import OPS
from iq.kernels.schedule import Schedule, VecSchedule
from iq.kernels.schedules import MOST_EXPERTS, MOST_VEC_COLUMNS, picks_to_group, vec_columns
from iq.kernels.spec import KernelSpec
from iq.targets import Target

# The matvec of each `via`, an op.
_MATVECS = {"q8_1": "mul_mat_vec", "float": "dequantize_mul_mat_vec"}


@dataclass(frozen=True)
class Problem:
    """A product's shape: M rows of activations, a weight of N rows of K. experts: so many weights, of which M picks take one each; or 0."""

    m: int
    n: int
    k: int
    experts: int = 0


@dataclass(frozen=True)
class Choice:
    """A kernel, the reasons for it, and the keys of what else the problem could take."""

    spec: KernelSpec
    why: str
    others: tuple[str, ...]


def choose(op: str, fmt: type[Format], target: Target, problem: Problem, via: str | None = None) -> Choice:
    """The kernel that multiplies a weight ("mul_mat"), or those of the experts that are picked ("mul_mat_id"), with activations.

    Up to 8 rows of activations take a matvec (candle's and llama.cpp's rule), more a mul_mat. Up to schedules.PICKS_TO_GROUP picks for each
    expert take a matvec each, more are grouped by expert.
    via: "q8_1" quantizes the activations to q8_1, "float" keeps them; None takes q8_1 for matvecs and wherever the target has no matrix
    cores, else float. Plain formats only have "float".
    Raises KernelKeyError for another op, FormatError for a `via` that the format does not have, ShapeError for sizes below 1.
    """
    if op not in ("mul_mat", "mul_mat_id"):
        raise KernelKeyError(f"{op!r} leaves no choice of kernels; mul_mat and mul_mat_id do")
    if via not in (None, "q8_1", "float"):
        raise FormatError(f"via={via!r}: expected 'q8_1', 'float' or None")
    quantized = fmt.kind == "weights"
    if via == "q8_1" and not quantized:
        raise FormatError(f"{fmt.name} weights are not quantized: via='q8_1' does not apply; use via='float'")
    if min(problem.m, problem.n, problem.k) < 1:
        raise ShapeError(f"no kernel multiplies M = {problem.m}, N = {problem.n}, K = {problem.k}: all must be positive")
    if op == "mul_mat_id":
        if problem.experts < 1:
            raise ShapeError("mul_mat_id: there are no experts to pick from")
        matvec, by_size = _for_picks(target, problem)
    else:
        matvec = problem.m <= MOST_VEC_COLUMNS
        by_size = f"M = {problem.m} is {'at most' if matvec else 'above'} {MOST_VEC_COLUMNS}"
    taken = via or ("q8_1" if quantized and (matvec or not target.matrix_cores) else "float")
    if via or not quantized:
        reason = f"via {taken}, as asked" if via else f"via float: {fmt.name} is not quantized"
    elif matvec:
        reason = "via q8_1: the default of matvecs"
    else:
        reason = f"via {taken}: {target.id} has {'' if target.matrix_cores else 'no '}matrix cores"
    vias = tuple(v for v in _MATVECS if v == "float" or quantized)
    if op == "mul_mat_id":
        spec = KernelSpec("mul_mat_vec_id" if matvec else "mul_mat_id", fmt.name, via=taken)
        keys = [KernelSpec(name, fmt.name, via=v) for name in ("mul_mat_vec_id", "mul_mat_id") for v in vias]
        reasons = [by_size, reason]
    elif matvec:
        spec, more = _matvec(_MATVECS[taken], fmt, target, problem)
        reasons = [by_size, reason, *more]
        keys = [s for v in vias for s in _keys(_MATVECS[v], fmt, target, spec.columns or 0)]
    else:
        spec = KernelSpec("mul_mat", fmt.name, via=taken)
        reasons = [by_size, reason]
        keys = [KernelSpec("mul_mat", fmt.name, via=v) for v in OPS["mul_mat"].values(fmt)]
    return Choice(spec, "; ".join(reasons), tuple(s.key for s in keys if s != spec))


@lru_cache(4096)  # the weights of a model's layers have the same shapes
def chosen(op: str, format: str, target: Target, problem: Problem, via: str | None) -> KernelSpec:
    """The kernel that `choose` chooses for a format by name, remembered. Raises the same."""
    return choose(op, FORMATS[format], target, problem, via).spec


def _for_picks(target: Target, problem: Problem) -> tuple[bool, str]:
    """Whether each pick takes a matvec of its own, and why."""
    if problem.experts > MOST_EXPERTS:
        return True, f"{problem.experts} experts are more than the {MOST_EXPERTS} by which picks are grouped: a matvec a pick"
    most = picks_to_group(target) * problem.experts
    if problem.m <= most:
        return True, f"{problem.m} picks are at most {most}, {picks_to_group(target)} an expert: a matvec a pick"
    return False, f"{problem.m} picks are above {most}, {picks_to_group(target)} an expert: grouped by expert"


def _matvec(op: str, fmt: type[Format], target: Target, problem: Problem) -> tuple[KernelSpec, list[str]]:
    """A matvec for so many rows of activations, with the first schedule that is meant for so few rows of the weight, else the default."""
    columns = next(c for c in vec_columns(target) if c >= problem.m)
    reasons = [] if columns == problem.m else [f"the next kernel is for {columns}"]
    schedules = _schedules(op, fmt, target, columns)
    small = (s for s in schedules if isinstance(s, VecSchedule) and problem.n <= s.max_n)
    if schedule := next(small, None):
        reasons.append(f"{schedule.key}: N = {problem.n} is at most {schedule.max_n}")
    taken = schedule or schedules[0]
    if isinstance(taken, VecSchedule) and taken.rows > 1:
        reasons.append(f"a wave takes {taken.rows} rows of the weight, which share the activations of M = {columns}")
    return KernelSpec(op, fmt.name, columns=columns, schedule=schedule.key if schedule else ""), reasons


def _schedules(op: str, fmt: type[Format], target: Target, columns: int) -> tuple[Schedule, ...]:
    return OPS[op].kernels(str(columns), target, fmt)[-1].schedules(target, fmt, columns)


def _keys(op: str, fmt: type[Format], target: Target, columns: int) -> list[KernelSpec]:
    return [KernelSpec(op, fmt.name, columns=columns, schedule=s.key) for s in _schedules(op, fmt, target, columns)]
