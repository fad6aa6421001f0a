"""All policies of a run, or of several runs of a task, rolled out at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from egd.phases import seed_of
from rl.agents.aepo import AEPO
from rl.config import GuidanceConfig, RunConfig
from rl.envs import env_factory
from rl.evaluation import Arm, Player, Rollouts, quota, rollouts
from rl.tasks import Task


@dataclass(frozen=True)
class Evaluator:
    """Rolls out the behaviour policy and every arm at its guidance scales, all at once."""

    agent: AEPO
    task: Task

    def run(
        self,
        omegas: Mapping[str, Sequence[float]],
        *,
        episodes: int,
        seed: int,
        advance: Callable[[int, str], None] | None = None,
        paths: int = 0,
    ) -> Rollouts:
        """Returns by arm: 'behaviour' and '<arm>@<omega>'. The seed is not the training's."""
        (result,) = evaluate_together(
            [self.agent], self.task, [omegas], episodes=episodes, seeds=[seed], advance=advance, paths=paths
        )
        return result


def evaluate_together(
    agents: Sequence[AEPO],
    task: Task,
    omegas: Sequence[Mapping[str, Sequence[float]]],
    *,
    episodes: int,
    seeds: Sequence[int],
    advance: Callable[[int, str], None] | None = None,
    paths: int = 0,
) -> list[Rollouts]:
    """What an ``Evaluator`` of each agent finds at its own scales and seed, in one pass over one task's environments.

    The agents share a device; the workers are those of the first.
    """
    players = [player(*each, episodes) for each in zip(agents, omegas, seeds, strict=True)]
    return rollouts(
        env_factory(task, task.observation_keys),
        players,
        workers=agents[0].config.evaluation.workers,
        device=agents[0].device,
        advance=advance,
        paths=paths,
    )


def player(agent: AEPO, omegas: Mapping[str, Sequence[float]], seed: int, episodes: int) -> Player:
    """The agent's behaviour policy and its arms at these scales, with random numbers of their own."""

    def own(name: str) -> torch.Generator:
        """An arm's random numbers do not depend on which others are there."""
        return torch.Generator(agent.device).manual_seed(seed_of(seed, f"evaluation/{name}"))

    arms = [Arm(["behaviour"], agent.policy("behaviour", [], own("behaviour")))]
    for name, scales in omegas.items():
        arms.append(Arm([f"{name}@{omega:g}" for omega in scales], agent.policy(name, scales, own(name))))
    return Player(arms, agent.data.standardise, episodes, agent.config.evaluation.envs, 10_000 + 1000 * seed)


def scales(config: RunConfig, only: Sequence[float] | None = None) -> dict[str, list[float]]:
    """The guidance scales of every arm: its own and its further ones, or ``only``. Without 0: that is the behaviour policy,
    unless the arm also selects among candidates.
    """

    def wanted(g: GuidanceConfig) -> list[float]:
        omegas = [g.omega, *g.omegas] if only is None else only
        return list(dict.fromkeys(omega for omega in omegas if omega > 0 or g.candidates > 1))

    return {name: found for name, g in config.arms.items() if (found := wanted(g))}


def environments(config: RunConfig) -> int:
    """How many environments an evaluation of a run has at a time."""
    n, _ = quota(config.evaluation.episodes, config.evaluation.envs)
    return n * (1 + sum(map(len, scales(config).values())))
