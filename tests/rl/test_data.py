"""Transitions from episodes: terminals, truncations, rewards, statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from egd.errors import UserError
from rl.data.describe import describe
from rl.data.episodes import Episodes, data_return, load_episodes, relabel, reward_factor, to_offline_data
from rl.envs.maze2d import goal_xy
from rl.tasks import find_task


def episodes(lengths: list[int], terminal: list[bool], seed: int = 0) -> Episodes:
    rng = np.random.default_rng(seed)
    return Episodes(
        [rng.normal(size=(n + 1, 3)).astype(np.float32) for n in lengths],
        [rng.uniform(-1, 1, size=(n, 2)).astype(np.float32) for n in lengths],
        [rng.normal(size=n).astype(np.float32) for n in lengths],
        [np.arange(n) == n - 1 if end else np.zeros(n, dtype=bool) for n, end in zip(lengths, terminal, strict=True)],
    )


def test_a_truncation_bootstraps_and_a_terminal_does_not() -> None:
    data = to_offline_data(episodes([4, 3], [True, False]), 0.0)
    assert data.transitions.terminal.tolist() == [0, 0, 0, 1, 0, 0, 0]


def test_next_states_never_cross_episodes() -> None:
    raw = episodes([4, 3], [False, False])
    data = to_offline_data(raw, 0.0, standardise=False)
    torch.testing.assert_close(data.transitions.next_state[3], torch.from_numpy(raw.observations[0][4]))
    torch.testing.assert_close(data.transitions.state[4], torch.from_numpy(raw.observations[1][0]))
    torch.testing.assert_close(data.transitions.next_state[:3], data.transitions.state[1:4])


def test_states_are_standardised_and_new_ones_alike() -> None:
    raw = episodes([50, 60], [False, False])
    data = to_offline_data(raw, 0.0)
    assert data.transitions.state.mean(0).abs().max() < 1e-5
    assert (data.transitions.state.std(0) - 1).abs().max() < 0.01
    again = data.standardise(torch.from_numpy(raw.observations[0][:-1]))
    torch.testing.assert_close(again, data.transitions.state[:50])


def test_a_single_transition_has_statistics() -> None:
    data = to_offline_data(episodes([1], [True]), 0.0)
    assert data.transitions.state.tolist() == [[0, 0, 0]] and data.transitions.terminal.tolist() == [1]
    torch.testing.assert_close(data.state_std, torch.full((3,), 1e-3))


@pytest.mark.parametrize("name", ["observations", "actions", "rewards"])
def test_what_is_no_number_is_no_data(name: str) -> None:
    raw = episodes([4, 3], [False, False])
    getattr(raw, name)[1][1] = np.nan
    with pytest.raises(UserError, match=rf"the {name} of transition 5 are not finite"):
        to_offline_data(raw, 0.0)


def test_rewards_are_shifted_then_scaled() -> None:
    raw = episodes([5, 9], [False, False])
    factor = 1000 / (raw.returns.max() - raw.returns.min())
    assert reward_factor("range", raw.returns) == pytest.approx(factor)
    data = to_offline_data(raw, 0.0, scale="range", shift=-1.0)
    torch.testing.assert_close(data.transitions.reward, torch.from_numpy((np.concatenate(raw.rewards) - 1) * factor).float())


def test_maze_rewards_are_those_of_the_one_goal() -> None:
    task = find_task("maze2d-umaze")
    goal = goal_xy("umaze")
    walk = (goal + np.array([[3.0, 0], [0.51, 0], [0.49, 0], [0, 0.3]])).astype(np.float32)
    raw = Episodes(
        [np.c_[walk, 0 * walk]], [np.zeros((3, 2), np.float32)], [np.ones(3, np.float32)], [np.array([0, 0, 1], bool)]
    )
    labelled = relabel(task, raw)
    assert labelled.rewards[0].tolist() == [0, 1, 1]
    assert not labelled.terminations[0].any()
    assert data_return(task, labelled) == pytest.approx(200)


def test_what_has_no_position_is_no_walk() -> None:
    raw = Episodes([np.zeros((2, 1))], [np.zeros((1, 2))], [np.zeros(1)], [np.zeros(1, bool)])
    with pytest.raises(UserError, match="have 1 entries, but those of a maze begin with the position"):
        relabel(find_task("maze2d-umaze"), raw)


def test_an_antmaze_walk_ends_at_the_goal() -> None:
    rewards, ends = np.array([0, 1, 1, 0, 1], np.float32), np.array([0, 1, 1, 0, 1], bool)
    missed = np.zeros(5, np.float32), np.zeros(5, bool)
    raw = Episodes([np.zeros((6, 2))] * 2, [np.zeros((5, 8))] * 2, [rewards, missed[0]], [ends, missed[1]])
    assert data_return(find_task("antmaze-umaze"), raw) == 0.5


def test_a_demonstration_counts_up_to_the_steps_of_an_evaluation() -> None:
    task = find_task("door-human")  # 200 steps
    long, short = np.ones(300, np.float32), np.full(100, 2.0, np.float32)
    raw = Episodes(
        [np.zeros((len(r) + 1, 39)) for r in (long, short)],
        [np.zeros((len(r), 28)) for r in (long, short)],
        [long, short],
        [np.zeros(len(r), bool) for r in (long, short)],
    )
    assert data_return(task, raw) == 200
    facts = describe(task, raw)["trained_on"]
    assert (facts["beyond_the_step_limit"], facts["score"]) == (1, task.score(200))


def test_sampling_is_reproducible_and_within_the_data() -> None:
    data = to_offline_data(episodes([40], [False]), 0.0)
    one, two = (data.sample(64, torch.Generator().manual_seed(5)) for _ in range(2))
    torch.testing.assert_close(one.action, two.action)
    rows = {tuple(a) for a in data.transitions.action.tolist()}
    assert all(tuple(a) in rows for a in one.action.tolist())


def test_a_missing_dataset_names_its_remedies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"(?s)mujoco/hopper/medium-v0.*minari download.*egd data import"):
        load_episodes(["mujoco/hopper/medium-v0"], download=False)
    with pytest.raises(UserError, match=r"data.download is off") as antmaze:  # D4RL's files are of another ant
        load_episodes(["D4RL/antmaze/umaze-v1"], download=False)
    assert "egd data import" not in str(antmaze.value)
    with pytest.raises(UserError, match=r"egd data generate D4RL/pointmaze/umaze-dense-v2.*--maze umaze --dense"):
        load_episodes(["D4RL/pointmaze/umaze-dense-v2"], download=False)
    with pytest.raises(UserError) as replay:
        load_episodes(["mujoco/hopper/medium-replay-v0"], download=False)
    assert "minari download" not in str(replay.value)  # the hub has none


def test_the_hub_is_asked_once_for_what_it_does_not_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    asked: list[str] = []

    def refuse(dataset_id: str) -> None:
        asked.append(dataset_id)
        raise OSError("no network")

    monkeypatch.setattr("minari.download_dataset", refuse)
    for _ in range(2):
        with pytest.raises(UserError, match=r"could not be downloaded: no network"):
            load_episodes(["some/where/nothing-v3"])
    assert asked == ["some/where/nothing-v3"]


def test_data_commands(egd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    made = egd("data", "generate", "egd/maze2d/umaze-v7", "--steps", "400")
    assert made.exit_code == 0, made.output
    assert "egd/maze2d/umaze-v7" in egd("data", "list").output
    described = egd("data", "describe", "egd/maze2d/umaze-v7")
    assert described.exit_code == 0
    assert "400" in described.output
    again = egd("data", "generate", "egd/maze2d/umaze-v7", "--steps", "400")
    assert again.exit_code == 2
    assert "already exists" in again.output
    missing = egd("data", "import", tmp_path / "none.hdf5", "--id", "mine/file-v0")
    assert missing.exit_code == 2
    assert "none.hdf5" in missing.output
