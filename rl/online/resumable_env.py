"""Environment whose episode can be resumed after a run was killed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from egd.errors import UserError
from egd.runs.phase import seed_of
from rl.envs.making import Env

Array = np.ndarray[Any, Any]


class Outcome(NamedTuple):
    """Outcome of one step.

    ``observation`` (S,) is the state after the step, also where the episode ended; ``finished`` is the return of an episode
    that ended with it.
    """

    reward: float
    observation: Array
    terminated: bool
    finished: float | None


class ResumableEnv:
    """Environment that is stepped for ever and made at its first use.

    A simulator's state cannot be read completely. A checkpoint therefore stores the episode's seed and its actions so far, and
    resuming replays them.
    """

    def __init__(self, make_env: Callable[[], Env], seed: int) -> None:
        self.make_env, self.seed = make_env, seed
        self.episode = 0
        self.actions: list[Array] = []
        self.episode_return = 0.0
        self._env: Env | None = None
        self._observation: Array = np.empty(0)

    @property
    def observation(self) -> Array:
        """Present state (S,). Raises UserError where the replay of a resumed episode differs from the original."""
        if self._env is None:
            self._env = self.make_env()
            self._replay()
        return self._observation

    def step(self, action: Array) -> Outcome:
        """Take an action (A,) within the bounds of the action space; after the end of an episode the next one begins."""
        _ = self.observation
        assert self._env is not None
        observation, reward, terminated, truncated, _ = self._env.step(action)
        self.actions.append(action)
        self.episode_return += float(reward)
        finished = self.episode_return if terminated or truncated else None
        if finished is None:
            self._observation = observation
        else:
            self.episode, self.actions, self.episode_return = self.episode + 1, [], 0.0
            self._reset()
        return Outcome(float(reward), observation, terminated, finished)

    def _reset(self) -> None:
        assert self._env is not None
        self._observation, _ = self._env.reset(seed=seed_of(self.seed, f"online/{self.episode}"))

    def _replay(self) -> None:
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
        """Return the present episode's number, actions and return so far."""
        actions = torch.as_tensor(np.array(self.actions, dtype=np.float32)) if self.actions else torch.empty(0)
        return {
            "episode": torch.tensor(self.episode),
            "actions": actions,
            "return": torch.tensor(self.episode_return, dtype=torch.float64),
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore the tensors returned by ``state``; the episode is replayed at the next use."""
        self.episode, self.episode_return = int(state["episode"]), float(state["return"])
        self.actions = list(state["actions"].cpu().numpy()) if state["actions"].numel() else []
        self.close()

    def close(self) -> None:
        """Close the simulator."""
        if self._env is not None:
            self._env.close()
            self._env = None
