"""What a domain offers to the command line: it plans jobs from a recipe.

A recipe names an installed one by its entry point in the group ``egd.experiments``, or a class in a file by its path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Protocol

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

    An experiment with more to list has a further method ``listings``, one whose evaluations take more settings a further
    member ``evaluates``, their names; see ``check_settings``. One whose sections have keys beside a component's own settings
    has a further member ``sections``; see ``egd.config.base.merge``.
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


EVALUATES = ("omegas", "episodes", "seed", "device")
"""The settings of an evaluation that every experiment takes."""


def check_settings(experiment: Experiment, name: str, settings: Mapping[str, Any], flags: Mapping[str, str]) -> None:
    """UserError for a setting of an evaluation, called by its flag, that is given and of which the experiment knows nothing."""
    known = {*EVALUATES, *getattr(experiment, "evaluates", ())}
    for key, value in settings.items():
        if key not in known and value is not None:
            raise UserError(f"runs of '{name}' cannot be evaluated with it; leave it out", key=flags.get(key, key))


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
