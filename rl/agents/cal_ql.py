"""Calibrated Q-learning, offline and online."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from egd.bounds import NotNegative
from egd.training.learners import Fit, Metrics, StepLearner
from egd.training.stepping import Steps
from rl.agents.base import Agent
from rl.agents.cql import CQLAgent, CQLConfig
from rl.config import CriticConfig, RunConfig
from rl.data.transitions import Batch, OfflineData
from rl.online.choice import check_online, make_online_learner
from rl.online.config import OnlineConfig
from rl.online.generators.base import GeneratorContext
from rl.online.learner import Stateful
from rl.parts.base import Part
from rl.parts.policies import ActorPolicy, AgentPolicy


class CalQLConfig(CQLConfig):
    """Settings of a calibrated critic with its actor, and of their online phase."""

    agent: str = "cal_ql"
    critic: CriticConfig = CriticConfig(name="cal_ql")
    online: OnlineConfig = OnlineConfig()
    online_alpha: NotNegative | None = None
    """Weight of the conservative term online, by default that of the offline phase; 0 gives a soft actor-critic."""


class CalQLAgent(Agent):
    """Cal-QL (arXiv:2303.05479): offline (``rl.critics.cal_ql``), and then online without the calibration, because online
    transitions lack returns.

    It explores by samples of its policy.
    """

    Config: ClassVar[type[RunConfig]] = CalQLConfig
    config: CalQLConfig
    learns_online = True

    def __init__(self, config: CalQLConfig, data: OfflineData, device: torch.device) -> None:
        super().__init__(config, data, device)
        self.offline = CQLAgent(config, data, device)
        self.critic, self.actor = self.offline.critic, self.offline.actor
        context = GeneratorContext(data, config.found_task(), self.explore, self.context.fresh)
        self.online = make_online_learner(self, config.online, context, seed=config.seed)

    @classmethod
    @override
    def check(cls, config: Any) -> None:
        CQLAgent.check(config)
        check_online(config)

    @override
    def parts(self) -> Sequence[Part]:
        return [*self.offline.parts(), *self.online.parts()]

    # -- online --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def explore(self, states: Tensor, generator: torch.Generator) -> Tensor:
        """Draw actions of the policy: (B, S) -> (B, A)."""
        noise = torch.randn(len(states), 1, self.context.actions, generator=generator, device=states.device)
        actions: Tensor = self.actor(states, noise)[0]
        return actions[:, 0]

    def improve(self, batch: Batch, generator: torch.Generator) -> Metrics:
        """Update Q, V, the policy and the multipliers, and return metrics."""
        if self.config.online_alpha is not None:
            self.critic.alpha = self.config.online_alpha
        return self._steps(self.critic.draw(batch, generator))

    @cached_property
    def _steps(self) -> Steps:
        learner = self.offline.critic_part.learner
        assert isinstance(learner, StepLearner)
        return Steps(learner)

    def fits(self) -> Sequence[Fit]:
        """Return the one optimiser of all networks."""
        return (self.critic.fit,)

    def learned(self) -> Mapping[str, Stateful]:
        """Return the critic, which contains its actor, by name."""
        return {"critic": self.critic}

    # -- acting --------------------------------------------------------------------------------------------------

    @override
    def named_policies(self) -> Mapping[str, AgentPolicy]:
        return {"policy": ActorPolicy(self.online, self.actor)}
