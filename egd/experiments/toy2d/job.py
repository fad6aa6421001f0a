"""One run of a data set and a seed, from training to summary."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from egd.experiments.toy2d.config import Toy2dConfig
from egd.experiments.toy2d.data import find_data_set
from egd.experiments.toy2d.evaluation import Toy2dEvaluation, Toy2dSummary, evaluate, rows, summarise
from egd.experiments.toy2d.figure import samples_figure
from egd.experiments.toy2d.model import UNGUIDED, Toy2dModel
from egd.runs.experiment import Row
from egd.runs.grid import in_cell
from egd.runs.job import PlannedRun, common_summary, train
from egd.runs.progress import Reporter
from egd.samplers.watching import clips_of


@dataclass(frozen=True)
class Toy2dJob:
    """The job of one run."""

    planned: PlannedRun[Toy2dConfig]

    @property
    def label(self) -> str:
        """Label of the job in the terminal."""
        return self.planned.label

    def run(self, reporter: Reporter) -> list[Row]:
        """Train what is not trained yet, sample, and write the figure and the summary; a complete run only returns its
        result.
        """
        config = self.planned.config
        summary = self.planned.summary(
            Toy2dSummary, lambda: load_model(config), lambda model: self._complete(model, reporter), reporter
        )
        return in_cell(rows(config.task, config.seed, summary), self.planned.cell)

    def _complete(self, model: Toy2dModel, reporter: Reporter) -> dict[str, Any]:
        config, folder = self.planned.config, self.planned.folder
        seconds = train(model.phases(), self.planned, reporter)
        started = time.perf_counter()
        evaluation = evaluated(model, reporter, config.seed, config.omega)
        seconds["evaluation"] = time.perf_counter() - started
        shown = {name: by_beta for name, by_beta in evaluation.samples.items() if name != UNGUIDED}
        samples_figure(model.data, shown, folder.figures / "samples.png")
        summary = common_summary(config, ("egd", "torch")) | summarise(evaluation) | {"seconds": seconds}
        folder.write_summary(summary)
        self._warn(evaluation, reporter)
        return summary

    def _warn(self, evaluation: Toy2dEvaluation, reporter: Reporter) -> None:
        """Warn of exact samples that rest on few draws, of clipped values, and of samples that are not finite."""
        for beta, ess in evaluation.ess.items():
            if ess < self.planned.config.evaluation.samples:
                text = f"beta {beta:g}: the exact samples are worth {ess:.0f} independent ones only; raise evaluation.draws"
                reporter.warn(text)
        for name, by_beta in evaluation.results.items():
            for beta, result in by_beta.items():
                if clips := clips_of(result):
                    reporter.warn(f"{name} at beta {beta:g}: {clips}")
            if bad := [f"{beta:g}" for beta, result in by_beta.items() if result["finite"] < 1]:
                reporter.warn(f"{name}: samples are not finite at beta {', '.join(bad)}")


def load_model(config: Toy2dConfig) -> Toy2dModel:
    """Create a model with the recipe's data set and untrained networks."""
    return Toy2dModel(config, find_data_set(config.task), torch.device(config.device))


def evaluated(model: Toy2dModel, reporter: Reporter, seed: int, omega: float, samples: int | None = None) -> Toy2dEvaluation:
    """Evaluate as ``evaluate`` does, with a progress bar."""
    with reporter.bar("sampling", (2 + len(model.config.estimators)) * len(model.config.betas)) as bar:
        return evaluate(model, seed=seed, omega=omega, samples=samples, advance=bar.advance)
