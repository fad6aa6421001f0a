"""One run of a data set and a seed, from training to summary."""

from __future__ import annotations

import time
from typing import Any

import torch

from egd.experiments.toy2d.config import Toy2dConfig
from egd.experiments.toy2d.data import find_data_set
from egd.experiments.toy2d.evaluation import Toy2dEvaluation, Toy2dSummary, evaluate, rows, summarise
from egd.experiments.toy2d.figure import samples_figure
from egd.experiments.toy2d.model import UNGUIDED, Toy2dModel, check_components
from egd.runs.folder import RunFolder
from egd.runs.job import Procedure, common_summary, train
from egd.runs.progress import Reporter
from egd.samplers.watching import clips_of


def load_model(config: Toy2dConfig) -> Toy2dModel:
    """Create a model with the recipe's data set and untrained networks."""
    return Toy2dModel(config, find_data_set(config.task), torch.device(config.device))


def complete(model: Toy2dModel, folder: RunFolder, reporter: Reporter) -> dict[str, Any]:
    """Train what is not trained yet, sample, write the figure and the summary, and return the summary."""
    config = model.config
    seconds = train(model.phases(), config, folder, reporter)
    started = time.perf_counter()
    evaluation = evaluated(model, reporter, config.seed, config.omega)
    seconds["evaluation"] = time.perf_counter() - started
    shown = {name: by_beta for name, by_beta in evaluation.samples.items() if name != UNGUIDED}
    samples_figure(model.data, shown, folder.figures / "samples.png")
    summary = common_summary(config, ("egd", "torch")) | summarise(evaluation) | {"seconds": seconds}
    folder.write_summary(summary)
    _warn(config, evaluation, reporter)
    return summary


def _warn(config: Toy2dConfig, evaluation: Toy2dEvaluation, reporter: Reporter) -> None:
    """Warn of exact samples that rest on few draws, of clipped values, and of samples that are not finite."""
    for beta, ess in evaluation.ess.items():
        if ess < config.evaluation.samples:
            text = f"beta {beta:g}: the exact samples are worth {ess:.0f} independent ones only; raise evaluation.draws"
            reporter.warn(text)
    for name, by_beta in evaluation.results.items():
        for beta, result in by_beta.items():
            if clips := clips_of(result):
                reporter.warn(f"{name} at beta {beta:g}: {clips}")
        if bad := [f"{beta:g}" for beta, result in by_beta.items() if result["finite"] < 1]:
            reporter.warn(f"{name}: samples are not finite at beta {', '.join(bad)}")


def evaluated(model: Toy2dModel, reporter: Reporter, seed: int, omega: float, samples: int | None = None) -> Toy2dEvaluation:
    """Evaluate as ``evaluate`` does, with a progress bar."""
    with reporter.bar("sampling", (2 + len(model.config.estimators)) * len(model.config.betas)) as bar:
        return evaluate(model, seed=seed, omega=omega, samples=samples, advance=bar.advance)


PROCEDURE = Procedure(
    Toy2dConfig,
    Toy2dSummary,
    check_components,
    load_model,
    complete,
    lambda config, summary: rows(config.task, config.seed, summary),
    nullable=("estimators",),
)
