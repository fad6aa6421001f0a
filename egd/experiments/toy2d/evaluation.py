"""Guided samples of every estimator and beta, compared with exact samples of the target."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import FiniteFloat
from torch import Tensor

from egd.energies.mixture_fit import CollapsedError
from egd.experiments.toy2d.exact import Draws
from egd.experiments.toy2d.model import EXACT, UNGUIDED, Toy2dModel
from egd.metrics import sliced_wasserstein
from egd.runs.experiment import Row
from egd.runs.labels import label, with_seed
from egd.runs.phase import seed_of
from egd.runs.summaries import Common, Frozen
from egd.samplers.watching import named, tell, watching


@dataclass(frozen=True)
class Toy2dEvaluation:
    """The result of an evaluation: ``samples[name][beta]`` (n, 2) and ``results[name][beta]`` for exact samples, unguided
    samples and every estimator; ``ess[beta]`` of the exact samples.

    A result has ``w2``, the sliced W2 to the reference (for exact samples: the noise floor), ``energy``, the mean E(x_0),
    ``finite``, the share of finite samples, ``seconds`` of sampling, and the metrics of ``egd.samplers.watching``. ``w2`` and
    ``energy`` are None unless all samples are finite.
    """

    samples: Mapping[str, Mapping[float, Tensor]]
    results: Mapping[str, Mapping[float, dict[str, Any]]]
    ess: Mapping[float, float]


def evaluate(
    model: Toy2dModel, *, seed: int, omega: float, samples: int | None = None, advance: Callable[[int], None] = lambda n: None
) -> Toy2dEvaluation:
    """Sample with every estimator at every beta from the same initial noise; ``advance(1)`` is called after each."""
    config, n = model.config, samples or model.config.evaluation.samples
    scorer = SampleScorer.of(model, seed)
    names = (EXACT, UNGUIDED, *config.estimators)
    drawn: dict[str, dict[float, Tensor]] = {name: {} for name in names}
    results: dict[str, dict[float, dict[str, Any]]] = {name: {} for name in names}
    exact_seed = torch.Generator(model.device).manual_seed(seed_of(seed, "exact"))
    for beta in config.betas:
        for name in names:
            started = time.perf_counter()
            with named(f"{name} at beta {beta:g}"), watching() as watch:
                if name == EXACT:
                    x = scorer.other.resample(beta, n, exact_seed)
                else:
                    x = _sample(model, name if name != UNGUIDED and beta else None, beta, n, seed, omega)
            seconds = time.perf_counter() - started
            drawn[name][beta], results[name][beta] = x, scorer(x, beta) | watch.metrics() | {"seconds": seconds}
            advance(1)
    return Toy2dEvaluation(drawn, results, {beta: scorer.reference.ess(beta) for beta in config.betas})


def _sample(model: Toy2dModel, name: str | None, beta: float, n: int, seed: int, omega: float) -> Tensor:
    """Draw samples (n, 2). They are nan where an estimator's linear algebra fails, and where its fit has collapsed, which is
    also reported.
    """
    generator = torch.Generator(model.device).manual_seed(seed_of(seed, "sampling"))
    try:
        return model.sample(name, beta, n, generator, omega)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        pass
    except CollapsedError as error:
        tell(str(error))
    return torch.full((n, 2), torch.nan, device=model.device)


class Toy2dResult(Frozen):
    """The result of one estimator at one beta; its numbers are None where samples are not finite."""

    w2: FiniteFloat | None
    energy: FiniteFloat | None
    finite: FiniteFloat


class Toy2dSummary(Common):
    """The schema of ``summary.json``."""

    ess: dict[str, FiniteFloat]
    results: dict[str, dict[str, Toy2dResult]]


@dataclass(frozen=True)
class SampleScorer:
    """Two independent sets of weighted draws: the first is the reference, the second supplies exact samples to compare
    with it.
    """

    model: Toy2dModel
    reference: Draws
    other: Draws
    seed: int

    @staticmethod
    def of(model: Toy2dModel, seed: int) -> SampleScorer:
        """Create a scorer with new draws of the model's data set."""
        generator = torch.Generator(model.device).manual_seed(seed_of(seed, "draws"))
        first, second = (Draws.of(model.data, model.config.evaluation.draws, generator) for _ in range(2))
        return SampleScorer(model, first, second, seed)

    @torch.no_grad()
    def __call__(self, x: Tensor, beta: float) -> dict[str, Any]:
        """Return the result of samples x (n, 2), without their seconds; the reference and the projections are always the
        same.
        """
        finite = float(x.isfinite().all(1).double().mean())
        if finite < 1:
            return {"w2": None, "energy": None, "finite": finite}
        settings = self.model.config.evaluation
        generator = torch.Generator(x.device).manual_seed(seed_of(self.seed, f"reference/{label(beta)}"))
        points = self.reference.resample(beta, settings.reference, generator)
        w2 = sliced_wasserstein(x, points, settings.projections, generator)
        return {"w2": float(w2), "energy": float(self.model.data.energy(x, None).mean()), "finite": finite}


def summarise(evaluation: Toy2dEvaluation) -> dict[str, Any]:
    """Convert to JSON-serialisable mappings: estimator -> beta (as text) -> result."""
    return {
        "ess": {label(beta): ess for beta, ess in evaluation.ess.items()},
        "results": {n: {label(b): r for b, r in by_beta.items()} for n, by_beta in evaluation.results.items()},
    }


def rows(task: str, seed: int, summary: Mapping[str, Any]) -> list[Row]:
    """Format the results table, a row for every estimator: for every beta the sliced W2 and, in brackets, the mean energy."""
    return [_row(with_seed(task, seed), name, by_beta) for name, by_beta in summary["results"].items()]


def _row(task: str, name: str, by_beta: Mapping[str, Mapping[str, Any]]) -> Row:
    return {"task": task, "estimator": name, **{f"β={beta}: W2 (E)": _cell(r) for beta, r in by_beta.items()}}


def _cell(result: Mapping[str, Any]) -> str:
    return "diverged" if result["w2"] is None else f"{result['w2']:.3f} ({result['energy']:.2f})"
