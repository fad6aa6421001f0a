"""One run: a data set and a seed, from training to summary."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch

from egd.experiments.toy2d.config import Toy2dConfig
from egd.experiments.toy2d.data import DataSet, find_data_set
from egd.experiments.toy2d.evaluation import Evaluation, Toy2dSummary, evaluate, rows, summarise
from egd.experiments.toy2d.figure import samples_figure
from egd.experiments.toy2d.model import UNGUIDED, Toy2dModel
from egd.runs.experiment import Row
from egd.runs.folder import RunFolder
from egd.runs.grid import Cell, in_cell, run_label
from egd.runs.phase_files import settle
from egd.runs.phases import Phase, load_trained, run_phase
from egd.runs.progress import Reporter
from egd.samplers.watching import clips_of
from egd.training.precision import set_up


@dataclass(frozen=True)
class Toy2dJob:
    """One run and its folder."""

    config: Toy2dConfig
    folder: RunFolder
    resume: bool
    cell: Cell = field(default_factory=dict)
    """Its place where it is one of a grid."""

    @property
    def label(self) -> str:
        """For people."""
        return run_label(self.config.task, self.cell, self.config.seed)

    @property
    def data(self) -> DataSet:
        """The run's data set."""
        return find_data_set(self.config.task)

    def run(self, reporter: Reporter) -> list[Row]:
        """Train what is not trained yet, sample, write figure and summary; a complete run only shows its result."""
        set_up(self.config.device, self.config.threads)
        model = None if self.folder.summary.exists() else self._model()  # what is refused leaves no folder behind
        with self.folder.lock():
            self.folder.open(self.config.model_dump(mode="json"), resume=self.resume)
            summary = self.folder.read_summary(Toy2dSummary) or self._run(model or self._model(), reporter)
        return in_cell(rows(self.config.task, self.config.seed, summary), self.cell)

    def _model(self) -> Toy2dModel:
        return Toy2dModel(self.config, self.data, torch.device(self.config.device))

    def _run(self, model: Toy2dModel, reporter: Reporter) -> dict[str, Any]:
        settle(self.folder, reporter.warn)
        seconds = train(model, self.folder, reporter)
        started = time.perf_counter()
        evaluation = evaluated(model, reporter, self.config.seed, self.config.omega)
        seconds["evaluation"] = time.perf_counter() - started
        shown = {name: by_beta for name, by_beta in evaluation.samples.items() if name != UNGUIDED}
        samples_figure(self.data, shown, self.folder.figures / "samples.png")
        summary = self._summary(evaluation, seconds)
        self.folder.write_summary(summary)
        self._warn(evaluation, reporter)
        return summary

    def _summary(self, evaluation: Evaluation, seconds: dict[str, float]) -> dict[str, Any]:
        return {
            "task": self.config.task,
            "seed": self.config.seed,
            "device": self.config.device,
            "versions": {name: version(name) for name in ("egd", "torch")},
            **summarise(evaluation),
            "seconds": seconds,
        }

    def _warn(self, evaluation: Evaluation, reporter: Reporter) -> None:
        """Exact samples that rest on few draws, and samples that are not numbers, are reported."""
        for beta, ess in evaluation.ess.items():
            if ess < self.config.evaluation.samples:
                text = f"beta {beta:g}: the exact samples are worth {ess:.0f} independent ones only; raise evaluation.draws"
                reporter.warn(text)
        for name, by_beta in evaluation.results.items():
            for beta, result in by_beta.items():
                if clips := clips_of(result):
                    reporter.warn(f"{name} at beta {beta:g}: {clips}")
            if bad := [f"{beta:g}" for beta, result in by_beta.items() if result["finite"] < 1]:
                reporter.warn(f"{name}: samples are not finite at beta {', '.join(bad)}")


def train(model: Toy2dModel, folder: RunFolder, reporter: Reporter) -> dict[str, float]:
    """All phases, from their checkpoints where there are some; seconds of each."""
    seconds = {phase.name: _phase(phase, model, folder, reporter) for phase in model.first_phases()}
    return seconds | {phase.name: _phase(phase, model, folder, reporter) for phase in model.energy_phases()}


def load(model: Toy2dModel, folder: RunFolder) -> None:
    """What a complete run has trained."""
    for phase in model.first_phases():
        load_trained(phase, folder, model.device)
    for phase in model.energy_phases():
        load_trained(phase, folder, model.device)


def _phase(phase: Phase, model: Toy2dModel, folder: RunFolder, reporter: Reporter) -> float:
    c = model.config
    every: dict[str, Any] = c.model_dump(include={"checkpoint_every", "checkpoint_minutes", "log_every"})
    return run_phase(phase, folder, reporter, seed=c.seed, device=model.device, **every).seconds


def evaluated(model: Toy2dModel, reporter: Reporter, seed: int, omega: float, samples: int | None = None) -> Evaluation:
    """``evaluate`` with a bar."""
    with reporter.bar("sampling", (2 + len(model.config.estimators)) * len(model.config.betas)) as bar:
        return evaluate(model, seed=seed, omega=omega, samples=samples, advance=bar.advance)
