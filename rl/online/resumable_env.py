"""An environment in which a killed run can go on where it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from egd.errors import UserError
from egd.runs.phases import seed_of
from rl.envs.making import Env

Array = np.ndarray[Any, Any]


class Outcome(NamedTuple):
    """Of one step: ``observation`` (S,) is the state after it, also where the episode ended; ``finished`` the return of an
    episode that ended with it.
    """

    reward: float
    observation: Array
    terminated: bool
    finished: float | None


class ResumableEnv:
    """One environment that is stepped for ever, made at its first use.

    Simulators keep state in many places that cannot be read. What can be kept is how an episode came about: its seed and the
    actions so far; to go on is to take them again.
    """

    def __init__(self, make_env: Callable[[], Env], seed: int) -> None:
        self.make_env, self.seed = make_env, seed
        self.episode = 0
        self.actions: list[Array] = []
        self.earned = 0.0
        self._env: Env | None = None
        self._observation: Array = np.empty(0)

    @property
    def observation(self) -> Array:
        """The state that it is in, (S,). UserError where a continued episode did not come out as it was."""
        if self._env is None:
            self._env = self.make_env()
            self._again()
        return self._observation

    def step(self, action: Array) -> Outcome:
        """Take one (A,) within the bounds of the action space; after the end of an episode the next one begins."""
        _ = self.observation
        assert self._env is not None
        observation, reward, terminated, truncated, _ = self._env.step(action)
        self.actions.append(action)
        self.earned += float(reward)
        finished = self.earned if terminated or truncated else None
        if finished is None:
            self._observation = observation
        else:
            self.episode, self.actions, self.earned = self.episode + 1, [], 0.0
            self._reset()
        return Outcome(float(reward), observation, terminated, finished)

    def _reset(self) -> None:
        assert self._env is not None
        self._observation, _ = self._env.reset(seed=seed_of(self.seed, f"online/{self.episode}"))

    def _again(self) -> None:
        self._reset()
        assert self._env is not None
        for action in self.actions:
            self._observation, _, terminated, truncated, _ = self._env.step(action)
            if terminated or truncated:
                raise UserError(
                    "the episode in which the run was stopped ends earlier when it is taken again: the simulator is another "
                    "one, or does not repeat itself; run again without --resume, in another folder",
                    key="--resume",
                )

    def state(self) -> dict[str, Tensor]:
        """The present episode, and what it has earned."""
        actions = torch.as_tensor(np.array(self.actions, dtype=np.float32)) if self.actions else torch.empty(0)
        return {
            "episode": torch.tensor(self.episode),
            "actions": actions,
            "earned": torch.tensor(self.earned, dtype=torch.float64),
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """The inverse of ``state``; the episode is taken again at the next use."""
        self.episode, self.earned = int(state["episode"]), float(state["earned"])
        self.actions = list(state["actions"].cpu().numpy()) if state["actions"].numel() else []
        self.close()

    def close(self) -> None:
        """Give the simulator back."""
        if self._env is not None:
            self._env.close()
            self._env = None
