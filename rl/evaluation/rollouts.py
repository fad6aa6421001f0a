"""Rollouts: batched actions, a fixed quota of episodes for every policy, environments that step while other policies act."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from egd.errors import UserError
from egd.samplers.watching import Watch, named, watching
from rl.envs.making import Env
from rl.envs.vector import Step, vectors

Array = np.ndarray[Any, Any]
ROUNDING = 1e-4
"""Distance by which an action may leave [-1, 1] without being counted as clipped."""


@dataclass(frozen=True)
class PolicyBatch:
    """Policy at several guidance scales, which act in one batch.

    ``names`` has a name for each scale; ``act(states (n, S), scale_index (n,)) -> (n, actions)``.
    """

    names: Sequence[str]
    act: Callable[[Tensor, Tensor], Tensor]
    watch: Watch = field(default_factory=Watch, compare=False)
    """Metrics of the policy's sampling."""

    def actions(self, states: Tensor, scale_index: Tensor) -> Tensor:
        """Draw actions, and record the metrics of their sampling."""
        with named(", ".join(self.names)), watching() as seen:
            chosen = self.act(states, scale_index)
        self.watch.add(seen)
        return chosen


@dataclass(frozen=True)
class Player:
    """Policies of one agent, and their quota: ``episodes`` in at most ``envs`` environments, started from ``seed`` on.

    Environment i of every policy starts from the same seed, so that policies are compared on the same starts.
    """

    policies: Sequence[PolicyBatch]
    standardise: Callable[[Tensor], Tensor]
    episodes: int
    envs: int
    seed: int


@dataclass(frozen=True)
class SoFar:
    """Progress of rollouts.

    ``steps`` is the number of steps of all environments, ``under_way`` the part of them in unfinished episodes. ``ended`` and
    ``left`` are numbers of episodes; ``left`` includes the unfinished ones. ``means`` has the mean returns, by name, of
    policies that have ended an episode.
    """

    steps: int
    under_way: int
    ended: int
    left: int
    means: Mapping[str, float]


@dataclass(frozen=True)
class Rollouts:
    """Undiscounted returns by policy name (episodes,), and the states (T, S) visited in each policy's first episodes."""

    returns: dict[str, Array]
    paths: dict[str, list[Any]]
    env_steps: int
    clipped: dict[str, int] = field(default_factory=dict)
    """Number of steps in which a policy's action left [-1, 1], for policies with any."""
    sampling: dict[str, dict[str, float]] = field(default_factory=dict)
    """Metrics of sampling by policy, for policies that sample. A policy has the same metrics at
    all guidance scales, which act in one batch."""


def quota(episodes: int, envs: int) -> tuple[int, int]:
    """Return (environments, episodes of each), whose product is ``episodes``: the largest divisor within ``envs``."""
    n = max(d for d in range(1, min(episodes, envs) + 1) if episodes % d == 0)
    return n, episodes // n


def rollouts(
    make_env: Callable[[], Env],
    players: Sequence[Player],
    *,
    workers: int = 0,
    device: torch.device | str = "cpu",
    watch: Callable[[SoFar], None] | None = None,
    paths: int = 0,
) -> list[Rollouts]:
    """Roll out every player's policies, each in a vector of environments of its own, and return the results by player.

    The policies take turns. While the actions of one policy are sampled, the environments of the others step, if there are
    ``workers``. A policy draws its random numbers in the order of its own steps, whatever the workers and other policies.
    """
    each = [[_Play(policy, player, device, paths) for policy in player.policies] for player in players]
    plays = [play for own in each for play in own]
    with vectors(make_env, [len(play.seeds) for play in plays], workers) as envs:
        for i, play in enumerate(plays):
            envs.reset(i, play.seeds)
        playing = dict(enumerate(plays))
        while playing:
            for i, play in list(playing.items()):
                play.record(envs.receive(i))
                if play.active.any():
                    envs.step(i, play.actions())
                else:
                    del playing[i]
            if watch is not None:
                watch(_so_far(plays))
    return [_together(own) for own in each]


