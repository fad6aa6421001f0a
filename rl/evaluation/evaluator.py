"""All policies of a run, or of several runs of a task, rolled out at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from egd.errors import UserError, nearest
from egd.runs.labels import label
from egd.runs.phases import seed_of
from egd.runs.progress import Reporter
from rl.agents.base import Agent
from rl.envs.making import env_factory
from rl.evaluation.rollouts import Arm, Player, Rollouts, SoFar, quota, rollouts
from rl.tasks import Task


@dataclass(frozen=True)
class Evaluator:
    """Rolls out policies of an agent at their guidance scales, all at once."""

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
        """Returns by policy, ``name`` or ``name@scale``. The seed is not the training's."""
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
    """What an ``Evaluator`` of each agent finds at its own scales and seed, in one pass over one task's environments.

    The agents share a device; the workers are those of the first.
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
    """The agent's policies at these scales, with random numbers of their own."""

    def own(name: str) -> torch.Generator:
        """An arm's random numbers do not depend on which others are there."""
        return torch.Generator(agent.device).manual_seed(seed_of(seed, f"evaluation/{name}"))

    arms = [Arm(names(name, scales), agent.policy(name, scales, own(name))) for name, scales in omegas.items()]
    return Player(arms, agent.data.standardise, episodes, agent.config.evaluation.envs, 10_000 + 1000 * seed)


def names(name: str, scales: Sequence[float]) -> list[str]:
    """``name@scale`` for every scale; the name itself where there is none."""
    return [f"{name}@{label(scale)}" for scale in scales] or [name]


def chosen(agent: Agent, policies: Sequence[str]) -> dict[str, list[float]]:
    """The scales of policies given as ``name@scale``, or as ``name``: at its own, where it has one. UserError for one that the
    agent does not have.
    """
    scales: dict[str, list[float]] = {}
    for policy in policies:
        name, at, scale = policy.partition("@")
        arms = agent.policies()
        if name not in arms:
            raise UserError(f"the run has no policy '{name}'; {nearest(name, arms)}", key="--policy")
        if arms[name] is None and at:
            raise UserError(f"'{name}' has no guidance scale; leave '@{scale}' out", key="--policy")
        found = scales.setdefault(name, [])
        if arms[name] is not None:
            found.append(_scale(policy, scale) if at else float(arms[name] or 0))
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
    """What shows how far an evaluation is: a bar of environment steps, as episodes may all end at once, with scores in the
    units of the results table, the headline's first. Where episodes may be of any length, how many steps is not known.
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
    """How many environments an evaluation of it has at a time."""
    n, _ = quota(agent.config.evaluation.episodes, agent.config.evaluation.envs)
    return n * sum(max(1, len(scales)) for scales in agent.scales().values())
