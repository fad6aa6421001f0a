"""Calibrated Q-learning, offline and online."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from egd.bounds import NotNegative
from egd.training.learners import Fit, Metrics
from egd.training.stepping import Steps
from rl.agents.cql import CQLAgent, CQLConfig
from rl.agents.fine_tuned import FineTuned
from rl.critics.base import CriticLearner
from rl.data.transitions import Batch
from rl.online.config import OnlineConfig
from rl.online.learner import Kept
from rl.runs.config import CriticConfig, RunConfig


class CalQLConfig(CQLConfig):
    """A calibrated critic with its actor, and how they go on."""

    agent: str = "cal_ql"
    critic: CriticConfig = CriticConfig(name="cal_ql")
    online: OnlineConfig = OnlineConfig()
    online_alpha: NotNegative | None = None
    """Weight of the conservative term online; none: as offline. 0 is a soft actor-critic."""


class CalQLAgent(FineTuned, CQLAgent):
    """Cal-QL (arXiv:2303.05479), offline and then online without the calibration, whose returns online transitions lack. It
    explores by a sample of its policy.
    """

    Config: ClassVar[type[RunConfig]] = CalQLConfig
    config: CalQLConfig

    @torch.no_grad()
    def explore(self, states: Tensor, generator: torch.Generator) -> Tensor:
        """(B, S) -> (B, A)"""
        noise = torch.randn(len(states), 1, self.actions, generator=generator, device=states.device)
        actions: Tensor = self.critic.actor(states, noise)[0]
        return actions[:, 0]

    def improve(self, batch: Batch, generator: torch.Generator) -> Metrics:
        """Of Q, V, the policy and the multipliers."""
        if self.config.online_alpha is not None:
            self.critic.alpha = self.config.online_alpha
        return self._steps(self.critic.draw(batch, generator))

    @cached_property
    def _steps(self) -> Steps:
        batch = self.config.online.batch
        learner = CriticLearner(self.critic, lambda generator: self.critic.draw(self.data.sample(batch, generator), generator))
        learner.computing = self.config.computing
        return Steps(learner)

    def fits(self) -> Sequence[Fit]:
        """Of all of them, in one."""
        return (self.critic.fit,)

    def learned(self) -> Mapping[str, Kept]:
        """The critic, which has its actor."""
        return {"critic": self.critic}
