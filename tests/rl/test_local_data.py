"""The real recipes on whatever of the benchmark's datasets is in the local Minari store; skipped where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from egd.errors import UserError
from rl.data.episodes import load_episodes
from rl.data.stored import is_local
from rl.tasks import find_task

RECIPES = Path(__file__).parents[2] / "recipes"
TASKS = [
    pytest.param("aepo_adroit", "door-human", marks=pytest.mark.slow),
    ("aepo_gym_mujoco", "hopper-medium-expert"),
    pytest.param("aepo_pointmaze", "maze2d-umaze", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("recipe", "task"), TASKS)
def test_a_recipe_runs_on_local_data(egd: Any, tmp_path: Path, recipe: str, task: str) -> None:
    found = find_task(task)
    if not all(is_local(d) for d in found.datasets):
        pytest.skip(f"{' and '.join(found.datasets)} not in the local Minari store")
    result = egd("run", RECIPES / f"{recipe}.yaml", "--task", task, "--budget", "smoke", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / task / "seed-0" / "summary.json").read_text())
    assert summary["normalised"]
    if not found.goal_reward:
        returns = [r[: found.max_steps].sum() for r in load_episodes(found.datasets).rewards]  # as far as an evaluation goes
        low, high = found.reference or (0.0, 1.0)
        assert summary["dataset_score"] == pytest.approx(100 * (np.mean(returns) - low) / (high - low), rel=1e-5)
    assert all(np.isfinite(p["mean"]) for p in summary["policies"].values())
    assert {"behaviour", "aepo_rescaled@1", "aepo_plain@1", "dps@1", "best_of_16@0"} <= summary["policies"].keys()


def test_datasets_of_different_environments_are_not_one() -> None:
    datasets = ["D4RL/door/human-v2", "mujoco/hopper/medium-v0"]
    if not all(is_local(d) for d in datasets):
        pytest.skip("not in the local Minari store")
    with pytest.raises(UserError, match=r"hopper/medium-v0 has 11 state and 3 action entries.*door.*39 and 28"):
        load_episodes(datasets)
