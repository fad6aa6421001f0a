"""What a domain offers to the command line: it plans jobs from a recipe.

A recipe names an installed one by its entry point in the group ``egd.experiments``, or a class in a file by its path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Protocol

import click

from egd.config.base import Sections
from egd.config.components import Registry, Spec, build
from egd.errors import UserError, nearest
from egd.runs.progress import Reporter

GROUP = "egd.experiments"
COMMANDS = "egd.commands"

Row = Mapping[str, str]
"""One row of a results table: column -> text."""


@dataclass(frozen=True)
class Options:
    """What the command line adds to a recipe."""

    out: Path
    tasks: Sequence[str] = ()
    methods: Sequence[str] = ()
    """Those of a recipe that compares several."""
    budget: str | None = None
    seed: int | None = None
    seeds: Sequence[int] = ()
    """Many runs that differ in their seed."""
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Key -> values: a run for every combination of them."""
    device: str = "auto"
    resume: bool = False
    fresh: bool = False
    """Train every phase, also those that another run has finished."""
    settings: Sequence[str] = field(default_factory=tuple)
    source: str = "recipe"


class Job(Protocol):
    """One run: one task and seed, one folder. Or several that share their work: such a job has a further member ``runs``,
    how many, and raises ``egd.runs.grid.RunsFailed`` when some of them fail.
    """

    @property
    def label(self) -> str:
        """For people."""
        ...

    def run(self, reporter: Reporter) -> list[Row]:
        """Do it (or go on with it) and return its rows of the results table. UserError where the user can help."""
        ...


class Experiment(Protocol):
    """A domain: from a recipe to jobs, and from a finished run to fresh evaluations.

    An experiment with more to list has a further method ``listings``, one whose evaluations take more options a further
    member ``evaluates``, those of click; see ``further``. One whose sections have keys beside a component's own settings
    has a further member ``sections``; see ``egd.config.base.merge``. One whose runs measure samples has their numbers in a list
    ``results`` of ``summary.json``, a row a mapping, or a further method ``measured`` that makes such rows of a summary: text,
    beta and omega say which row it is, other numbers were measured. ``egd report`` tabulates and draws them.
    """

    @property
    def caption(self) -> str:
        """What the numbers of its results table are."""
        ...

    def plan(self, recipe: Mapping[str, Any], options: Options) -> list[Job]:
        """The jobs of a recipe. UserError naming the key for whatever is wrong with it."""
        ...

    def evaluate(self, run: Path, settings: Mapping[str, Any], reporter: Reporter) -> list[Row]:
        """Evaluate the checkpoints of a run again; ``settings``: omegas, episodes, seed, device."""
        ...

    def components(self) -> dict[str, dict[str, str]]:
        """Kind -> name -> one line, for ``egd list``; what the domain adds to the library's own."""
        ...


Listing = Callable[[bool], Iterable[Any]]
"""Of ``--wide``: what to print, one after the other (anything that Rich prints, such as a table)."""


def listings(experiment: Experiment) -> dict[str, Listing]:
    """Name -> what ``egd list NAME`` prints, of an experiment that has a method ``listings``; else {}."""
    method = getattr(experiment, "listings", None)
    return {} if method is None else dict(method())


def sections(experiment: Experiment) -> Sections:
    """Sections of the experiment's recipes that name a component, with the keys that all their components share."""
    return dict(getattr(experiment, "sections", {}))


def further(experiment: Experiment, name: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Read the options of ``egd eval`` that only runs of this experiment take. UserError for one that they do not."""
    options = list(getattr(experiment, "evaluates", ()))
    command = click.Command("eval", params=options, add_help_option=False)
    try:
        return dict(command.make_context("eval", list(arguments)).params)
    except click.UsageError as error:
        known = ", ".join(flag for option in options for flag in option.opts) or "none"
        key = getattr(error, "option_name", None) or arguments[0]
        remedy = f"Runs of '{name}' have these options of their own: {known}; correct it, or leave it out"
        raise UserError(f"{error.format_message()} {remedy}", key=key) from None


def found(group: str = GROUP) -> dict[str, EntryPoint]:
    """The installed entry points of a group by name."""
    return {entry.name: entry for entry in entry_points(group=group)}


FILES = Registry("experiment", "egd.experiments", ("plan",))


def load(name: Any, source: str) -> Experiment:
    """Find the experiment that a recipe names: an installed one, or ``path/to/file.py:Name``. UserError where there is none."""
    known = found()
    if name is None:
        raise UserError(f"experiment: missing; {nearest(str(name), known)}", key=source)
    text = str(name)
    if text in known:
        experiment: Experiment = known[text].load()
        return experiment
    try:
        if ":" not in text:
            raise FILES.unknown(text, source, known)
        made: Experiment = build(FILES, Spec(text, {}), {}, source)
    except UserError as error:
        raise UserError(f"experiment: {error}", key=source) from error
    return made
