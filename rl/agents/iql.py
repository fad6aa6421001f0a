"""Implicit Q-learning with its own policy: advantage-weighted regression."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from egd.bounds import BetaOrZero, Positive
from egd.training.learners import Fit, Metrics, StepLearner
from rl.agents.base import Agent
from rl.config import VARIES, ActorConfig, CriticConfig, RunConfig
from rl.critics import Critic
from rl.critics.choice import check_critic
from rl.data.transitions import Batch, OfflineData
from rl.parts.actors import Actor
from rl.parts.base import Part
from rl.parts.critic import OfflineCritic
from rl.parts.policies import ActorPolicy, AgentPolicy
from rl.parts.trained_actor import TrainedActor


class WeightedActorConfig(ActorConfig):
    """Settings of a policy, and of the weights of its data."""

    name: Literal["deterministic", "gaussian"] = "gaussian"
    beta: Annotated[BetaOrZero, VARIES] = 3.0
    """Inverse temperature of the weights exp(beta (Q - V)), in the critic's units."""
    max_weight: Positive = 100.0


class IQLConfig(RunConfig):
    """Settings of a critic and a policy."""

    agent: str = "iql"
    critic: CriticConfig = CriticConfig()
    actor: WeightedActorConfig = WeightedActorConfig()


class AdvantageWeightedRegression(StepLearner):
    """Learner of E w(s, a) cost(s, a), w = min(exp(beta (Q(s, a) - V(s))), max_weight), cost = -log pi(a|s) of a Gaussian (Eq.
    7).

    No gradient flows into the critic, and the mean is not divided by the weights' sum.
    """

    def __init__(
        self,
        actor: Actor,
        fit: Fit,
        sample: Callable[[torch.Generator], Batch],
        critic: Critic,
        beta: float,
        max_weight: float = 100.0,
    ) -> None:
        self.actor, self.fit, self.sample, self.critic, self.max_weight = actor, fit, sample, critic, max_weight
        self.beta = nn.ParameterDict({"beta": torch.tensor(beta)}).requires_grad_(False).to(critic.fit.device)

    @override
    def draw(self, generator: torch.Generator) -> Batch:
        return self.sample(generator)

    @override
    def loss(self, drawn: Batch) -> tuple[Tensor, Metrics]:
        cost = self.actor.cost(drawn.state, drawn.action)
        weight = self.weight(drawn)
        loss = (weight * cost).mean()
        return loss, {"loss": loss.detach(), "cost": cost.detach().mean(), "weight": weight.mean()}

    @torch.no_grad()
    def weight(self, batch: Batch) -> Tensor:
        """Compute w(s, a): (B,)."""
        advantage = self.critic.q(batch.state, batch.action) - self.critic.v(batch.state)
        weight: Tensor = (self.beta["beta"] * advantage).exp().clamp(max=self.max_weight)
        return weight

    @override
    def loss_networks(self) -> dict[str, nn.Module]:
        return {"beta": self.beta, "critic": self.critic.values, "target": self.critic.target.module}


class IQLAgent(Agent):
    """IQL (arXiv:2110.06169): Q and V by expectile regression (``rl.critics.iql``), then a policy by advantage-weighted
    regression.

    The critic does not depend on the policy, so it is trained to its end first. A critic that other agents have trained on the
    same data with the same settings is reused.
    """

    Config: ClassVar[type[RunConfig]] = IQLConfig
    config: IQLConfig

    def __init__(self, config: IQLConfig, data: OfflineData, device: torch.device) -> None:
        super().__init__(config, data, device)
        a = config.actor
        self.critic_part = OfflineCritic(self.context, config.critic)
        self.critic = self.critic_part.critic
        regression = partial(
            AdvantageWeightedRegression,
            sample=partial(data.sample, a.batch),
            critic=self.critic,
            beta=a.beta,
            max_weight=a.max_weight,
        )
        self.policy_part = TrainedActor(self.context, a, regression, after=[self.critic_part])
        self.actor = self.policy_part.actor

    @classmethod
    @override
    def check(cls, config: Any) -> None:
        check_critic(config.critic, support=False)

    @override
    def parts(self) -> Sequence[Part]:
        return [self.critic_part, self.policy_part]

    @override
    def named_policies(self) -> Mapping[str, AgentPolicy]:
        return {"policy": ActorPolicy(self.policy_part, self.actor)}
