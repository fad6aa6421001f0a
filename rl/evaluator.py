"""All policies of a run, rolled out at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from egd.phases import seed_of
from rl.agents.aepo import AEPO
from rl.config import GuidanceConfig, RunConfig
from rl.envs import env_factory
from rl.evaluation import Arm, Rollouts, rollout
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
        config, agent = self.agent.config, self.agent

        def own(name: str) -> torch.Generator:
            """An arm's random numbers do not depend on which others are there."""
            return torch.Generator(agent.device).manual_seed(seed_of(seed, f"evaluation/{name}"))

        arms = [Arm(["behaviour"], agent.policy("behaviour", [], own("behaviour")))]
        for name, scales in omegas.items():
            arms.append(Arm([f"{name}@{omega:g}" for omega in scales], agent.policy(name, scales, own(name))))
        return rollout(
            env_factory(self.task, self.task.observation_keys),
            arms,
            agent.data.standardise,
            episodes=episodes,
            envs=config.evaluation.envs,
            seed=10_000 + 1000 * seed,
            device=agent.device,
            advance=advance,
            paths=paths,
        )


def scales(config: RunConfig, only: Sequence[float] | None = None) -> dict[str, list[float]]:
    """The guidance scales of every arm: its own and its further ones, or ``only``. Without 0: that is the behaviour policy,
    unless the arm also selects among candidates.
    """

    def wanted(g: GuidanceConfig) -> list[float]:
        omegas = [g.omega, *g.omegas] if only is None else only
        return list(dict.fromkeys(omega for omega in omegas if omega > 0 or g.candidates > 1))

    return {name: found for name, g in config.arms.items() if (found := wanted(g))}
