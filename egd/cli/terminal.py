"""Output in the terminal: messages, tables, and errors in one message with an exit code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from egd.errors import UserError, of_the_system
from egd.runs.safe_names import literal, markup
from egd.runs.stopping import exit_code

WIDE = 120
console = Console()
errors = Console(stderr=True)


@contextmanager
def user_errors() -> Iterator[None]:
    """Show errors that the user can correct, and those of the system such as a full disk, in one message with exit code 2. An
    interrupted command ends with a message and exit code 143 or 130.
    """
    try:
        yield
    except UserError as error:
        complain(error)
        raise typer.Exit(2) from None
    except OSError as error:
        complain(of_the_system(error))
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        say("interrupted: what was not finished is not there", "yellow", errors)
        raise typer.Exit(exit_code()) from None


@contextmanager
def resumable(how: str) -> Iterator[None]:
    """End with exit code 130 on Ctrl-C or 143 on SIGTERM, after saying how to resume."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"interrupted; {how} from the last checkpoint of every phase", "yellow", errors)
        raise typer.Exit(exit_code()) from None


def complain(error: UserError, where: str = "") -> None:
    """Print an error in one message: its place, the problem and the remedy."""
    place = " ".join(part for part in (where, error.key or "") if part)
    head = f"[bold red]error[/] [bold]{markup(place)}[/]: " if place else "[bold red]error[/]: "
    errors.print(head + markup(error), highlight=False, soft_wrap=True)


def say(text: str, style: str = "", to: Console | None = None) -> None:
    """Print a line without interpreting markup or control characters in it."""
    (to or console).print(literal(text, style), soft_wrap=True)


def show(rows: Sequence[Any], title: str) -> None:
    """Print a results table with all columns of its rows. On a narrow terminal, columns with the same value in all rows move
    into the title; scores stay.
    """
    if not rows:
        return
    if console.width < WIDE:
        places = rows[0] if len(rows) > 1 else ("task", "method")  # in a single row every column has but one value
        places = [key for key in places if key in rows[0] and not key.startswith("score")]
        same = {key: rows[0][key] for key in places if all(row.get(key) == rows[0][key] for row in rows)}
        rows = [{key: value for key, value in row.items() if key not in same} for row in rows]
        title = "; ".join([title, *(f"{key}: {value}" for key, value in same.items() if value)])
    table = Table()
    columns = list(dict.fromkeys(column for row in rows for column in row))
    for column in columns:
        name = column in ("policy", "estimator", "energy")  # users copy these names: they are never cut
        left = name or column == "task"
        table.add_column(literal(column), justify="left" if left else "right", overflow="fold", no_wrap=name)
    before = None
    for row in rows:
        if before is not None and row.get("task") != before:
            table.add_section()
        before = row.get("task")
        table.add_row(*(literal(row.get(column, "")) for column in columns))
    console.print(literal(title, "italic"))  # Rich would wrap a table's own title to the table's width
    console.print(table)


def listing(title: str, *columns: str) -> Table:
    """Return an empty table. Its first column holds names that users copy, and is never cut; the others wrap."""
    table = Table(title=literal(title), title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, no_wrap=i == 0, overflow="fold")
    return table


def left_out(damaged: Sequence[str]) -> None:
    """Name the runs that are left out because their files are damaged, and print their number."""
    for reason in damaged:
        errors.print(f"[yellow]left out[/] {markup(reason)}", highlight=False, soft_wrap=True)
    if damaged:
        errors.print(f"[red]{len(damaged)} damaged {'run is' if len(damaged) == 1 else 'runs are'} left out[/]")
