"""Rollouts: all arms in one vector of environments, batched actions, a fixed quota of episodes each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor

from rl.envs import Env

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Arm:
    """Several policies that act in one batch: ``names`` (A of them), ``act(states (n, S), which (n,) in [0, A)) -> (n,
    actions)``.
    """

    names: Sequence[str]
    act: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Rollouts:
    """Undiscounted returns by arm name (episodes,), the paths (T + 1, S) of each arm's first episodes, and the time it took."""

    returns: dict[str, Array]
    paths: dict[str, list[Array]]
    env_steps: int


def quota(episodes: int, envs: int) -> tuple[int, int]:
    """(environments, episodes each), the product being ``episodes``: the largest divisor that fits."""
    n = max(d for d in range(1, min(episodes, envs) + 1) if episodes % d == 0)
    return n, episodes // n


def rollout(
    make_env: Callable[[], Env],
    arms: Sequence[Arm],
    standardise: Callable[[Tensor], Tensor],
    *,
    episodes: int,
    envs: int,
    seed: int,
    device: torch.device | str = "cpu",
    advance: Callable[[int, str], None] | None = None,
    paths: int = 0,
) -> Rollouts:
    """``episodes`` of every arm. Environment i of each arm starts from the same seed, so arms are compared on the same starts.

    Every environment plays its own fixed number of episodes: counting whichever ends first would over-count short ones.
    """
    n, each = quota(episodes, envs)
    names = [name for arm in arms for name in arm.names]
    vector = SyncVectorEnv([make_env] * (n * len(names)), autoreset_mode=AutoresetMode.NEXT_STEP)
    try:
        play = _Play(vector, n, each, len(names), paths)
        observation, _ = vector.reset(seed=[seed + i for _ in names for i in range(n)])
        while play.active.any():
            actions = _act(arms, observation, play.active, n, standardise, device, vector.action_space.shape)
            observation, finished = play.step(observation, actions)
            if finished and advance is not None:
                done = {name: play.returns[i * n : (i + 1) * n] for i, name in enumerate(names)}
                advance(finished, _so_far(done))
    finally:
        vector.close()
    split = {name: slice(i * n, (i + 1) * n) for i, name in enumerate(names)}
    returns = {name: np.concatenate([np.asarray(r) for r in play.returns[s]]) for name, s in split.items()}
    return Rollouts(returns, {name: play.paths[s][:paths] for name, s in split.items()}, play.env_steps)


def _act(
    arms: Sequence[Arm],
    observation: Array,
    active: Array,
    n: int,
    standardise: Callable[[Tensor], Tensor],
    device: torch.device | str,
    shape: tuple[int, ...] | None,
) -> Array:
    """Actions of the running environments; zeros for those that are done."""
    assert shape is not None  # a vector of Box action spaces
    actions = np.zeros(shape, dtype=np.float32)
    first = 0
    for arm in arms:
        last = first + n * len(arm.names)
        rows = np.flatnonzero(active[first:last])
        if len(rows):
            states = standardise(torch.as_tensor(observation[first:last][rows], dtype=torch.float32, device=device))
            which = torch.as_tensor(rows // n, device=device)
            actions[first + rows] = arm.act(states, which).cpu().numpy()
        first = last
    return actions


class _Play:
    """The books: who still plays, returns so far, paths of first episodes."""

    def __init__(self, vector: SyncVectorEnv, n: int, each: int, names: int, paths: int) -> None:
        total = n * names
        self.vector, self.each, self.keep = vector, each, paths
        self.active = np.ones(total, dtype=bool)
        self.resetting = np.zeros(total, dtype=bool)
        self.running = np.zeros(total)
        self.returns: list[list[float]] = [[] for _ in range(total)]
        self.paths: list[Any] = [[] for _ in range(total)]
        self.first = np.array([i % n < paths for i in range(total)])
        self.env_steps = 0
        low, high = vector.single_action_space.low, vector.single_action_space.high  # type: ignore[attr-defined]
        self.low, self.high = low, high

    def step(self, observation: Array, actions: Array) -> tuple[Array, int]:
        """One step of every environment; returns the new observations and how many counted episodes ended."""
        for i in np.flatnonzero(self.first & self.active & ~self.resetting):
            if not self.returns[i]:
                self.paths[i].append(observation[i].copy())
        counted = self.active & ~self.resetting  # a step that resets has no reward and takes no action
        observation, reward, terminated, truncated, _ = self.vector.step(actions.clip(self.low, self.high))
        self.running += np.where(counted, reward, 0.0)
        self.env_steps += int(counted.sum())
        ended = counted & (terminated | truncated)
        for i in np.flatnonzero(ended):
            self.returns[i].append(float(self.running[i]))
            self.running[i] = 0.0
            if len(self.returns[i]) == self.each:
                self.active[i] = False
        self.resetting = np.asarray(terminated | truncated)
        return observation, int(ended.sum())


def _so_far(returns: dict[str, list[list[float]]]) -> str:
    """Mean returns of the first two arms, for the progress bar."""
    means = {name: np.mean([r for rs in lists for r in rs]) for name, lists in returns.items() if any(lists)}
    return ", ".join(f"{name.partition('@')[0]} {mean:.0f}" for name, mean in list(means.items())[:2])
