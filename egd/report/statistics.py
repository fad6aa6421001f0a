"""Aggregates over tasks and seeds with stratified bootstrap intervals: the statistics of rliable (arXiv:2108.13264).

Scores come as strata, one array (seeds,) a task. Seeds are resampled with replacement within each task, tasks are not. The
interval thus covers the variation over seeds, not over tasks; with few seeds it is too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import bootstrap, trim_mean

Array = np.ndarray[Any, Any]
Statistic = Callable[..., Array]
"""Function from strata (..., seeds), one a task, to values (...)."""

RESAMPLES = 5000


def mean(*strata: Array, axis: int = -1) -> Array:
    """Compute the mean over tasks of the mean over seeds."""
    return np.asarray(np.mean([s.mean(axis) for s in strata], axis=0))


def median(*strata: Array, axis: int = -1) -> Array:
    """Compute the median over tasks of the mean over seeds."""
    return np.asarray(np.median([s.mean(axis) for s in strata], axis=0))


def iqm(*strata: Array, axis: int = -1) -> Array:
    """Compute the interquartile mean over all tasks and seeds: the mean without the lowest and the highest quarter of the
    scores, each rounded down to a whole number of scores.
    """
    return np.asarray(trim_mean(np.concatenate(strata, axis), 0.25, axis=axis))


def improvement(*strata: Array, axis: int = -1) -> Array:
    """Compute P(X > Y) for a random task and random seeds; equal scores count one half. The strata of X precede those of Y."""
    half = len(strata) // 2
    pairs = [(x[..., :, None], y[..., None, :]) for x, y in zip(strata[:half], strata[half:], strict=True)]
    return np.asarray(np.mean([((x > y) + 0.5 * (x == y)).mean((-2, -1)) for x, y in pairs], axis=0))


AGGREGATES: dict[str, Statistic] = {"mean": mean, "median": median, "IQM": iqm}


@dataclass(frozen=True)
class Estimate:
    """A statistic and its 95 % interval, which is None where a task has a single seed."""

    value: float
    interval: tuple[float, float] | None

    def text(self, digits: int) -> str:
        """Format the estimate for tables."""
        shown = f"{self.value:.{digits}f}"
        return shown if self.interval is None else f"{shown} [{self.interval[0]:.{digits}f}, {self.interval[1]:.{digits}f}]"


def estimate(statistic: Statistic, strata: Sequence[Array], resamples: int = RESAMPLES) -> Estimate:
    """Compute the statistic with its percentile interval over bootstrap samples, which are the same at every call."""
    value = float(statistic(*strata))
    if any(len(s) < 2 for s in strata):
        return Estimate(value, None)
    options = {"n_resamples": resamples, "batch": 500, "method": "percentile", "vectorized": True, "axis": -1}
    found = bootstrap(tuple(strata), statistic, confidence_level=0.95, rng=np.random.default_rng(0), **options)
    return Estimate(value, (float(found.confidence_interval.low), float(found.confidence_interval.high)))
