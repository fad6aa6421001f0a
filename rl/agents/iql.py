"""Implicit Q-learning with its own policy: advantage-weighted regression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from typing_extensions import override

from egd.bounds import BetaOrZero, Positive
from rl.agents.direct import DirectAgent
from rl.critics.choice import check_critic
from rl.data.transitions import OfflineData
from rl.parts.base import Part
from rl.parts.cloning import AdvantageWeight, ClonedActor
from rl.parts.critic import OfflineCritic
from rl.runs.config import VARIES, ActorConfig, CriticConfig, RunConfig


class WeightedActorConfig(ActorConfig):
    """A policy and how its data are weighted."""

    name: Literal["deterministic", "gaussian"] = "gaussian"
    beta: Annotated[BetaOrZero, VARIES] = 3.0
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
        self.critic_part = OfflineCritic(self.context, config.critic)
        self.critic = self.critic_part.critic
        weight = AdvantageWeight(self.critic, a.beta, a.max_weight)
        self.cloned = ClonedActor(self.context, a, weight, after=[self.critic_part])
        self.actor = self.cloned.actor

    @classmethod
    def check(cls, config: Any) -> None:
        """UserError for a critic that does not exist, has not these settings, or needs support actions."""
        check_critic(config.critic, support=False)

    @override
    def parts(self) -> Sequence[Part]:
        return [self.critic_part, self.cloned]
