"""What goes wrong in compiling, shown as a reader wants it: numbered lines of MLIR or template, each diagnostic under its line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import jinja2

# Lines shown around a diagnostic, and diagnostics shown in all; the first is nearly always the cause.
CONTEXT = 3
MOST = 4

_LOCATED = re.compile(r"<stdin>:(?P<line>\d+):(?P<column>\d+): (?P<kind>error|note): (?P<text>.*)")
_UNLOCATED = re.compile(r"(?:\d+\.\t)?(?P<text>LLVM ERROR: .*|.*\berror: .*|Running pass .* on function .*)")
_FUNCTION = re.compile(r"function '?@\"?(?P<name>[\w.$-]+)")


@dataclass(frozen=True)
class Diagnostic:
    """One complaint; line and column count from 1, and are 0 where the compiler gives no place in the text."""

    text: str
    line: int = 0
    column: int = 0


def has_errors(stderr: str) -> bool:
    """Whether the compiler reports an error. Its exit status is no proof: an intrinsic that the target lacks leaves it 0."""
    return re.search(r"\berror: |LLVM ERROR", stderr) is not None


def parse(stderr: str, mlir: str) -> list[Diagnostic]:
    """The errors in the compiler's output, and the notes that have a place; each once, in order.

    LLVM names no line, but often the function: then the diagnostic is placed at its definition.
    """
    found: dict[Diagnostic, None] = {}
    for output in stderr.splitlines():
        if located := _LOCATED.match(output):
            # This note only prints the operation again, often at great length.
            if not located["text"].startswith("see current operation"):
                text = f"{located['kind']}: {located['text']}"
                found[Diagnostic(text, int(located["line"]), int(located["column"]))] = None
        elif unlocated := _UNLOCATED.match(output):
            found[_placed(unlocated["text"], mlir)] = None
    return list(found)


def _placed(text: str, mlir: str) -> Diagnostic:
    function = _FUNCTION.search(text)
    definition = re.search(rf"func\.func (?:private |public )?@\"?{re.escape(function['name'])}\b", mlir) if function else None
    if not definition:
        return Diagnostic(text)
    start = mlir.rfind("\n", 0, definition.start()) + 1
    return Diagnostic(text, mlir.count("\n", 0, start) + 1, definition.start() - start + 1)


def show(stderr: str, mlir: str) -> str:
    """The diagnostics as text: each with its surrounding lines; those without a place as they are.

    Where none is recognised, the end of the compiler's output.
    """
    diagnostics = parse(stderr, mlir)
    if not diagnostics:
        return "\n".join(stderr.strip().splitlines()[-10:]) or "the compiler said nothing"
    shown = [_excerpt(d, mlir.splitlines()) if d.line else d.text for d in diagnostics[:MOST]]
    if more := len(diagnostics) - MOST:
        shown += [f"... and {more} more"] if more > 0 else []
    return "\n\n".join(shown)


def show_template_fault(error: jinja2.TemplateError) -> str:
    """A fault in a template as text: the lines of the innermost template at hand, with the message under the one at fault."""
    file, line = None, 0
    if isinstance(error, jinja2.TemplateSyntaxError):
        file, line = error.filename, error.lineno
    trace = error.__traceback__
    while trace and not isinstance(error, jinja2.TemplateSyntaxError):
        # Jinja makes frames of templates look like frames of their sources.
        if trace.tb_frame.f_code.co_filename.endswith(".j2"):
            file, line = trace.tb_frame.f_code.co_filename, trace.tb_lineno
        trace = trace.tb_next
    if file is None:
        return str(error)
    lines = Path(file).read_text().splitlines()
    return f"{file}:{line}\n{_excerpt(Diagnostic(f'error: {error.message}', line, 1), lines)}"


def show_line(text: str, line: int, message: str) -> str:
    """A line of a rendered template among its neighbours, with the message under it."""
    lines = text.splitlines()
    column = len(lines[line - 1]) - len(lines[line - 1].lstrip()) + 1
    return _excerpt(Diagnostic(f"error: {message}", line, column), lines)


def _excerpt(diagnostic: Diagnostic, lines: list[str]) -> str:
    first, last = max(1, diagnostic.line - CONTEXT), min(len(lines), diagnostic.line + CONTEXT)
    width = len(str(last))
    shown = []
    for number in range(first, last + 1):
        shown.append(f"{number:{width}} | {lines[number - 1]}".rstrip())
        if number == diagnostic.line:
            shown.append(f"{'':{width}} | {'':{diagnostic.column - 1}}^ {diagnostic.text}")
    return "\n".join(shown)
