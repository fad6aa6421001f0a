"""``egd list``. Heavy imports are delayed until the command runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from egd.cli.terminal import console, errors, listing, say, user_errors
from egd.errors import UserError, missing
from egd.runs.safe_names import literal

if TYPE_CHECKING:
    from egd.runs.experiment import Experiment


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
    from egd.runs.experiment import options_of

    table = listing("further options of egd eval", "option", "runs of", "what it does")
    for name, experiment in _installed().items():
        for option in options_of(experiment):
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
