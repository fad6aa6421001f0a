"""One run of a set of images and a seed, from training to summary."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from egd.config.catalogue import energy_registry
from egd.config.components import build, wanted_parts
from egd.config.parts import UNCALIBRATED_PARTS
from egd.errors import UserError, writable
from egd.experiments.images.classifier import accuracy
from egd.experiments.images.config import ImagesConfig
from egd.experiments.images.data import ImageSet
from egd.experiments.images.evaluation import ImageEvaluation, ImagesSummary, evaluate, rows
from egd.experiments.images.figure import grid_figure
from egd.experiments.images.model import DATA, ImagesModel, check_components, clip_key
from egd.files import read_regular, write_atomic
from egd.runs.folder import RunFolder
from egd.runs.job import Procedure, common_summary, train
from egd.runs.labels import with_seed
from egd.runs.progress import Reporter
from egd.samplers.watching import clips_of

TRUSTED = 0.8  # accuracy on test images below which a judge says little about samples


def complete(model: ImagesModel, folder: RunFolder, reporter: Reporter) -> dict[str, Any]:
    """Train what is not trained yet, sample, write the figure and the summary, and return the summary."""
    config = model.config
    same_images(folder, model, new=True)
    seconds = train(model.phases(), config, folder, reporter)
    started = time.perf_counter()
    evaluation = evaluated(model, reporter, config.seed)
    seconds["evaluation"] = time.perf_counter() - started
    grid_figure(evaluation.cells, folder.figures / "samples.png", config.evaluation.shown)
    _save_pipeline(model, folder.path / "pipeline")
    summary = {
        **common_summary(config, ("egd", "torch", "diffusers")),
        "images": {"train": len(model.train), "test": len(model.test)},
        "test_accuracy": {name: accuracy(learner.fit.model, model.test) for name, learner in model.classifiers.items()},
        "results": evaluation.results,
        "seconds": seconds,
    }
    folder.write_summary(summary)
    _warn(model, evaluation, reporter, summary["test_accuracy"])
    return summary


def _warn(model: ImagesModel, evaluation: ImageEvaluation, reporter: Reporter, test_accuracy: Mapping[str, float]) -> None:
    """Warn of clamped variances, clipped values, samples that are not finite, test images that also occur in training, and
    classifiers with a low accuracy.
    """
    if seen := model.test.copies(model.train):
        what = f"{seen} of the {len(model.test)} test images are copies of training images"
        reporter.warn(f"{what}: what is measured on them is too good")
    for name, found in test_accuracy.items():
        if found < TRUSTED:
            reporter.warn(f"the {name} knows {100 * found:.0f} % of the test images: what rests on it says little")
    moments = model.calibration.moments
    for name, estimator in model.config.estimators.items():
        kind, own = estimator.posterior.name, moments[clip_key(estimator.clip_x0)]
        guidance = estimator.guidance.spec
        wanted = wanted_parts(energy_registry(guidance.name, name), guidance, UNCALIBRATED_PARTS, name)
        used = "posterior" in wanted and kind in own.raw
        share = own.clamp_share(kind) if used else 0.0
        if share:
            text = f"{name}: its {kind} variance was clamped at {100 * share:.0f} % of the times"
            reporter.warn(text)
    for r in evaluation.results:
        if clips := clips_of(r):
            reporter.warn(f"{r['estimator']} ({r['target']}, beta {r['beta']:g}): {clips}")
    bad = [f"{r['estimator']} ({r['target']}, beta {r['beta']:g})" for r in evaluation.results if r["finite"] < 1]
    if bad:
        reporter.warn(f"samples are not finite: {', '.join(bad)}")


def _save_pipeline(model: ImagesModel, folder: Path) -> None:
    try:
        model.pipeline.save_pretrained(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def load_model(config: ImagesConfig) -> ImagesModel:
    """Create a model with the recipe's images and untrained networks. Raises UserError for images on another scale, or labels
    without a class.
    """
    images = build(DATA, config.data.spec, {}, "data")
    if not isinstance(images, ImageSet):
        raise UserError(
            f"'{config.data.name}' gives a {type(images).__name__}; return an egd.experiments.images.ImageSet", key="data"
        )
    try:
        images.check()
    except ValueError as error:
        raise UserError(str(error), key="data") from None
    return ImagesModel(config, images, torch.device(config.device))


def same_images(folder: RunFolder, model: ImagesModel, *, new: bool = False) -> None:
    """Raise UserError where the run was begun with other images. A ``new`` run records the digest of its images."""
    note, found = folder.path / "images.json", {"images": model.count, "digest": model.digest}
    if not note.exists():
        if new:
            with writable("--out"):
                write_atomic(note, (json.dumps(found) + "\n").encode())
        return
    try:
        noted = json.loads(read_regular(note, 2**20))
    except (OSError, ValueError, RecursionError):
        raise UserError(f"{note} is damaged; delete it if the images are those of the run", key="data") from None
    if noted != found:
        raise UserError(
            f"{folder.path} was begun with other images than these {model.count}; put back what they were", key="data"
        )


def evaluated(
    model: ImagesModel, reporter: Reporter, seed: int, omega: float | None = None, samples: int | None = None
) -> ImageEvaluation:
    """Evaluate as ``evaluate`` does, with a progress bar."""
    cells = sum(len(target.betas) for target in model.config.targets.values()) * (1 + len(model.config.estimators))
    with reporter.bar("sampling", cells) as bar:
        return evaluate(model, seed=seed, omega=omega, samples=samples, advance=bar.advance)


PROCEDURE = Procedure(
    ImagesConfig,
    ImagesSummary,
    check_components,
    load_model,
    complete,
    lambda config, summary: rows(with_seed(config.task, config.seed), summary["results"]),
    nullable=("targets", "estimators"),
)
