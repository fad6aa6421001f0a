"""``egd data describe``: the facts against what the data is made of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from egd.cli.main import app
from rl.data.describe import describe
from rl.data.episodes import Episodes, reward_factor
from rl.envs.maze2d import goal_xy
from rl.tasks import find_task

RETURNS = (10.0, 20.0, 30.0, 60.0)


def hops() -> Episodes:
    """Four episodes of 10 steps, the first of which ends in a terminal."""
    observations = [np.linspace(-2, i, 33, dtype=np.float32).reshape(11, 3) for i in range(4)]
    actions = [np.full((10, 2), 0.1 * i, np.float32) for i in range(4)]
    actions[3][:5] = -1
    rewards = [np.full(10, r / 10, np.float32) for r in RETURNS]
    return Episodes(observations, actions, rewards, [np.arange(10) == (9 if i == 0 else -1) for i in range(4)])


def test_facts_are_those_of_the_data() -> None:
    task = find_task("hopper-medium")
    facts = describe(task, hops())
    assert (facts["episodes"], facts["transitions"]) == (4, 40)
    assert facts["ended_by"] == {"terminal": 1, "truncation": 3}
    assert facts["returns"]["mean"] == pytest.approx(30) and facts["returns"]["max"] == pytest.approx(60)
    assert facts["returns"]["quantiles"]["50"] == pytest.approx(25) and facts["returns"]["quantiles"]["0"] == pytest.approx(10)
    assert facts["scores"]["mean"] == pytest.approx(task.score(30))
    assert facts["scores"]["quantiles"]["50"] == pytest.approx(task.score(25))
    assert facts["states"]["entries"] == 3 and min(facts["states"]["min"]) == -2 and max(facts["states"]["max"]) == 3
    assert facts["actions"]["min"] == [-1, -1] and facts["actions"]["max"] == pytest.approx([0.3, 0.3])
    assert facts["actions"]["beyond_0.99"] == pytest.approx(5 / 40)
    assert facts["rewards"]["min"] == 1 and facts["rewards"]["max"] == 6
    assert facts["environment_differs"].startswith("Hopper-v5, not Hopper-v2")


def test_rewards_are_transformed_as_in_the_familys_recipe() -> None:
    trained = describe(find_task("hopper-medium"), hops())["trained_on"]
    assert trained["factor"] == pytest.approx(1000 / 50) == pytest.approx(reward_factor("range", np.array(RETURNS)))
    assert trained["rewards"]["max"] == pytest.approx(6 * 20) and trained["rewards"]["min"] == pytest.approx(20)
    assert not trained["relabelled_for_the_goal"] and trained["terminal_transitions"] == 1
    other = describe(replace(find_task("mine/data-v0"), reference=None), hops())
    assert other["trained_on"]["rewards"]["max"] == 6 and "scores" not in other


@pytest.mark.parametrize(("name", "shift", "terminals"), [("maze2d-umaze", 0, 0), ("antmaze-umaze", -1, 2)])
def test_mazes_are_described_as_relabelled(name: str, shift: float, terminals: int) -> None:
    task = find_task(name)
    goal = goal_xy("umaze") if task.family == "maze2d" else np.array([-4.0, -4.0])  # row 3, column 1 of cells of 4 m
    walk = np.zeros((5, 4), np.float32)
    walk[:, :2] = goal + np.array([[3, 0], [0.6, 0], [0.4, 0], [0, 0.4], [2, 0]])
    raw = Episodes([walk], [np.zeros((4, 2), np.float32)], [np.full(4, 7, np.float32)], [np.zeros(4, bool)])
    facts = describe(task, raw)
    assert facts["rewards"]["mean"] == 7 and "scores" not in facts
    trained = facts["trained_on"]
    assert trained["relabelled_for_the_goal"] and trained["terminal_transitions"] == terminals
    assert trained["rewards"]["mean"] == 0.5 + shift
    expected = 1 if task.family == "antmaze" else 0.5 * (task.max_steps or 0)  # the walk that reaches the goal ends there
    assert trained["score"] == pytest.approx(task.score(expected))


@pytest.mark.pictures
def test_json_and_figure_are_written(egd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    assert egd("data", "generate", "egd/maze2d/umaze-v7", "--steps", "400").exit_code == 0
    result = egd("data", "describe", "egd/maze2d/umaze-v7", "--json", tmp_path / "a.json", "--figure", tmp_path / "a.png")
    assert result.exit_code == 0, result.output
    facts = json.loads((tmp_path / "a.json").read_text())
    assert facts["transitions"] == 400 and facts["datasets"] == ["egd/maze2d/umaze-v7"]
    assert facts["ended_by"]["terminal"] == 0 and facts["trained_on"]["rewards"]["mean"] == pytest.approx(
        facts["rewards"]["mean"]
    )
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "█" in result.output and "return at 5, 25, 50, 75, 95 %" in result.output
    plain = CliRunner(charset="cp1252").invoke(app, ["data", "describe", "egd/maze2d/umaze-v7"])
    assert "###" in plain.stdout_bytes.decode("cp1252") and plain.exit_code == 0, plain.output
    for option, file in (("--json", tmp_path / "a.png" / "a.json"), ("--figure", tmp_path / "a.nonsense")):
        failed = egd("data", "describe", "egd/maze2d/umaze-v7", option, file)
        assert failed.exit_code == 2 and "cannot write" in failed.output
