"""Rollouts: fixed quotas, common starts, exact returns."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from rl.evaluation import Arm, quota, rollout
from rl.tasks import TASKS, find_task


class Countdown(gym.Env[Any, Any]):
    """Every episode lasts as long as its (seeded) first observation says; the reward is the first action entry."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.left = self.length = int(self.np_random.integers(1, 30))
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        self.left -= 1
        done = self.left == 0
        return self._observation(), float(action[0]), done and self.length % 2 == 0, done and self.length % 2 == 1, {}

    def _observation(self) -> Any:
        return np.array([self.length, self.left], dtype=np.float32)


def constant(value: float) -> Any:
    return lambda states, which: torch.full((len(states), 1), value)


def test_every_environment_plays_its_quota_and_returns_are_exact() -> None:
    arms = [Arm(["ones"], constant(1.0)), Arm(["halves"], constant(0.5))]
    result = rollout(Countdown, arms, lambda x: x, episodes=12, envs=4, seed=3)
    assert {name: len(r) for name, r in result.returns.items()} == {"ones": 12, "halves": 12}
    lengths = []
    for i in range(4):  # the same environments by hand: seeded once, three episodes each
        env = Countdown()
        env.reset(seed=3 + i)
        lengths.append(env.length)
        for _ in range(2):
            env.reset()
            lengths.append(env.length)
    np.testing.assert_allclose(result.returns["ones"], lengths)
    np.testing.assert_allclose(result.returns["halves"], 0.5 * np.array(lengths))
    assert result.env_steps == 2 * sum(lengths)


def test_arms_in_one_batch_act_by_their_own_number() -> None:
    def act(states: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        return (which.float() / 4)[:, None]

    result = rollout(Countdown, [Arm(["a", "b", "c"], act)], lambda x: x, episodes=4, envs=4, seed=0)
    np.testing.assert_allclose(result.returns["b"] * 2, result.returns["c"])
    assert (result.returns["a"] == 0).all()


def test_actions_are_kept_within_the_action_space() -> None:
    result = rollout(Countdown, [Arm(["big"], constant(7.0))], lambda x: x, episodes=3, envs=3, seed=0, paths=2)
    assert all(r == len(path) for r, path in zip(result.returns["big"], result.paths["big"], strict=False))


@pytest.mark.parametrize(
    ("episodes", "envs", "want"), [(30, 30, (30, 1)), (30, 20, (15, 2)), (7, 5, (1, 7)), (20, 64, (20, 1))]
)
def test_quota_multiplies_to_the_episodes(episodes: int, envs: int, want: tuple[int, int]) -> None:
    assert quota(episodes, envs) == want


def test_reference_scores_are_d4rls() -> None:
    assert find_task("hopper-medium-v2").score(3234.3) == pytest.approx(100)
    assert find_task("D4RL/pen/cloned-v2").score(96.262799) == pytest.approx(0)
    assert find_task("mujoco/hopper/mixed-v0").score(-20.272305) == pytest.approx(0)
    assert find_task("egd/maze2d/umaze-v3").score(42.0) == pytest.approx(42)
    assert len([t for t in TASKS.values() if t.family == "adroit"]) == 12
    assert find_task("D4RL/door/human-v2") is TASKS["door-human"]
