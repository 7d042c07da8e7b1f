"""From kernels to MLIR: which dispatches a module needs, and the Jinja environment that renders them.

The templates are MLIR throughout: control lines are `//% for ...`, values `${...}` (Jinja's own delimiters collide with MLIR).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jinja2

from iq.compile.tuning import Schedule, schedule
from iq.errors import KernelKeyError
from iq.formats import FORMATS, Format
from iq.ops import MAX_VEC_COLUMNS, SCRATCH, KernelSpec, Stage
from iq.targets import Target


@dataclass(frozen=True)
class Dispatch:
    """One kernel function of a module: a stage with its parameters fixed. Ops that need the same one share it."""

    name: str
    stage: Stage
    columns: int
    dtype: str
    schedule: Schedule


@dataclass(frozen=True)
class Value:
    """An SSA value of an entry function: its name, element type and the name of its length."""

    name: str
    dtype: str
    length: str

    @property
    def type(self) -> str:
        return f"tensor<?x{self.dtype}>"

    @property
    def sized_type(self) -> str:
        return f"{self.type}{{%{self.length}}}"


@dataclass(frozen=True)
class Call:
    """A dispatch as an entry function calls it: operands, and results with their sizes."""

    dispatch: Dispatch
    operands: tuple[Value, ...]
    results: tuple[Value, ...]


@dataclass(frozen=True)
class Entry:
    """A public function of a module: a kernel's arguments and the dispatches it makes."""

    spec: KernelSpec
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    derived: tuple[tuple[str, int], ...]
    scratch: tuple[tuple[str, Any], ...]
    calls: tuple[Call, ...]
    results: tuple[Value, ...]


def dispatch(stage: Stage, spec: KernelSpec, target: Target) -> Dispatch:
    vec = stage.kernel in ("mul_mat_vec", "dequantize_mul_mat_vec")
    columns = 0 if not vec else int(spec.variant) if spec.variant.isdigit() else MAX_VEC_COLUMNS
    dtype = spec.variant if any(t.dtype == "variant" for t in spec.definition.outputs) else ""
    name = "_".join(str(p) for p in (stage.kernel, columns or dtype) if p)
    return Dispatch(name, stage, columns, dtype, schedule(stage.kernel, target, FORMATS[spec.format], columns))


def _entry(spec: KernelSpec, target: Target) -> Entry:
    fmt = FORMATS[spec.format]
    values = {t.name: Value(t.name, t.dtype, f"{t.name}_length") for t in (*spec.definition.inputs, *spec.outputs())}
    scratch = {}
    calls = []
    for stage in spec.stages(target):
        results = []
        for name in stage.writes:
            if name not in values:
                scratch[name] = SCRATCH[name]
                values[name] = Value(name, "i8", f"{name}_length")
                results.append(values[name])
            else:
                results.append(Value(f"{name}_result", values[name].dtype, values[name].length))
        calls.append(Call(dispatch(stage, spec, target), tuple(values[n] for n in stage.reads), tuple(results)))
    sizes = {s for c in calls for s in c.dispatch.stage.sizes} | {d for s in scratch.values() for d in s.dims}
    sizes |= {size for c in calls for size, _ in c.dispatch.stage.grid}
    derived = {"k": fmt.weights(), "spans": fmt.weights() // 32}
    outputs = tuple(values[t.name] for t in spec.outputs())
    return Entry(
        spec=spec,
        inputs=tuple(values[t.name] for t in spec.definition.inputs),
        outputs=outputs,
        derived=tuple((name, n) for name, n in derived.items() if name in sizes - set(spec.definition.sizes)),
        scratch=tuple(scratch.items()),
        calls=tuple(calls),
        results=tuple(Value(f"{v.name}_result", v.dtype, v.length) for v in outputs),
    )


def _each(values: Iterable[Any], before: str = "", after: str = "", attribute: str | None = None) -> str:
    """Comma-separated values, each between `before` and `after`; of each value its `attribute`, where one is named."""
    return ", ".join(f"{before}{getattr(v, attribute) if attribute else v}{after}" for v in values)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("iq", "templates"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        line_statement_prefix="//%",
        variable_start_string="${",
        variable_end_string="}",
        block_start_string="<%",
        block_end_string="%>",
        comment_start_string="<#",
        comment_end_string="#>",
    )
    environment.filters["each"] = _each
    environment.filters["words"] = lambda n: f"vector<{n}xi32>"
    return environment


def render(specs: Sequence[KernelSpec], target: Target) -> str:
    """The MLIR module that holds these kernels for a target. They must share a format.

    Raises KernelKeyError when they do not, and jinja2.TemplateError for a fault in a template.
    """
    formats = {spec.format for spec in specs}
    if len(formats) != 1:
        raise KernelKeyError(f"a module holds kernels of one format; got {', '.join(sorted(formats)) or 'none'}")
    fmt: type[Format] = FORMATS[formats.pop()]
    entries = [_entry(spec, target) for spec in specs]
    dispatches = {call.dispatch.name: call.dispatch for entry in entries for call in entry.calls}
    title = specs[0].key if len(specs) == 1 else f"{len(specs)} kernels of {fmt.name}"
    return (
        _environment()
        .get_template("kernel.mlir.j2")
        .render(title=f"{title} for {target.id}", target=target, format=fmt, dispatches=list(dispatches.values()), entries=entries)
    )
