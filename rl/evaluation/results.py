"""Conversion of returns to scores: statistics by policy and guidance scale, and the rows of the results table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from egd.runs.experiment import Row
from rl.tasks import Task


def statistics(task: Task, returns: Any) -> dict[str, Any]:
    """Compute mean and sample standard deviation of the normalised scores (0 for one episode), with the scores of
    all episodes.
    """
    scores = [task.score(float(r)) for r in returns]
    return {
        "mean": float(np.mean(scores)),
        "std": float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0,
        "episodes": len(scores),
        "returns": scores,
        "raw_returns": [float(r) for r in returns],
    }


def by_scale(policies: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Mapping[str, Any]]:
    """Return the statistics of one policy by omega."""
    head = f"{name}@"
    return {key.removeprefix(head): s for key, s in policies.items() if key.startswith(head)}


def rows(summary: Mapping[str, Any]) -> list[Row]:
    """Return the results table: one row for every policy and guidance scale, or one row where nothing was evaluated."""
    run = {
        "task": summary["task"],
        "method": summary["method"],
        "seed": str(summary["seed"]),
        "data": "-" if summary.get("dataset_score") is None else f"{summary['dataset_score']:.1f}",
    }
    if not summary["policies"]:
        return [{**run, "policy": summary["headline"].partition("@")[0], "score ± s.e.": "not evaluated", "n": "0"}]
    return [
        {
            **run,
            "policy": key.partition("@")[0],
            "omega": key.partition("@")[2] or ("0" if key == "behaviour" else "-"),
            "score ± s.e.": _with_error(s),
            "n": str(s["episodes"]),
        }
        for key, s in summary["policies"].items()
    ]


def _with_error(statistics: Mapping[str, Any]) -> str:
    """Format a mean score and its standard error, or the mean alone for a single episode, which has no error."""
    mean, episodes = f"{statistics['mean']:.1f}", statistics["episodes"]
    return mean if episodes < 2 else f"{mean} ± {statistics['std'] / episodes**0.5:.1f}"
