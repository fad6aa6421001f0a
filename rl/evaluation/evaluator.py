"""Rollouts of all policies of a run, or of several runs of a task, at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from egd.errors import UserError, nearest
from egd.runs.labels import label
from egd.runs.phase import seed_of
from egd.runs.progress import Reporter
from rl.agents.base import Agent
from rl.envs.making import env_factory
from rl.evaluation.rollouts import Player, PolicyBatch, Rollouts, SoFar, quota, rollouts
from rl.tasks import Task


@dataclass(frozen=True)
class Evaluator:
    """Evaluator of an agent's policies at their guidance scales, all rolled out at once."""

    agent: Agent
    task: Task

    def run(
        self,
        omegas: Mapping[str, Sequence[float]],
        *,
        episodes: int,
        seed: int,
        watch: Callable[[SoFar], None] | None = None,
        paths: int = 0,
    ) -> Rollouts:
        """Roll out the policies and return the results by policy, ``name`` or ``name@scale``. The seed is not the
        training's.
        """
        (result,) = evaluate_together(
            [self.agent], self.task, [omegas], episodes=episodes, seeds=[seed], watch=watch, paths=paths
        )
        return result


def evaluate_together(
    agents: Sequence[Agent],
    task: Task,
    omegas: Sequence[Mapping[str, Sequence[float]]],
    *,
    episodes: int,
    seeds: Sequence[int],
    watch: Callable[[SoFar], None] | None = None,
    paths: int = 0,
) -> list[Rollouts]:
    """Return what an ``Evaluator`` of each agent returns at its own scales and seed, from one pass over one task's
    environments.

    The agents share a device. The number of workers is that of the first agent's config.
    """
    players = [player(*each, episodes) for each in zip(agents, omegas, seeds, strict=True)]
    return rollouts(
        env_factory(task, task.observation_keys),
        players,
        workers=agents[0].config.evaluation.workers,
        device=agents[0].device,
        watch=watch,
        paths=paths,
    )


def player(agent: Agent, omegas: Mapping[str, Sequence[float]], seed: int, episodes: int) -> Player:
    """Return the agent's policies at these scales, each with random numbers of its own."""

    def own(name: str) -> torch.Generator:
        """Return the random numbers of a policy, which do not depend on the other policies."""
        return torch.Generator(agent.device).manual_seed(seed_of(seed, f"evaluation/{name}"))

    policies = [PolicyBatch(names(name, scales), agent.policy(name, scales, own(name))) for name, scales in omegas.items()]
    return Player(policies, agent.data.standardise, episodes, agent.config.evaluation.envs, 10_000 + 1000 * seed)


def names(name: str, scales: Sequence[float]) -> list[str]:
    """Return ``name@scale`` for every scale, or the name itself where there is none."""
    return [f"{name}@{label(scale)}" for scale in scales] or [name]


def chosen(agent: Agent, policies: Sequence[str]) -> dict[str, list[float]]:
    """Return the scales of policies given as ``name@scale``, or as ``name`` for the policy's own scale, if it has one.

    Raises UserError for a policy that the agent does not have.
    """
    scales: dict[str, list[float]] = {}
    own = agent.policies()
    for policy in policies:
        name, at, scale = policy.partition("@")
        if name not in own:
            raise UserError(f"the run has no policy '{name}'; {nearest(name, own)}", key="--policy")
        if own[name] is None and at:
            raise UserError(f"'{name}' has no guidance scale; leave '@{scale}' out", key="--policy")
        found = scales.setdefault(name, [])
        if own[name] is not None:
            found.append(_scale(policy, scale) if at else float(own[name] or 0))
    return {name: list(dict.fromkeys(found)) for name, found in scales.items()}


def _scale(policy: str, text: str) -> float:
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not 0 <= scale < math.inf:
        raise UserError(f"'{policy}': a guidance scale is a number that is not negative, as in guided@1.5", key="--policy")
    return scale


@contextmanager
def watched(reporter: Reporter, title: str, agents: Sequence[Agent], task: Task) -> Iterator[Callable[[SoFar], None]]:
    """Yield a callback that shows the progress of an evaluation: a bar of environment steps, with scores in the units of the
    results table, the headline's first.

    The bar counts steps because all episodes may end at once. Its total is unknown where episodes have no step limit.
    """
    head = agents[0].headline

    def note(so_far: SoFar) -> str:
        first = {head: so_far.means[head]} if head in so_far.means else {}
        scores = [f"{name} {task.score(mean):.1f}" for name, mean in {**first, **so_far.means}.items()]
        return ", ".join([*scores[:2], f"{so_far.ended} of {so_far.ended + so_far.left} episodes"])

    with reporter.bar(title, None) as bar:

        def watch(so_far: SoFar) -> None:
            rest = None if task.max_steps is None else so_far.left * task.max_steps - so_far.under_way
            bar.at(so_far.steps, note(so_far), total=None if rest is None else so_far.steps + rest)

        yield watch


def environments(agent: Agent) -> int:
    """Return the number of environments that an evaluation of the agent steps at a time."""
    n, _ = quota(agent.config.evaluation.episodes, agent.config.evaluation.envs)
    return n * sum(max(1, len(scales)) for scales in agent.scales().values())
