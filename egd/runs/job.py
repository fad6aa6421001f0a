"""Functions shared by experiments that train one run a job: planning a recipe's runs, training, summaries, and opening finished
runs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from egd.config.base import Tree, execution_keys, read_yaml, sections_of, validate
from egd.config.sections import RunSettings
from egd.errors import UserError
from egd.runs import resources
from egd.runs.experiment import Options, Row
from egd.runs.folder import RunFolder
from egd.runs.grid import Cell, Variation, check_count, in_cell, run_label, variations
from egd.runs.phase import Phase
from egd.runs.phase_files import settle
from egd.runs.phases import run_phase
from egd.runs.progress import Reporter
from egd.runs.recipe import blaming, given, pick_device, resolve, without_nulls
from egd.runs.restoring import load_trained
from egd.runs.safe_names import apart, check_names, folder_of_task
from egd.runs.summaries import Common
from egd.training.precision import set_up

C = TypeVar("C", bound=RunSettings)
Model = TypeVar("Model")


@dataclass(frozen=True)
class Procedure(Generic[C, Model]):
    """Functions and types of an experiment's runs, by which they are configured, trained, evaluated and tabulated."""

    config: type[C]
    summary: type[Common]
    check: Callable[[C], None]
    """Raises UserError for components or settings of them that do not exist."""
    load_model: Callable[[C], Model]
    """Creates the model with untrained networks."""
    complete: Callable[[Model, RunFolder, Reporter], dict[str, Any]]
    """Trains what is not trained yet, evaluates, writes figures and the summary, and returns the summary."""
    rows: Callable[[C, Mapping[str, Any]], list[Row]]
    """Returns the rows of a summary for the results table."""
    nullable: Collection[str] = ()
    """Sections whose null entries are left out."""


@dataclass(frozen=True)
class SingleRun(Generic[C]):
    """The job of one run: its settings, its folder, and its cell where it belongs to a grid."""

    procedure: Procedure[C, Any]
    config: C
    folder: RunFolder
    resume: bool
    cell: Cell = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Label of the run in the terminal: task, cell and seed."""
        return run_label(self.config.task, self.cell, self.config.seed)

    def run(self, reporter: Reporter) -> list[Row]:
        """Complete the run, and return its rows of the results table; a complete run only returns them."""
        return in_cell(self.procedure.rows(self.config, self._summary(reporter)), self.cell)

    def _summary(self, reporter: Reporter) -> dict[str, Any]:
        make, folder = self.procedure.load_model, self.folder
        set_up(self.config.device, self.config.threads)
        model = None if folder.summary.exists() else make(self.config)  # made first: refused settings leave no folder
        with folder.lock():
            folder.open(self.config.model_dump(mode="json"), resume=self.resume)
            if (found := folder.read_summary(self.procedure.summary)) is not None:
                return found
            model = make(self.config) if model is None else model
            settle(folder, reporter.warn)
            return self.procedure.complete(model, folder, reporter)


def plan(
    procedure: Procedure[C, Any], recipe: Mapping[str, Any], tasks: Mapping[str, Tree], options: Options
) -> list[SingleRun[C]]:
    """Plan a run for every variation of the options and each of the ``tasks``, which are given with their overrides of the
    recipe.

    Raises UserError for settings that are refused, or that take more memory or disk than there is.
    """
    check_count(options, len(tasks))
    apart({task: folder_of_task(task, "tasks") for task in tasks}, "tasks")
    runs = [
        _planned(procedure, recipe, task, over, variation) for task, over in tasks.items() for variation in variations(options)
    ]
    resources.check([[run.config.model_dump()] for run in runs], options.out, options.source)
    return runs


def _planned(
    procedure: Procedure[C, Any], recipe: Mapping[str, Any], task: str, over: Tree, variation: Variation
) -> SingleRun[C]:
    options = variation.options
    with blaming(options):
        tree = without_nulls(resolve(recipe, task, over, options, sections_of(procedure.config)), *procedure.nullable)
        config = validate(procedure.config, tree, options.source, given(options))
        check_names(config)
        procedure.check(config)
    path = options.out / folder_of_task(task, "tasks") / variation.folder / f"seed-{config.seed}"
    return SingleRun(procedure, config, RunFolder(path, options.out, execution_keys(config)), options.resume, variation.cell)


def finished(procedure: Procedure[C, Any], run: Path, device: str | None) -> tuple[C, RunFolder]:
    """Open a finished run to evaluate it again, on a device, ``auto`` where None. Raises UserError where it is not complete."""
    folder = RunFolder(run)
    config = validate(procedure.config, read_yaml(folder.config), str(folder.config))
    resources.check_memory([config.model_dump()], str(folder.config))
    if folder.read_summary(procedure.summary) is None:
        raise UserError(f"{run} is not complete; finish it with egd run --resume")
    config = config.model_copy(update={"device": pick_device(device or "auto")})
    set_up(config.device, config.threads)
    return config, replace(folder, execution=execution_keys(config))


def train(phases: Iterable[Phase], config: RunSettings, folder: RunFolder, reporter: Reporter) -> dict[str, float]:
    """Train the phases in turn, each from its checkpoint where there is one. Returns the seconds that each took.

    ``phases`` is read one at a time, so that a phase can be made after those before it are trained.
    """
    every: dict[str, Any] = config.model_dump(include={"checkpoint_every", "checkpoint_minutes", "log_every"})
    device = torch.device(config.device)
    return {
        phase.name: run_phase(phase, folder, reporter, seed=config.seed, device=device, **every).seconds for phase in phases
    }


def load(phases: Iterable[Phase], folder: RunFolder, device: torch.device) -> None:
    """Load what a finished run has trained, one phase at a time. Raises UserError where a phase is not finished."""
    for phase in phases:
        load_trained(phase, folder, device)


def common_summary(config: RunSettings, packages: Iterable[str]) -> dict[str, Any]:
    """Return the first keys of a summary: the task, the seed, the device, and the versions of these packages."""
    return {
        "task": config.task,
        "seed": config.seed,
        "device": config.device,
        "versions": {name: version(name) for name in packages},
    }
