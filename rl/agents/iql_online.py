"""Implicit Q-learning, fine-tuned in the environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from egd.errors import UserError
from egd.training.learners import Fit, Metrics, StepLearner
from egd.training.stepping import Steps
from rl.agents.base import Agent
from rl.agents.iql import IQLAgent, IQLConfig
from rl.config import RunConfig
from rl.critics.base import Critic
from rl.critics.choice import CRITICS
from rl.data.transitions import Batch, OfflineData
from rl.online.choice import check_online, make_online_learner
from rl.online.config import OnlineConfig
from rl.online.generators.base import GeneratorContext
from rl.online.learner import Stateful
from rl.parts.actors import GaussianActor
from rl.parts.base import Part
from rl.parts.policies import ActorPolicy, AgentPolicy


class IQLOnlineConfig(IQLConfig):
    """Settings of IQL and of its online phase."""

    agent: str = "iql_online"
    online: OnlineConfig = OnlineConfig()


class IQLOnline(Agent):
    """IQL (arXiv:2110.06169), offline and then online: each update takes a step of Q and V and one of the policy on the same
    batch.

    It explores by samples of its policy, N(mean, std^2).
    """

    Config: ClassVar[type[RunConfig]] = IQLOnlineConfig
    config: IQLOnlineConfig
    learns_online = True

    def __init__(self, config: IQLOnlineConfig, data: OfflineData, device: torch.device) -> None:
        super().__init__(config, data, device)
        self.offline = IQLAgent(config, data, device)
        self.critic, self.actor = self.offline.critic, self.offline.actor
        context = GeneratorContext(data, config.found_task(), self.explore, self.context.fresh)
        self.online = make_online_learner(self, config.online, context, seed=config.seed)

    @classmethod
    @override
    def check(cls, config: Any) -> None:
        IQLAgent.check(config)
        check_online(config)
        critic = CRITICS.find(config.critic.name, "critic.name")
        if isinstance(critic, type) and issubclass(critic, Critic) and critic.learner is not Critic.learner:
            raise UserError(
                f"'{config.critic.name}' draws more than transitions, which is all that goes online; use iql, or agent: cal_ql",
                key="critic.name",
            )

    @override
    def parts(self) -> Sequence[Part]:
        return [*self.offline.parts(), *self.online.parts()]

    # -- online --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def explore(self, states: Tensor, generator: torch.Generator) -> Tensor:
        """Draw actions of the policy, within [-1, 1]: (B, S) -> (B, A)."""
        mean = self.actor.mean(states)
        if not isinstance(self.actor, GaussianActor):
            return mean
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        return (mean + self.actor.std * noise).clamp(-1, 1)

    def improve(self, batch: Batch, generator: torch.Generator) -> Metrics:
        """Update the critic, then the policy, and return metrics."""
        critic, policy = self._steps
        return {**critic(batch), **{f"policy_{k}": v for k, v in policy(batch).items()}}

    @cached_property
    def _steps(self) -> tuple[Steps, Steps]:
        critic, policy = self.offline.critic_part.learner, self.offline.policy_part.learner
        assert isinstance(critic, StepLearner)
        assert isinstance(policy, StepLearner)
        return Steps(critic), Steps(policy)

    def fits(self) -> Sequence[Fit]:
        """Return the optimisers of critic and policy."""
        return self.critic.fit, self.offline.policy_part.fit

    def learned(self) -> Mapping[str, Stateful]:
        """Return, by name, the critic with its target, and the policy."""
        return {"critic": self.critic, "actor": self.offline.policy_part.fit}

    # -- acting --------------------------------------------------------------------------------------------------

    @override
    def named_policies(self) -> Mapping[str, AgentPolicy]:
        return {"policy": ActorPolicy(self.online, self.actor)}
