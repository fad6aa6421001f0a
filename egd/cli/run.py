"""``egd run`` and ``egd sweep``. Heavy imports are delayed until a command runs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from egd.cli.arguments import Budget, Device, Fresh, Grid, Methods, Out, RecipeFile, Seeds, Settings, Tasks, TrustCode
from egd.cli.terminal import complain, console, errors, left_out, resumable, say, show, user_errors
from egd.config.trust import reading
from egd.errors import UserError, of_the_system
from egd.runs.safe_names import literal, markup

if TYPE_CHECKING:
    from egd.runs.experiment import Experiment, Job, Options
    from egd.runs.progress import Reporter


def run(
    recipe: RecipeFile,
    task: Tasks = None,
    method: Methods = None,
    budget: Budget = None,
    settings: Settings = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of all randomness; the recipe's by default.", min=0, max=2**32 - 1)
    ] = None,
    seeds: Seeds = None,
    grid: Grid = None,
    device: Device = "auto",
    out: Out = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with runs found in the folder; show those that are complete.")
    ] = False,
    fresh: Fresh = False,
    trust_code: TrustCode = False,
) -> None:
    """Train, guide and evaluate the tasks of a recipe."""
    with user_errors():
        if seeds is not None and seed is not None:
            raise UserError("give --seed or --seeds, not both", key="--seeds")
        chosen = {"tasks": task or (), "methods": method or (), "budget": budget, "settings": settings or ()}
        options = _options(recipe, out, seeds, grid, device=device, resume=resume, fresh=fresh, seed=seed, **chosen)
    with reading(recipe, trust_code):
        with user_errors():
            experiment, jobs = _plan(recipe, options)
        with resumable("the same command with --resume goes on"):
            rows, failed = _run_all(jobs, _reporter())
    show(rows, f"Results: {experiment.caption}")
    _conclude(options.out, jobs, failed)


def sweep(
    recipe: RecipeFile,
    grid: Grid = None,
    seeds: Seeds = None,
    task: Tasks = None,
    method: Methods = None,
    budget: Budget = None,
    settings: Settings = None,
    device: Device = "auto",
    out: Out = None,
    fresh: Fresh = False,
    trust_code: TrustCode = False,
) -> None:
    """Run every cell of a grid with every seed, and tabulate means over seeds.

    Repeating the command resumes the sweep: finished runs are not run again, failed ones are tried again.
    """
    from egd.runs.sweeps import means_below

    with user_errors():
        chosen = {"tasks": task or (), "methods": method or (), "budget": budget, "settings": settings or ()}
        options = _options(recipe, out, seeds, grid, device=device, resume=True, fresh=fresh, **chosen)
    with reading(recipe, trust_code):
        with user_errors():
            experiment, jobs = _plan(recipe, options)
        with resumable("the same command goes on"):
            rows, failed = _run_all(jobs, _reporter())
    means = means_below(options.out)
    show(means.rows or rows, f"Means over seeds: {experiment.caption}")
    left_out(means.damaged)
    say(f"egd report {options.out} makes tables and figures of them")
    _conclude(options.out, jobs, failed)
    if means.damaged:
        raise typer.Exit(2)


def _options(recipe: Path, out: Path | None, seeds: str | None, grid: list[str] | None, **others: Any) -> Options:
    from egd.runs.experiment import Options
    from egd.runs.grid import parse_grid, parse_seeds

    return Options(
        out=out or default_out(recipe),
        seeds=() if seeds is None else parse_seeds(seeds),
        grid=parse_grid(grid or ()),
        source=str(recipe),
        **others,
    )


def _plan(recipe: Path, options: Options) -> tuple[Experiment, list[Job]]:
    from egd.runs import experiment as experiments
    from egd.runs.bases import read_recipe

    tree = read_recipe(recipe)
    experiment = experiments.load(tree.get("experiment"), str(recipe))
    return experiment, experiment.plan(tree, options)


def _reporter() -> Reporter:
    from egd.runs.progress import Reporter

    return Reporter(console)


def _conclude(out: Path, jobs: Sequence[Job], failed: Sequence[Failure]) -> None:
    """Print where the runs are and which failed, and exit with code 1 or 2 where any did."""
    from egd.runs.experiment import runs_of

    say(f"Runs are in {out}/")
    if failed:
        count, total = sum(f.runs for f in failed), sum(map(runs_of, jobs))
        say(f"{count} of {total} failed: {', '.join(f.label for f in failed)}", "red", errors)
        raise typer.Exit(1 if any(f.crashed for f in failed) else 2)


def default_out(recipe: Path) -> Path:
    """Return ``runs/<recipe>``, or ``runs/<task>-repeat`` where the recipe is a run's own config.yaml."""
    name = recipe.stem if recipe.name != "config.yaml" else f"{recipe.resolve().parent.parent.name}-repeat"
    return Path("runs") / name


@dataclass(frozen=True)
class Failure:
    """A failed job or run: its label, its number of runs, and whether the program is at fault rather than the user."""

    label: str
    runs: int
    crashed: bool


def _run_all(jobs: Sequence[Any], reporter: Any) -> tuple[list[Any], list[Failure]]:
    """Run all jobs. Returns the rows of the results table and the failures; a failure does not stop the other jobs."""
    from egd.runs.experiment import runs_of
    from egd.runs.grid import RunsFailed

    rows: list[Any] = []
    failed: list[Failure] = []
    for job in jobs:
        reporter.console.rule(literal(job.label, "rule.text"), align="left")
        try:
            with reporter.notices():
                rows += job.run(reporter)
        except RunsFailed as some:
            rows += some.rows
            failed += [_reported(error, label, 1) for label, error in some.failures.items()]
        except Exception as error:
            failed.append(_reported(error, job.label, runs_of(job)))
    return rows, failed


def _reported(error: Exception, label: str, runs: int) -> Failure:
    """Print the message of an error that the user can correct, or the traceback of any other, and return the failure."""
    with suppress(OSError):
        if isinstance(error, OSError):
            error = of_the_system(error)
    if isinstance(error, UserError):
        complain(error, label)
    else:
        from rich.traceback import Traceback

        errors.print(f"[bold red]error[/] [bold]{markup(label)}[/]:", highlight=False, soft_wrap=True)
        errors.print(Traceback.from_exception(type(error), error, error.__traceback__))
    return Failure(label, runs, not isinstance(error, UserError))
