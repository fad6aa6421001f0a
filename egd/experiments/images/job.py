"""One run: a set of images and a seed, from training to summary."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from egd.config.catalogue import ENERGIES
from egd.config.components import build, wanted_parts
from egd.config.parts import UNCALIBRATED_PARTS
from egd.errors import UserError, writable
from egd.experiments.images.classifier import accuracy
from egd.experiments.images.config import ImagesConfig
from egd.experiments.images.data import ImageSet
from egd.experiments.images.evaluation import Evaluation, ImagesSummary, evaluate, rows
from egd.experiments.images.figure import grid_figure
from egd.experiments.images.model import DATA, ImagesModel, clip_key
from egd.runs.experiment import Row
from egd.runs.files import read_regular, write_atomic
from egd.runs.folder import RunFolder
from egd.runs.grid import Cell, in_cell, run_label
from egd.runs.phase_files import settle
from egd.runs.phases import run_phase
from egd.runs.progress import Reporter
from egd.samplers.watching import clips_of
from egd.training.precision import set_up

TRUSTED = 0.8  # of the test images; a judge below it says little of samples


@dataclass(frozen=True)
class ImagesJob:
    """One run and its folder."""

    config: ImagesConfig
    folder: RunFolder
    resume: bool
    cell: Cell = field(default_factory=dict)
    """Its place where it is one of a grid."""

    @property
    def label(self) -> str:
        """For people."""
        return run_label(self.config.task, self.cell, self.config.seed)

    def run(self, reporter: Reporter) -> list[Row]:
        """Train what is not trained yet, sample, write figure and summary; a complete run only shows its result."""
        set_up(self.config.device, self.config.threads)
        model = None if self.folder.summary.exists() else load_model(self.config)  # what is refused leaves no folder behind
        with self.folder.lock():
            self.folder.open(self.config.model_dump(mode="json"), resume=self.resume)
            summary = self.folder.read_summary(ImagesSummary) or self._run(model or load_model(self.config), reporter)
        name = f"{self.config.task} ({self.config.seed})" if self.config.seed else self.config.task
        return in_cell(rows(name, summary["results"]), self.cell)

    def _run(self, model: ImagesModel, reporter: Reporter) -> dict[str, Any]:
        settle(self.folder, reporter.warn)
        same_images(self.folder, model, new=True)
        seconds = train(model, self.folder, reporter)
        started = time.perf_counter()
        evaluation = evaluated(model, reporter, self.config.seed)
        seconds["evaluation"] = time.perf_counter() - started
        grid_figure(evaluation.cells, self.folder.figures / "samples.png", self.config.evaluation.shown)
        _save_pipeline(model, self.folder.path / "pipeline")
        summary = self._summary(model, evaluation, seconds)
        self.folder.write_summary(summary)
        self._warn(model, evaluation, reporter, summary["test_accuracy"])
        return summary

    def _summary(self, model: ImagesModel, evaluation: Evaluation, seconds: dict[str, float]) -> dict[str, Any]:
        found = {name: accuracy(learner.fit.model, model.test) for name, learner in model.classifiers.items()}
        return {
            "task": self.config.task,
            "seed": self.config.seed,
            "device": self.config.device,
            "versions": {name: version(name) for name in ("egd", "torch", "diffusers")},
            "images": {"train": len(model.train), "test": len(model.test)},
            "test_accuracy": found,
            "results": evaluation.results,
            "seconds": seconds,
        }

    def _warn(self, model: ImagesModel, evaluation: Evaluation, reporter: Reporter, test_accuracy: Mapping[str, float]) -> None:
        """A clamp that acts, samples that are not numbers, test images that were trained on, and a classifier that hardly knows
        the classes are reported.
        """
        if seen := model.test.copies(model.train):
            what = f"{seen} of the {len(model.test)} test images are copies of training images"
            reporter.warn(f"{what}: what is measured on them is too good")
        for name, found in test_accuracy.items():
            if found < TRUSTED:
                reporter.warn(f"the {name} knows {100 * found:.0f} % of the test images: what rests on it says little")
        moments = model.calibration.moments
        for name, estimator in self.config.estimators.items():
            kind, own = estimator.posterior.name, moments[clip_key(estimator.clip_x0)]
            used = "posterior" in wanted_parts(ENERGIES, estimator.guidance.spec, UNCALIBRATED_PARTS, name) and kind in own.raw
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
    """The images of the recipe, and fresh networks for them. UserError for images on another scale, or labels of no class."""
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
    """UserError where a run was begun with other images; a ``new`` one notes which they are."""
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


def train(model: ImagesModel, folder: RunFolder, reporter: Reporter) -> dict[str, float]:
    """All phases, from their checkpoints where there are some; seconds of each."""
    c = model.config
    every: dict[str, Any] = c.model_dump(include={"checkpoint_every", "checkpoint_minutes", "log_every"})
    seconds = {}
    for phase in model.phases():
        progress = run_phase(phase, folder, reporter, seed=c.seed, device=model.device, **every)
        seconds[phase.name] = progress.seconds
    return seconds


def evaluated(
    model: ImagesModel, reporter: Reporter, seed: int, omega: float | None = None, samples: int | None = None
) -> Evaluation:
    """``evaluate`` with a bar."""
    cells = sum(len(target.betas) for target in model.config.targets.values()) * (1 + len(model.config.estimators))
    with reporter.bar("sampling", cells) as bar:
        return evaluate(model, seed=seed, omega=omega, samples=samples, advance=bar.advance)
