"""The command line ``egd``. It knows no domain: experiments and further commands come by entry points."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from egd.config.trust import reading
from egd.errors import UserError, missing, of_the_system
from egd.runs.safe_names import literal, markup
from egd.runs.stopping import exit_code, stoppable, told

if TYPE_CHECKING:
    from egd.runs.experiment import Experiment, Job, Options
    from egd.runs.progress import Reporter

app = typer.Typer(
    name="egd",
    help="Energy-guided diffusion: run recipes, evaluate runs, list components.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
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


RecipeFile = Annotated[Path, typer.Argument(help="A recipe, or the config.yaml of an earlier run.")]
Tasks = Annotated[
    list[str] | None,
    typer.Option("--task", "-t", help="Only this task of the recipe, or those of a pattern: 'door-*'. May be repeated."),
]
Methods = Annotated[
    list[str] | None, typer.Option("--method", "-m", help="Only this one of a recipe's methods. May be repeated.")
]
Budget = Annotated[
    str | None, typer.Option("--budget", "-b", help="A named budget of the recipe, such as smoke, quick or full.")
]
Settings = Annotated[list[str] | None, typer.Option("--set", "-s", help="Override a key: a.b=c. May be repeated.")]
Seeds = Annotated[
    str | None, typer.Option(help="Many runs, a seed each: 0-7, or 0,2,5. What can be is trained as one program.")
]
Grid = Annotated[
    list[str] | None, typer.Option("--grid", "-g", help="Runs for all values of a key: a.b=1,3,10. May be repeated.")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the runs; runs/<recipe> by default.")]
TrustCode = Annotated[
    bool,
    typer.Option("--trust-code", help="Run code that the files name although they may be a stranger's (see SECURITY.md)."),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Train every phase, also those that another run has finished.")]


@app.command()
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


@app.command()
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


def left_out(damaged: Sequence[str]) -> None:
    """Name the runs that are left out because their files are damaged, and print their number."""
    for reason in damaged:
        errors.print(f"[yellow]left out[/] {markup(reason)}", highlight=False, soft_wrap=True)
    if damaged:
        errors.print(f"[red]{len(damaged)} damaged {'run is' if len(damaged) == 1 else 'runs are'} left out[/]")


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
    say(f"Runs are in {out}/")
    if failed:
        count, total = sum(f.runs for f in failed), sum(map(_runs, jobs))
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
            failed.append(_reported(error, job.label, _runs(job)))
    return rows, failed


def _runs(job: Any) -> int:
    return getattr(job, "runs", 1)


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


@app.command("eval", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def evaluate(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="A run folder: OUT/<task>/seed-<n>.")],
    omega: Annotated[str | None, typer.Option(help="Guidance scales, comma-separated: 0.1,1,3.")] = None,
    episodes: Annotated[
        int | None, typer.Option(help="Samples, or episodes, for every guidance scale.", min=1, max=10**6)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling; the run's by default.", min=0, max=2**32 - 1)] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    trust_code: TrustCode = False,
) -> None:
    """Evaluate the checkpoints of a run again. Runs of an experiment may take further options: egd list options."""
    from egd.config.base import read_yaml
    from egd.runs import experiment as experiments
    from egd.runs.progress import Reporter

    with user_errors():
        config = run / "config.yaml"
        if not config.exists():
            raise UserError(f"{run} is not a run folder: it has no config.yaml; give OUT/<task>/seed-<n>")
        settings: dict[str, Any] = {"omegas": numbers(omega), "episodes": episodes, "seed": seed, "device": device}
        name = read_yaml(config).get("experiment")
        reporter = Reporter(console)
        with reading(config, trust_code), reporter.notices():
            experiment = experiments.load(name, str(config))
            settings |= experiments.further(experiment, str(name), context.args)
            rows = experiment.evaluate(run, settings, reporter)
    show(rows, f"Evaluation of {run}")


def numbers(text: str | None) -> list[float] | None:
    """Parse the guidance scales of an option, such as 0.1,1,3, without repetitions. Raises UserError for any other form."""
    from pydantic import TypeAdapter, ValidationError

    from egd.bounds import Omega

    if text is None:
        return None
    try:
        numbers = TypeAdapter(list[Omega]).validate_python(text.split(","))
    except ValidationError as error:
        first = error.errors()[0]
        wrong = f"{first['input']!r}: {first['msg'][:1].lower()}{first['msg'][1:]}"
        raise UserError(f"'{text}' is not a list of guidance scales such as 0.1,1,3 ({wrong})", key="--omega") from None
    return list(dict.fromkeys(numbers))


@app.command("list")
def list_all(
    what: Annotated[
        str | None,
        typer.Argument(help="Only these: components, recipes, options, or what an experiment lists."),
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where to look for recipes.")] = Path("recipes"),
    wide: Annotated[bool, typer.Option("--wide", help="All that is known, a line each, however narrow the terminal.")] = False,
) -> None:
    """List experiments, components and recipes; or only one kind, such as tasks."""
    from egd.errors import nearest
    from egd.runs import experiment as experiments

    page = Console(width=1000) if wide else console
    with user_errors():
        listings: dict[str, Any] = {"components": _component_tables, "recipes": lambda wide: [_recipe_table(folder)]}
        listings["options"] = lambda wide: [_option_table()]
        for experiment in _installed().values() if what not in (None, *listings) else ():
            listings |= experiments.listings(experiment)
        if what not in (None, *listings):
            raise UserError(f"nothing to list is called '{what}'; {nearest(str(what), listings)}", key="egd list")
        for name in [what] if what else list(listings):
            for part in listings[name](wide):
                page.print(part)


def _component_tables(wide: bool) -> Iterator[Table]:
    """Yield the tables of components of the library and of every installed experiment."""
    from egd.config.catalogue import CATALOGUE
    from egd.runs import experiment as experiments
    from egd.runs.recipe import summary_line

    library = {kind: {n: summary_line(c) for n, c in registry.names().items()} for kind, registry in CATALOGUE.items()}
    yield _components("the library", library)
    for name, experiment in _installed().items():
        yield _components(f"experiment {name} ({experiments.found()[name].value})", experiment.components())


def _installed() -> dict[str, Experiment]:
    """Load the installed experiments. One whose optional dependencies are missing is reported and left out."""
    from egd.runs import experiment as experiments

    loaded = {}
    for name in experiments.found():
        try:
            loaded[name] = experiments.load(name, "list")
        except ModuleNotFoundError as error:
            say(f"experiment {name}: {missing(error)}", "yellow", errors)
    return loaded


def _option_table() -> Table:
    """Return a table of the ``egd eval`` options that only one experiment's runs take."""
    table = listing("further options of egd eval", "option", "runs of", "what it does")
    for name, experiment in _installed().items():
        for option in getattr(experiment, "evaluates", ()):
            table.add_row(*map(literal, (", ".join(option.opts), name, option.help or "")))
    return table


