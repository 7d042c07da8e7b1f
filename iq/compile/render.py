"""From kernels to MLIR: the public functions of a module, its dispatches, and the Jinja environment that renders them.

The templates are MLIR throughout: control lines are `//% for ...`, values `${...}` (Jinja's own delimiters collide with MLIR); what Jinja
leaves is written out by iq.compile.notation.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jinja2

from iq.compile import notation
from iq.errors import KernelKeyError
from iq.formats import FORMATS, Format
from iq.kernels import Dispatch, KernelSpec, Tensor, plan
from iq.kernels.kernel import Derived, derived_sizes
from iq.targets import Target


@dataclass(frozen=True)
class Value:
    """An SSA value of an entry function: its name, its element type and the name of its length."""

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
    """A public function of a module: a kernel's arguments and the dispatches that it makes.

    derived: sizes that follow from those of the call. scratch: the buffers between its dispatches.
    """

    spec: KernelSpec
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    derived: tuple[tuple[str, Derived], ...]
    scratch: tuple[Tensor, ...]
    calls: tuple[Call, ...]
    results: tuple[Value, ...]


def _entry(spec: KernelSpec, target: Target) -> Entry:
    op = spec.definition
    values = {t.name: Value(t.name, t.dtype or spec.dtype or "", f"{t.name}_length") for t in (*op.inputs, *op.outputs)}
    scratch: list[Tensor] = []
    calls = []
    constants: dict[str, int] = {}
    for dispatch in plan(spec, target):
        results = []
        constants |= dict(dispatch.constants)
        for tensor in dispatch.kernel.writes:
            if tensor.name in values:
                given = values[tensor.name]
                results.append(Value(f"{given.name}_result", given.dtype, given.length))
            else:
                scratch.append(dispatch.tensor(tensor))
                values[tensor.name] = Value(tensor.name, tensor.dtype, f"{tensor.name}_length")
                results.append(values[tensor.name])
        calls.append(Call(dispatch, tuple(values[t.name] for t in dispatch.kernel.reads), tuple(results)))
    kernels = [call.dispatch.kernel for call in calls]
    sizes = {size for kernel in kernels for size in (*kernel.sizes, *(axis.size for axis in kernel.grid))}
    sizes |= {dim for tensor in scratch for dim in tensor.dims if isinstance(dim, str)}
    outputs = tuple(values[t.name] for t in op.outputs)
    return Entry(
        spec=spec,
        inputs=tuple(values[t.name] for t in op.inputs),
        outputs=outputs,
        derived=tuple((name, d) for name, d in derived_sizes(FORMATS[spec.format], constants).items() if name in sizes - set(op.sizes)),
        scratch=tuple(scratch),
        calls=tuple(calls),
        results=tuple(Value(f"{v.name}_result", v.dtype, v.length) for v in outputs),
    )


def _each(values: Iterable[Any], before: str = "", after: str = "", attribute: str | None = None, separator: str = ", ") -> str:
    """Separated values, each between `before` and `after`; of each value its `attribute`, where one is named."""
    return separator.join(f"{before}{getattr(v, attribute) if attribute else v}{after}" for v in values)


def _binding(dispatch: Dispatch, name: str) -> str:
    """The operation that gives a buffer of a dispatch, up to its type."""
    number = dispatch.kernel.binding(name)
    return f"hal.interface.binding.subspan layout(#{dispatch.name}_buffers) binding({number}) alignment(64)"


def _int8_words(values: Sequence[int]) -> list[int]:
    """int8 four to a word, the first in its lowest byte, as signed i32."""
    return [int.from_bytes(bytes(v & 255 for v in values[i : i + 4]), "little", signed=True) for i in range(0, len(values), 4)]


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
    environment.filters["binding"] = _binding
    environment.filters["int8_words"] = _int8_words
    environment.filters["dimension"] = lambda dim: dim if isinstance(dim, int) else f"%{dim}"
    return environment


def render(specs: Sequence[KernelSpec], target: Target) -> str:
    """The MLIR module that holds these kernels for a target. They must share a format.

    Raises KernelKeyError when they do not or when the target lacks one, jinja2.TemplateError for a fault in a template, and
    iq.compile.notation.NotationError, with the rendered text, for a line that is malformed.
    """
    formats = {spec.format for spec in specs}
    if len(formats) != 1:
        raise KernelKeyError(f"a module holds kernels of one format; got {', '.join(sorted(formats)) or 'none'}")
    fmt: type[Format] = FORMATS[formats.pop()]
    entries = [_entry(spec, target) for spec in specs]
    dispatches = {call.dispatch.name: call.dispatch for entry in entries for call in entry.calls}
    title = specs[0].key if len(specs) == 1 else f"{len(specs)} kernels of {fmt.name}"
    rendered = (
        _environment()
        .get_template("kernel.mlir.j2")
        .render(title=f"{title} for {target.id}", target=target, format=fmt, dispatches=list(dispatches.values()), entries=entries)
    )
    return notation.expand(_without_unused(rendered))


_TABLE = re.compile(r'^(?:    //[^\n]*\n)*    "memref\.global"\(\) <\{sym_name = "(\w+)",.*?\(\) -> \(\)\n', re.MULTILINE | re.DOTALL)
_PRIVATE = re.compile(r"^(?:    //[^\n]*\n)*    func\.func private @(\w+)\(.*?\n    \}\n", re.MULTILINE | re.DOTALL)


def _without_unused(rendered: str) -> str:
    """The module without the private functions and tables that no dispatch uses, so that what is printed is what a kernel is made of."""
    return "".join(_used(part) for part in re.split(r"(?m)^(?=hal\.executable\.source )", rendered))


def _used(executable: str) -> str:
    while True:
        named = Counter(re.findall(r"@(\w+)\(", executable))  # once where a function is defined
        unused = {name for name in _PRIVATE.findall(executable) if named[name] == 1}
        if not unused:
            break
        executable = _PRIVATE.sub(lambda found: "" if found[1] in unused else found[0], executable)  # noqa: B023
    return _TABLE.sub(lambda found: found[0] if f"get_global @{found[1]} " in executable else "", executable)
