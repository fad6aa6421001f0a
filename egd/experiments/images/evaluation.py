"""Guided samples of every target and estimator, compared with the data weighted by exp(-beta E)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ConfigDict, FiniteFloat
from torch import Tensor

from egd.contracts import name_of
from egd.errors import UserError
from egd.experiments.images.data import make_context
from egd.experiments.images.energies import MeasuresSamples, ShowsImages
from egd.experiments.images.model import DATA_ROW, UNGUIDED, ImagesModel
from egd.metrics import sliced_wasserstein
from egd.runs.experiment import Row
from egd.runs.labels import label
from egd.runs.phase import seed_of
from egd.runs.summaries import Common, Frozen
from egd.samplers.watching import SHARES, named, watching
from egd.selection import energies_of
from egd.types import Context, Energy

ENOUGH = 5.0  # effective number of images below which weighted data are no reference
CHUNK = 8192  # energies computed at a time

Cells = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class ImageEvaluation:
    """The result of an evaluation: ``cells[row][column]`` holds the images of a figure's cell, ``results`` a mapping for every
    row of the table.
    """

    cells: Cells
    results: list[dict[str, Any]]


def evaluate(
    model: ImagesModel,
    *,
    seed: int,
    omega: float | None = None,
    samples: int | None = None,
    advance: Callable[[int], None] = lambda n: None,
) -> ImageEvaluation:
    """Sample for every target, beta and estimator from the same initial noise; ``advance(1)`` is called after each."""
    config, n = model.config, samples or model.config.evaluation.samples
    c = make_context(model.test, n)
    cells: Cells = {}
    results: list[dict[str, Any]] = []
    for name, target in config.targets.items():
        energy = model.energy(name)
        data = Weighted.of(model, energy, c, n, seed)
        for beta in target.betas:
            about, row = {"target": name, "beta": beta}, f"{name}, β = {label(beta)}"
            scorer = ImageScorer.of(model, energy, c, data, beta, seed)
            exact = data.resample(beta, 1, seed)
            cells[row] = {"": energy.shown(c) if isinstance(energy, ShowsImages) else exact}
            results.append(about | {"estimator": DATA_ROW, "ess": data.ess(beta), "finite": 1.0} | scorer.of_data(exact))
            for column in (UNGUIDED, *config.estimators):
                started = time.perf_counter()
                generator = torch.Generator(model.device).manual_seed(seed_of(seed, "sampling"))
                with named(f"{column} ({name}, beta {beta:g})"), watching() as watch:
                    x = model.sample(None if column == UNGUIDED else column, name, beta, c, n, generator, omega)
                seconds = time.perf_counter() - started
                cells[row][column] = x
                results.append(about | {"estimator": column} | scorer(x) | watch.metrics() | {"seconds": seconds})
                advance(1)
    return ImageEvaluation(cells, results)


@dataclass(frozen=True)
class Weighted:
    """Training images weighted by exp(-beta E(x_0, c)) for every row of c: importance sampling of the target among the data.
    ``images`` (K, ...), ``energies`` (n, K).
    """

    images: Tensor
    energies: Tensor

    @staticmethod
    @torch.no_grad()
    def of(model: ImagesModel, energy: Energy, c: Context, n: int, seed: int) -> Weighted:
        """Weight at most ``evaluation.draws`` training images. Raises UserError where the energy gives nan or -inf, or inf for
        all images in a row.
        """
        generator = torch.Generator(model.device).manual_seed(seed_of(seed, "data"))
        images, most = model.train.images, model.config.evaluation.draws
        if len(images) > most:
            images = images[torch.randperm(len(images), generator=generator, device=model.device)[:most]]
        assert isinstance(c, Mapping)
        rows = max(1, CHUNK // len(images))
        chunks = [{k: v[i : i + rows] for k, v in c.items()} for i in range(0, n, rows)]
        parts = [energies_of(images[None].expand(_length(part), *images.shape), energy, part) for part in chunks]
        energies = torch.cat(parts)
        if energies.isnan().any() or energies.amin(1).isinf().any():  # some may be infinite: such images have no weight
            raise UserError(f"{name_of(energy)} gives nan, -inf or nothing but inf for training images; give numbers")
        return Weighted(images, energies)

    def weights(self, beta: float) -> Tensor:
        """Return the weights (n, K), normalised in every row."""
        return torch.softmax(-beta * self.energies.double(), 1)

    def ess(self, beta: float) -> float:
        """Return the effective number of images behind a row, 1 / sum w^2, averaged over the rows."""
        return float((1 / self.weights(beta).square().sum(1)).mean())

    def resample(self, beta: float, each: int, seed: int) -> Tensor:
        """Draw ``each`` images for every row: (n * each, ...)."""
        generator = torch.Generator(self.images.device).manual_seed(seed_of(seed, "reference"))
        return self.images[torch.multinomial(self.weights(beta), each, replacement=True, generator=generator).flatten()]


def _length(c: Mapping[str, Tensor]) -> int:
    return len(next(iter(c.values())))


@dataclass(frozen=True)
class ImageScorer:
    """Metrics of samples for one energy and beta; ``reference`` is weighted data, None where their effective number is too
    small.
    """

    model: ImagesModel
    energy: Energy
    c: Context
    reference: Tensor | None

    @staticmethod
    def of(model: ImagesModel, energy: Energy, c: Context, data: Weighted, beta: float, seed: int) -> ImageScorer:
        """Create a scorer with its own draw of reference images."""
        each = -(-model.config.evaluation.reference // len(data.energies))
        return ImageScorer(model, energy, c, data.resample(beta, each, seed + 1) if data.ess(beta) >= ENOUGH else None)

    def of_data(self, x: Tensor) -> dict[str, Any]:
        """Return the metrics of weighted data, which an exact sampler would reach; {} without a reference."""
        return {} if self.reference is None else self(x)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> dict[str, Any]:
        """Return ``finite``, the share of finite samples; where all are finite also the energy's own measures, ``energy`` and
        ``w2``.
        """
        finite = float(x.isfinite().flatten(1).all(1).double().mean())
        if finite < 1:
            return {"finite": finite}
        own = dict[str, Any]()
        if isinstance(self.energy, MeasuresSamples):
            own = self.energy.measure(x, self.c, self.model.judge)
        if own.keys() & set(SHARED):
            raise ValueError(f"measure() of {type(self.energy).__name__} may not use the names {', '.join(SHARED)}")
        result = {"finite": finite, **own, "energy": float(self.energy(x, self.c).mean())}
        if self.reference is None:
            return result
        generator, projections = torch.Generator(x.device).manual_seed(0), self.model.config.evaluation.projections
        return result | {"w2": float(sliced_wasserstein(x, self.reference, projections, generator))}


def rows(task: str, results: list[dict[str, Any]]) -> list[Row]:
    """Format the results table; a dash stands where a number has no meaning."""
    return [_row(task, result) for result in results]


class ImageResult(Frozen):
    """The result of one estimator for one target at one beta; further keys are the target's own measures."""

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, FiniteFloat]
    target: str
    beta: FiniteFloat
    estimator: str
    finite: FiniteFloat


class ImagesSummary(Common):
    """The schema of ``summary.json``."""

    results: list[ImageResult]


SHARED = ("target", "beta", "estimator", "finite", "ess", "energy", "w2", "seconds", *SHARES)


def _row(task: str, result: Mapping[str, Any]) -> Row:
    own = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in result.items() if name not in SHARED)
    if result.get("ess", ENOUGH) < ENOUGH:
        own = f"none: weights of {result['ess']:.1f} images"
    return {
        "task": f"{task} {result['target']}, beta {label(result['beta'])}",
        "estimator": result["estimator"],
        "result": own if result["finite"] == 1 else "diverged",
        "energy": _number(result, "energy", 2),
        "W2": _number(result, "w2", 3),
        "s": _number(result, "seconds", 1),
    }


def _number(result: Mapping[str, Any], name: str, digits: int) -> str:
    return f"{result[name]:.{digits}f}" if name in result else "-"
