"""Environments that worker processes can import, without waiting for torch."""

from __future__ import annotations

import os
from typing import Any

import gymnasium as gym
import numpy as np

from egd.errors import UserError


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


class Raising(Countdown):
    """Cannot take a step."""

    def step(self, action: Any) -> Any:
        raise ArithmeticError("the simulation diverged")


class Dying(Countdown):
    """Takes its process with it."""

    def step(self, action: Any) -> Any:
        os._exit(3)


def unmakeable() -> Any:
    raise UserError("there is no such simulator")
