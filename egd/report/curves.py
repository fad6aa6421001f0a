"""Learning curves as numbers: the area under them, steps to a threshold, differences between runs with the same seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import ttest_1samp

from egd.report.results import Report, ResultEntry
from egd.report.runs import Run
from egd.report.statistics import Estimate

Curve = Mapping[float, float]
"""Step in the last phase -> score."""


def curve(run: Run) -> dict[float, float]:
    """Return a run's evaluations in the phase of its last evaluation: step -> score."""
    found = run.summary.evaluations
    return {point.step: point.score for point in found if point.phase == found[-1].phase}


def area(points: Curve) -> float:
    """Compute the mean score over the steps, with straight lines between evaluations. A single evaluation is the mean
    itself.
    """
    steps = sorted(points)
    scores = [points[s] for s in steps]
    return float(np.trapezoid(scores, steps) / (steps[-1] - steps[0])) if len(steps) > 1 else scores[0]


def steps_to(points: Curve, threshold: float) -> float:
    """Return the step of the first evaluation that reaches the threshold; infinite where there is none."""
    return next((step for step in sorted(points) if points[step] >= threshold), math.inf)


def paired(report: Report, task: str, label: str) -> Estimate | None:
    """Estimate the mean difference between the areas of ``label`` and ``report.against`` over the seeds that both have, with
    Student's 95 % interval. A bootstrap of five seeds would cover only 84 %.

    Returns None for ``against`` itself, and where no seed is in both.
    """
    others = {e.run.summary.seed: e for e in report.cells.get((task, report.against or ""), ())}
    own = [e for e in report.cells[task, label] if e.run.summary.seed in others]
    if label == report.against or not own:
        return None
    differences = [area(curve(e.run)) - area(curve(others[e.run.summary.seed].run)) for e in own]
    value = float(np.mean(differences))
    if len(differences) < 2:
        return Estimate(value, None)
    found = ttest_1samp(differences, 0).confidence_interval(0.95)
    return Estimate(value, (float(found.low), float(found.high)))


def row(report: Report, task: str, label: str) -> dict[str, Any]:
    """Return the numbers of a method's curves on a task for a table, each as a list over seeds."""
    curves = [curve(e.run) for e in _learning(report.cells[task, label])]
    found: dict[str, Any] = {"start": [c[min(c)] for c in curves], "area": [area(c) for c in curves]}
    found["end"] = [c[max(c)] for c in curves]
    if report.threshold is not None:
        found["steps"] = [steps_to(c, report.threshold) for c in curves]
    return found


def _learning(group: Sequence[ResultEntry]) -> list[ResultEntry]:
    return [e for e in group if e.run.summary.evaluations]
