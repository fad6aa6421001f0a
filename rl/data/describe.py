"""Statistics of a dataset: sizes, returns, ends of episodes, ranges, and rewards before and after the transform."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from egd.drawing import Figure, plain
from egd.files import replacing
from egd.runs.safe_names import figure_text
from rl.data.episodes import Episodes, data_return, relabel, reward_factor
from rl.tasks import Task

Array = np.ndarray[Any, Any]
QUANTILES = (0, 5, 25, 50, 75, 95, 100)
"""Percentages of the quantiles that are reported."""
EDGE = 0.99
"""Magnitude beyond which an entry of an action counts as saturated, in [-1, 1]."""


def describe(task: Task, episodes: Episodes) -> dict[str, Any]:
    """Return facts about the stored data, ready for JSON; ``trained_on`` describes the rewards after the transform of the
    family's recipe.

    In ``returns.quantiles`` and ``scores.quantiles`` the key is the percentage. ``scores`` is absent if the task has no
    reference returns, and in mazes, where the stored returns belong to other goals than the task's.
    """
    returns, lengths = episodes.returns.astype(np.float64), episodes.lengths
    states, actions = np.concatenate(episodes.observations), np.concatenate(episodes.actions)
    terminals = sum(bool(t[-1]) for t in episodes.terminations)
    facts: dict[str, Any] = {
        "task": task.name,
        "datasets": list(task.datasets),
        "environment": task.env_id,
        "environment_differs": task.env_note,
        "episodes": len(returns),
        "transitions": int(lengths.sum()),
        "episode_length": _spread(lengths),
        "ended_by": {"terminal": terminals, "truncation": len(returns) - terminals},
        "returns": _spread(returns) | {"quantiles": _quantiles(returns)},
        "states": {"entries": states.shape[1], **_ranges(states)},
        "actions": {"entries": actions.shape[1], **_ranges(actions), "beyond_0.99": float((np.abs(actions) > EDGE).mean())},
        "rewards": _rewards(episodes.rewards),
        "trained_on": _trained_on(task, episodes),
    }
    if task.reference is not None and not task.goal_reward:
        scores = task.score
        facts["scores"] = {
            "mean": scores(float(returns.mean())),
            "quantiles": {k: scores(v) for k, v in _quantiles(returns).items()},
        }
    return facts


def _trained_on(task: Task, episodes: Episodes) -> dict[str, Any]:
    """Return facts about the rewards and terminals that a recipe of the task's family learns from."""
    transform = task.reward
    if task.goal_reward:
        episodes = relabel(task, episodes)
    factor = reward_factor(transform.scale, episodes.returns)
    facts = {
        "transform": str(transform),
        "shift": transform.shift,
        "factor": factor,
        "relabelled_for_the_goal": task.goal_reward,
        "rewards": _rewards([(r + transform.shift) * factor for r in episodes.rewards]),
        "terminal_transitions": int(sum(t.sum() for t in episodes.terminations)),
    }
    facts["beyond_the_step_limit"] = int((episodes.lengths > (task.max_steps or np.inf)).sum())
    if task.goal_reward or facts["beyond_the_step_limit"]:
        expected = data_return(task, episodes)
        facts["return_as_in_an_evaluation"] = expected
        facts["score"] = task.score(expected) if task.reference else None
    return facts


def _spread(values: Array) -> dict[str, float]:
    return {"mean": float(values.mean()), "std": float(values.std()), "min": float(values.min()), "max": float(values.max())}


def _quantiles(values: Array) -> dict[str, float]:
    return {str(q): float(v) for q, v in zip(QUANTILES, np.percentile(values, QUANTILES), strict=True)}


def _ranges(rows: Array) -> dict[str, list[float]]:
    """Return minimum, maximum and standard deviation of every entry of (N, d)."""
    return {"min": rows.min(0).tolist(), "max": rows.max(0).tolist(), "std": rows.std(0, dtype=np.float64).tolist()}


def _rewards(rewards: Iterable[Array]) -> dict[str, float]:
    flat = np.concatenate(list(rewards)).astype(np.float64)
    return _spread(flat) | {"share_not_zero": float((flat != 0).mean())}


@plain()
def returns_figure(returns: Array, task: Task, path: Path) -> None:
    """Save a histogram of returns as an image, with an axis of normalised scores where the task has reference returns."""
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axis = figure.subplots()
    axis.hist(returns, bins=30, color="#2e86ab")
    axis.axvline(float(returns.mean()), color="0.3", linewidth=1, label=f"mean {returns.mean():.1f}")
    axis.set_xlabel("return of an episode")
    axis.set_ylabel("episodes")
    axis.spines[["right"]].set_visible(False)
    axis.legend(frameon=False)
    if task.reference is not None and not task.goal_reward:
        axis.secondary_xaxis("top", functions=_to_and_from_scores(*task.reference)).set_xlabel("normalised score")
    figure.suptitle(figure_text(" + ".join(task.datasets)), fontsize=9)
    with replacing(path) as scratch:
        figure.savefig(scratch, dpi=150)


def _to_and_from_scores(low: float, high: float) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    return lambda returns: 100 * (returns - low) / (high - low), lambda scores: low + scores * (high - low) / 100
