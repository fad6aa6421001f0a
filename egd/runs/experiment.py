"""The interface between a domain and the command line: an experiment plans jobs from a recipe.

A recipe names an installed experiment by its entry point in the group ``egd.experiments``, or a class in a file by its path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

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
    """The options of the command line that apply to a recipe."""

    out: Path
    tasks: Sequence[str] = ()
    methods: Sequence[str] = ()
    """The selected methods of a recipe that compares several."""
    budget: str | None = None
    seed: int | None = None
    seeds: Sequence[int] = ()
    """Seeds of several runs, which else have the same settings."""
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Key -> values; every combination of them is a run."""
    device: str = "auto"
    resume: bool = False
    fresh: bool = False
    """Whether phases are trained that the store has from an earlier run."""
    settings: Sequence[str] = field(default_factory=tuple)
    source: str = "recipe"


class Job(Protocol):
    """One run of one task and seed in its own folder, or several runs that are trained together (``HasRuns``)."""

    @property
    def label(self) -> str:
        """Name of the job in the terminal."""
        ...

    def run(self, reporter: Reporter) -> list[Row]:
        """Execute or resume the run, and return its rows of the results table. Raises UserError where the user can correct the
        cause.
        """
        ...


@runtime_checkable
class HasRuns(Protocol):
    """A job of several runs, which raises ``egd.runs.grid.RunsFailed`` when some of them fail."""

    @property
    def runs(self) -> int:
        """Number of runs."""
        ...


def runs_of(job: Job) -> int:
    """Return the number of a job's runs."""
    return job.runs if isinstance(job, HasRuns) else 1


class Experiment(Protocol):
    """A domain: it plans jobs from a recipe, and evaluates finished runs again.

    Optional: ``listings`` (``HasListings``), ``evaluates`` (``HasOptions``), ``sections`` (``HasSections``), and ``measured``
    (``HasMeasurements``).
    """

    @property
    def caption(self) -> str:
        """Description of the numbers in the results table."""
        ...

    def plan(self, recipe: Mapping[str, Any], options: Options) -> list[Job]:
        """Return the jobs of a recipe. Raises UserError, naming the key, for every mistake in it."""
        ...

    def evaluate(self, run: Path, settings: Mapping[str, Any], reporter: Reporter) -> list[Row]:
        """Evaluate the checkpoints of a run again. The keys of ``settings`` are omegas, episodes, seed and device."""
        ...

    def components(self) -> dict[str, dict[str, str]]:
        """Return the components that the domain adds to the library's, for ``egd list``: kind -> name -> one line of
        description.
        """
        ...


Listing = Callable[[bool], Iterable[Any]]
"""A function from ``--wide`` to what is printed in turn: any objects that Rich prints, such as tables."""


@runtime_checkable
class HasListings(Protocol):
    """An experiment that offers more to ``egd list``."""

    def listings(self) -> dict[str, Listing]:
        """Return the listings by name: name -> what ``egd list NAME`` prints."""
        ...


@runtime_checkable
class HasOptions(Protocol):
    """An experiment whose runs take further options of ``egd eval``."""

    evaluates: Sequence[click.Option]


@runtime_checkable
class HasSections(Protocol):
    """An experiment with sections whose keys are not all settings of a component (``egd.config.base.merge``)."""

    sections: Sections


@runtime_checkable
class HasMeasurements(Protocol):
    """An experiment whose summaries hold measurements on samples in another form than rows in the list ``results``."""

    def measured(self, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the rows of a summary for ``egd report``, which tabulates and draws them. The texts, beta and omega of a row
        identify it; its other numbers are measurements.
        """
        ...


def listings(experiment: Experiment) -> dict[str, Listing]:
    """Return the listings of an experiment by name, {} where it has none."""
    return dict(experiment.listings()) if isinstance(experiment, HasListings) else {}


def options_of(experiment: Experiment) -> list[click.Option]:
    """Return the options of ``egd eval`` that only this experiment's runs take."""
    return list(experiment.evaluates) if isinstance(experiment, HasOptions) else []


def sections(experiment: Experiment) -> Sections:
    """Return the recipe sections of an experiment that choose a component, with the keys that all components of each section
    share.
    """
    return dict(experiment.sections) if isinstance(experiment, HasSections) else {}


def further(experiment: Experiment, name: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Parse the options of ``egd eval`` that only this experiment's runs take. Raises UserError for an unknown option."""
    options = options_of(experiment)
    command = click.Command("eval", params=list(options), add_help_option=False)
    try:
        return dict(command.make_context("eval", list(arguments)).params)
    except click.UsageError as error:
        known = ", ".join(flag for option in options for flag in option.opts) or "none"
        key = error.option_name if isinstance(error, click.NoSuchOption | click.BadOptionUsage) else arguments[0]
        remedy = f"Runs of '{name}' have these options of their own: {known}; correct it, or leave it out"
        raise UserError(f"{error.format_message()} {remedy}", key=key) from None


def found(group: str = GROUP) -> dict[str, EntryPoint]:
    """Return the installed entry points of a group by name."""
    return {entry.name: entry for entry in entry_points(group=group)}


FILES = Registry("experiment", "egd.experiments", ("plan",))


def load(name: Any, source: str) -> Experiment:
    """Load the experiment that a recipe names, an installed one or ``path/to/file.py:Name``. Raises UserError where there is
    none.
    """
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
