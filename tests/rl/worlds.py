"""Environments that datasets of the tests name, each unusual in its own way."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict


def box(*shape: int) -> Box:
    return Box(-np.inf, np.inf, shape, np.float32)


class World(gym.Env[Any, Any]):
    """Its entries say where they stand; the reward is the action's. ``spoilt`` is what of the third step is NaN."""

    observation_space: Any = Dict(OrderedDict(zebra=box(1), apple=Dict(OrderedDict(y=box(2, 2), x=box(1))), moon=box(1)))
    action_space = Box(-1, 1, (1,), np.float32)

    def __init__(self, spoilt: str = "") -> None:
        self.spoilt = spoilt

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self.observation(), {}

    def observation(self) -> Any:
        moon = np.nan if self.spoilt == "observation" and self.steps == 3 else 7.0
        entries = {"zebra": 9.0, "apple": {"y": np.arange(4.0).reshape(2, 2), "x": 5.0}, "moon": moon}
        return self._typed(entries, self.observation_space)

    def _typed(self, entries: Any, space: Any) -> Any:
        if isinstance(space, Dict):
            return {key: self._typed(entries[key], inner) for key, inner in space.spaces.items()}
        return np.reshape(np.asarray(entries, np.float32), space.shape)

    def step(self, action: Any) -> Any:
        self.steps += 1
        reward = np.nan if self.spoilt == "reward" and self.steps == 3 else float(action[0])
        return self.observation(), reward, False, False, {}


class Opaque(gym.Wrapper[Any, Any, Any, Any]):
    """Does not say how it was made."""