class _Play:
    """State of one policy's rollouts, one row per environment: which are active, returns so far, paths of first episodes.

    Every environment plays its own fixed number of episodes: counting the first ones to end would over-count short episodes.
    """

    def __init__(self, policy: PolicyBatch, player: Player, device: torch.device | str, paths: int) -> None:
        n, self.each = quota(player.episodes, player.envs)
        total = n * len(policy.names)
        self.policy, self.standardise, self.device, self.n, self.keep = policy, player.standardise, device, n, paths
        self.seeds = [player.seed + i % n for i in range(total)]
        self.active = np.ones(total, dtype=bool)
        self.resetting = np.ones(total, dtype=bool)  # the first answer is a reset's
        self.running, self.lengths = np.zeros(total), np.zeros(total, dtype=int)
        self.returns: list[list[float]] = [[] for _ in range(total)]
        self.paths: list[Any] = [[] for _ in range(total)]
        self.env_steps = self.ended = 0
        self.clipped: Counter[str] = Counter()

    def actions(self) -> Array:
        """Compute the actions of the active environments, (n names, A), with zeros for the others."""
        for i in np.flatnonzero(self.active & ~self.resetting):
            if i % self.n < self.keep and not self.returns[i]:
                self.paths[i].append(self.observation[i].copy())
        rows = np.flatnonzero(self.active)
        states = torch.as_tensor(self.observation[rows], dtype=torch.float32, device=self.device)
        chosen = (
            self.policy.actions(self.standardise(states), torch.as_tensor(rows // self.n, device=self.device)).cpu().numpy()
        )
        self._check(chosen, rows)
        actions = np.zeros((len(self.active), chosen.shape[1]), dtype=np.float32)
        actions[rows] = chosen
        return actions

    def _check(self, chosen: Array, rows: Array) -> None:
        """Raise UserError for an action that is not finite, and count actions beyond [-1, 1], which environments clip."""
        acting = ~self.resetting[rows]
        names = [self.policy.names[i] for i in rows // self.n]
        lost = np.flatnonzero(acting & ~np.isfinite(chosen).all(1))
        if len(lost):
            first = int(lost[0])
            raise UserError(
                f"the policy '{names[first]}' gave the action {chosen[first].tolist()} in step {self.lengths[rows[first]]} of "
                "an episode: it has diverged, or its guidance is too strong; look at its losses, and try a smaller omega"
            )
        for i in np.flatnonzero(acting & (np.abs(chosen) > 1 + ROUNDING).any(1)):
            self.clipped[names[i]] += 1

    def record(self, step: Step) -> None:
        """Record the environments' results of a step."""
        counted = self.active & ~self.resetting  # a step that resets has no reward and takes no action
        self.observation = step.observation
        self.running += np.where(counted, step.reward, 0.0)
        self.env_steps += int(counted.sum())
        self.lengths += counted
        self.resetting = step.terminated | step.truncated
        ended = np.flatnonzero(counted & self.resetting)
        for i in ended:
            self.returns[i].append(float(self.running[i]))
            self.running[i], self.lengths[i] = 0.0, 0
            self.ended += 1
            self.active[i] = len(self.returns[i]) < self.each

    def rows(self) -> dict[str, slice]:
        """Return the slice of environments of each name."""
        return {name: slice(i * self.n, (i + 1) * self.n) for i, name in enumerate(self.policy.names)}


def _together(plays: Sequence[_Play]) -> Rollouts:
    """Combine the rollouts of one player's policies."""
    each = [(play, name, rows) for play in plays for name, rows in play.rows().items()]
    returns = {name: np.concatenate([np.asarray(r) for r in play.returns[rows]]) for play, name, rows in each}
    paths = {name: play.paths[rows][: play.keep] for play, name, rows in each}
    clipped = sum((play.clipped for play in plays), Counter[str]())
    sampling = {name: seen for play, name, _ in each if (seen := play.policy.watch.metrics())}
    return Rollouts(returns, paths, sum(play.env_steps for play in plays), dict(clipped), sampling)


def _so_far(plays: Sequence[_Play]) -> SoFar:
    """Return the progress of all players together; a policy's mean is over all players with a policy of its name."""
    returns: dict[str, list[float]] = {}
    for play in plays:
        for name, rows in play.rows().items() if play.ended else ():
            returns.setdefault(name, []).extend(r for ended in play.returns[rows] for r in ended)
    ended = sum(play.ended for play in plays)
    return SoFar(
        steps=sum(play.env_steps for play in plays),
        under_way=sum(int(play.lengths.sum()) for play in plays),
        ended=ended,
        left=sum(play.each * len(play.active) for play in plays) - ended,
        means={name: float(np.mean(found)) for name, found in returns.items() if found},
    )
