"""How commands print: facts to stdout, as a table or as JSON; progress to stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@contextmanager
def progress() -> Iterator[Callable[[int, int, Sequence[str]], None]]:
    """A progress bar on stderr, or a line for each step where that is no terminal; yields what to tell of a step."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done, total, running: click.echo(f"{done}/{total} {', '.join(running)}".rstrip(), err=True)
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, running: bar.update(task, completed=done, total=total, description=escape(", ".join(running)))


def print_json(value: Any) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def print_list(names: list[str], as_json: bool) -> None:
    if as_json:
        print_json(names)
    else:
        click.echo("\n".join(names))


def print_table(rows: Sequence[Mapping[str, Any]], as_json: bool = False) -> None:
    """Print rows of the same columns."""
    if as_json:
        print_json(rows)
        return
    # Where no one watches, lines are not folded to the width of a terminal.
    console = Console(width=None if sys.stdout.isatty() else 400, highlight=False)
    table = Table(box=None, pad_edge=False)
    for name in rows[0] if rows else ():
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(escape(_cell(value)) for value in row.values()))
    console.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name}={n}" for name, n in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return "" if value is None else str(value)