def _recipe_table(folder: Path) -> Table:
    from egd.runs.bases import read_recipe

    table = listing(f"recipes in {folder}/", "recipe", "tasks", "budgets", "description")
    for path in sorted(folder.rglob("*.yaml")):
        tree = read_recipe(path, load=False)
        tasks, budgets = (own if isinstance(own := tree.get(key), list | dict) else () for key in ("tasks", "budgets"))
        about = str(tree.get("description", "")).strip()
        table.add_row(*map(literal, (path.name, len(tasks), " ".join(map(str, budgets)), about)))
    return table


def _components(title: str, kinds: Mapping[str, Mapping[str, str]]) -> Table:
    """Return a table of components, given as kind -> name -> one line of description."""
    table = listing(title, "name", "kind", "what it is")
    for kind, components in kinds.items():
        table.add_section()
        for i, (component, line) in enumerate(sorted(components.items())):
            table.add_row(*map(literal, (component, kind if i == 0 else "", line)))
    return table


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Show the version and stop.")] = False) -> None:
    """Show the version where the option asks for it; else the sub-command follows."""
    if version:
        from importlib.metadata import version as installed

        console.print(f"egd {installed('egd')}", highlight=False)
        raise typer.Exit


def add_commands() -> None:
    """Add the sub-commands that installed packages offer in the entry-point group ``egd.commands``."""
    from importlib.metadata import entry_points

    for entry in entry_points(group="egd.commands"):
        try:
            sub: typer.Typer | Callable[..., Any] = entry.load()
        except ImportError as error:  # its package is half installed; the other commands work without it
            say(f"egd {entry.name} is not there: {error}", "yellow", errors)
            continue
        if isinstance(sub, typer.Typer):
            app.add_typer(sub, name=entry.name)
        else:
            app.command(entry.name)(sub)


def keep_compiled() -> None:
    """Keep what torch.compile makes in the user's cache folder, unless the user has chosen a folder. Torch's default is a
    folder for temporary files, which later runs may not find.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(caches / "egd" / "inductor"))


def entry() -> None:
    """Run the console script. Characters that the terminal's encoding lacks are shown as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with stoppable():
        try:
            keep_compiled()
            add_commands()
            app()
        except ModuleNotFoundError as error:
            complain(missing(error))
            raise SystemExit(2) from None
        except (SystemExit, KeyboardInterrupt) as ended:
            if told() and (isinstance(ended, KeyboardInterrupt) or ended.code):
                raise SystemExit(exit_code()) from None
            raise


if __name__ == "__main__":
    entry()
