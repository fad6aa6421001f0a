"""From returns to scores: statistics by arm and guidance scale, and the rows of the results table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from egd.experiments import Row
from rl.tasks import Task


def statistics(task: Task, returns: Any) -> dict[str, Any]:
    """Mean and standard deviation of normalised scores, with every episode's."""
    scores = [task.score(float(r)) for r in returns]
    return {
        "mean": float(np.mean(scores)),
        "std": float(np.std(scores)),
        "episodes": len(scores),
        "returns": scores,
        "raw_returns": [float(r) for r in returns],
    }


def split_by_omega(task: Task, returns: Mapping[str, Any], name: str) -> dict[str, dict[str, Any]]:
    """omega -> statistics of one arm."""
    head = f"{name}@"
    return {key.removeprefix(head): statistics(task, r) for key, r in returns.items() if key.startswith(head)}


def rows(summary: Mapping[str, Any]) -> list[Row]:
    """The results table: one row for behaviour, one for every arm and guidance scale."""
    first = {"task": summary["task"], "seed": str(summary["seed"]), "data": f"{summary['dataset_score']:.1f}"}

    def row(name: str, omega: str, s: Mapping[str, Any]) -> Row:
        error = s["std"] / s["episodes"] ** 0.5
        score = f"{s['mean']:.1f} ± {error:.1f}"
        return {**first, "policy": name, "omega": omega, "score ± s.e.": score, "n": str(s["episodes"])}

    result = [row("behaviour", "0", summary["behaviour"])]
    result += [row("guided", omega, s) for omega, s in summary["guided_by_omega"].items()]
    for name, variant in summary["variants"].items():
        result += [row(name, omega, s) for omega, s in variant["guided_by_omega"].items()]
    return result
