"""Implicit Q-learning with its own policy: advantage-weighted regression."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import torch

from egd.bounds import BetaOrZero, Positive
from egd.runs.phases import Phase
from egd.training.learners import Fit, Learner
from rl.agents.direct import DirectAgent
from rl.critics.choice import check_critic, make_critic
from rl.data.transitions import OfflineData
from rl.parts.actors import make_actor
from rl.parts.cloning import AdvantageWeight, Cloning
from rl.runs.config import ActorConfig, CriticConfig, RunConfig


class WeightedActorConfig(ActorConfig):
    """A policy and how its data are weighted."""

    name: Literal["deterministic", "gaussian"] = "gaussian"
    beta: BetaOrZero = 3.0
    """Weights are exp(beta (Q - V)) in the critic's units."""
    max_weight: Positive = 100.0


class IQLConfig(RunConfig):
    """A critic and a policy."""

    agent: str = "iql"
    critic: CriticConfig = CriticConfig()
    actor: WeightedActorConfig = WeightedActorConfig()


class IQL(DirectAgent):
    """IQL (arXiv:2110.06169): Q and V by expectile regression, then the data's actions weighted by exp(beta (Q - V)).

    The critic never asks the policy anything, so the one is trained to its end before the other; a critic that others have
    trained on the same data with the same settings is used again.
    """

    Config: ClassVar[type[RunConfig]] = IQLConfig
    config: IQLConfig

    def __init__(self, config: IQLConfig, data: OfflineData, device: torch.device) -> None:
        super().__init__(config, data, device)
        a = config.actor
        self.critic = self.fresh("critic", lambda: make_critic(config.critic, self.states, self.actions, device))
        self.actor = self.fresh("actor", lambda: make_actor(a, self.states, self.actions))
        self.fit = Fit(self.actor, lr=a.lr, steps=a.steps, decay=a.decay)
        self.weight = AdvantageWeight(self.critic, a.beta, a.max_weight)

    @classmethod
    def check(cls, config: Any) -> None:
        """UserError for a critic that does not exist, has not these settings, or needs support actions."""
        check_critic(config.critic, support=False)

    @classmethod
    def batch_key(cls, config: Any) -> Mapping[str, Any]:
        """All but the seed, the evaluation, expectile and beta."""
        apart: Any = {"seed": True, "evaluation": {"episodes", "envs"}, "critic": {"expectile"}, "actor": {"beta"}}
        tree: dict[str, Any] = config.model_dump(mode="json", exclude=apart)
        return tree

    def phases(self) -> list[Phase]:
        """Critic, then policy."""
        a, (learner, cloning) = self.config.actor, self.learners()
        critic = self.critic_phase(learner, self.config.critic)
        return [critic, self.phase("policy", a.steps, cloning, {"actor": a.model_dump(mode="json")}, after=[critic])]

    def learners(self) -> tuple[Learner, Cloning]:
        """Of the critic and of the policy, on the data."""
        critic = self.critic.learner(self.data, self.config.critic.batch, None)
        cloning = Cloning(self.actor, self.fit, partial(self.data.sample, self.config.actor.batch), self.weight)
        critic.computing = cloning.computing = self.config.computing  # type: ignore[attr-defined]
        return critic, cloning
