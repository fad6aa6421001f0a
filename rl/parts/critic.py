"""Critic as a part: Q and V, trained on the data before the parts that use them."""

from __future__ import annotations

from torch import nn
from typing_extensions import override

from egd.training.learners import Learner
from rl.config import CriticConfig
from rl.critics.choice import critic_settings, make_critic, needs_support
from rl.parts.base import Part, RunContext
from rl.parts.support_actions import SupportTable


class OfflineCritic(Part):
    """Critic of a recipe's section. It comes after the table of support actions if it learns from one."""

    name = "critic"

    def __init__(self, context: RunContext, config: CriticConfig, support: SupportTable | None = None) -> None:
        sizes = context.states, context.actions
        self.critic = context.fresh("critic", lambda: make_critic(config, *sizes, context.device))
        self.steps, self.settings = config.steps, critic_settings(config)
        self.support = support if needs_support(config) else None
        self.after = [] if self.support is None else [self.support]
        self._learner = self.critic.learner(context.data, config.batch, self.support)

    @property
    @override
    def learner(self) -> Learner:
        return self._learner

    @override
    def networks(self) -> dict[str, nn.Module]:
        return {"critic": self.critic.values, "target": self.critic.target.module}
