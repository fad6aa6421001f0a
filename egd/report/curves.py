"""Learning curves as numbers: the area under them, steps to a threshold, differences of runs with the same seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import ttest_1samp

from egd.report.results import Entry, Report
from egd.report.runs import Run
from egd.report.statistics import Estimate

Curve = Mapping[float, float]
"""Step of the last phase -> score."""


def curve(run: Run) -> dict[float, float]:
    """The evaluations in the phase that the last one was made in."""
    found = run.summary.evaluations
    return {point.step: point.score for point in found if point.phase == found[-1].phase}


def area(points: Curve) -> float:
    """The mean score over the steps, between evaluations on a straight line. A single evaluation is its own."""
    steps = sorted(points)
    scores = [points[s] for s in steps]
    return float(np.trapezoid(scores, steps) / (steps[-1] - steps[0])) if len(steps) > 1 else scores[0]


def steps_to(points: Curve, threshold: float) -> float:
    """The first evaluation that is not below the threshold; infinite where there is none."""
    return next((step for step in sorted(points) if points[step] >= threshold), math.inf)


def paired(report: Report, task: str, label: str) -> Estimate | None:
    """Mean difference of the areas of ``label`` and ``report.against`` over the seeds that both have, with Student's 95 %
    interval: of five seeds a bootstrap covers but 84 %.

    None for ``against`` itself, and where no seed is in both.
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
    """All numbers of a method's curves on a task, for a table of numbers."""
    curves = [curve(e.run) for e in _learning(report.cells[task, label])]
    found: dict[str, Any] = {"start": [c[min(c)] for c in curves], "area": [area(c) for c in curves]}
    found["end"] = [c[max(c)] for c in curves]
    if report.threshold is not None:
        found["steps"] = [steps_to(c, report.threshold) for c in curves]
    return found


def _learning(group: Sequence[Entry]) -> list[Entry]:
    return [e for e in group if e.run.summary.evaluations]
