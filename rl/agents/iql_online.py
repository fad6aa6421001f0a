"""Implicit Q-learning that goes on in the environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from egd.errors import UserError
from egd.training.learners import Fit, Metrics, StepLearner
from egd.training.stepping import Steps
from rl.agents.fine_tuned import FineTuned
from rl.agents.iql import IQL, IQLConfig
from rl.critics.base import Critic
from rl.critics.choice import CRITICS
from rl.data.transitions import Batch
from rl.online.config import OnlineConfig
from rl.online.learner import Kept
from rl.parts.actors import Gaussian
from rl.runs.config import RunConfig


class IQLOnlineConfig(IQLConfig):
    """IQL, and how it goes on."""

    agent: str = "iql_online"
    online: OnlineConfig = OnlineConfig()


class IQLOnline(FineTuned, IQL):
    """IQL (arXiv:2110.06169), offline and then online: each update takes a step of Q and V and one of the policy on the same
    batch. It explores by a sample of its policy, N(mean, std^2).
    """

    Config: ClassVar[type[RunConfig]] = IQLOnlineConfig
    config: IQLOnlineConfig

    @classmethod
    def check(cls, config: Any) -> None:
        """Also UserError for a critic that learns from more than transitions, which is all that the online loop has."""
        super().check(config)
        critic = CRITICS.find(config.critic.name, "critic.name")
        if isinstance(critic, type) and issubclass(critic, Critic) and critic.learner is not Critic.learner:
            raise UserError(
                f"'{config.critic.name}' draws more than transitions, which is all that goes online; use iql, or agent: cal_ql",
                key="critic.name",
            )

    @torch.no_grad()
    def explore(self, states: Tensor, generator: torch.Generator) -> Tensor:
        """(B, S) -> (B, A), within [-1, 1]"""
        mean = self.actor.mean(states)
        if not isinstance(self.actor, Gaussian):
            return mean
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        return (mean + self.actor.std * noise).clamp(-1, 1)

    def improve(self, batch: Batch, generator: torch.Generator) -> Metrics:
        """Of the critic, then of the policy."""
        critic, policy = self._steps
        return {**critic(batch), **{f"policy_{k}": v for k, v in policy(batch).items()}}

    @cached_property
    def _steps(self) -> tuple[Steps, Steps]:
        critic, cloning = self.learners()
        assert isinstance(critic, StepLearner)
        return Steps(critic), Steps(cloning)

    def fits(self) -> Sequence[Fit]:
        """Of the critic and the policy."""
        return self.critic.fit, self.fit

    def learned(self) -> Mapping[str, Kept]:
        """The same, the critic with its target."""
        return {"critic": self.critic, "actor": self.fit}
