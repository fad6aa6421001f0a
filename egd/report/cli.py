"""``egd report``. Heavy imports are delayed until the command runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from egd.cli.terminal import console, left_out, say, user_errors
from egd.errors import UserError, nearest
from egd.runs.safe_names import markup

POLICIES = ("headline", "all")


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold some at any depth.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the page, the tables and the figures.")] = Path("report"),
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Report",
    policies: Annotated[
        str,
        typer.Option(
            help="headline: the one that represents a run; all: the others too, such as those of further guidance scales. "
            "Experiments without policies have measurements in their place."
        ),
    ] = "headline",
    method: Annotated[
        list[str] | None, typer.Option("--method", "-m", help="Only this method, or row. May be repeated.")
    ] = None,
    figure: Annotated[
        str | None,
        typer.Option(help="Make this figure alone: aggregate, radar, curves, omega, sensitivity, cost, metrics or measures."),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Compare the learning curves of all rows with those of this one, seed by seed.")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Count the steps of training to this score.")] = None,
    reference: Annotated[
        list[Path] | None,
        typer.Option(help="CSV of published results to show beside; by default those that packages bring; none: none."),
    ] = None,
) -> None:
    """Compare finished runs: a page, tables and figures. Damaged runs are named and left out, with exit code 2."""
    with user_errors():
        if policies not in POLICIES:
            raise UserError(f"'{policies}': {nearest(policies, POLICIES)}", key="--policies")
        from egd.report import page, references
        from egd.report.figures import draw
        from egd.report.render import terminal
        from egd.report.results import collect
        from egd.report.runs import find

        found = find(runs)
        files = [path for path in reference or () if str(path) != "none"]
        published = [r for path in files for r in references.read(path)] if reference else references.installed()
        wanted: dict[str, Any] = {"everything": policies == "all", "only": method or ()}
        result = collect(found, published, title=title, against=against, threshold=threshold, **wanted)
        for path, reason in (one for one in result.skipped if one not in found.damaged):
            console.print(f"[yellow]not used[/] {markup(f'{path}: {reason}')}", highlight=False, soft_wrap=True)
        if figure is not None:
            written = page.save(draw(figure, result), out, figure)
            say("Written: " + ", ".join(map(str, written)))
            conclude(found.damaged)
            return
        tables, lacking = page.write(result, out)
    console.print(terminal(tables[-1]))
    for note in (note for note in tables[0].notes if note.startswith("* ")):  # the meaning of the star at a task
        console.print(markup(note), highlight=False, soft_wrap=True)
    for reason in lacking:
        console.print(f"[dim]Not drawn:[/] {markup(reason)}", highlight=False, soft_wrap=True)
    say(f"Written: {out}/index.html; tables and figures beside it")
    conclude(found.damaged)


def conclude(damaged: Sequence[tuple[Path, str]]) -> None:
    """Exit with code 2 where damaged runs are left out, after naming them."""
    left_out([f"{path}: {reason}" for path, reason in damaged])
    if damaged:
        raise typer.Exit(2)
