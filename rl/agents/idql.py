"""IDQL: samples of the behaviour policy, chosen by implicit Q-learning's critic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from typing_extensions import override

from rl.agents.base import Agent
from rl.critics.choice import check_critic, needs_support
from rl.data.transitions import OfflineData
from rl.parts.base import Part
from rl.parts.behaviour import Behaviour, check_sampling
from rl.parts.calibration import AdvantageCalibration
from rl.parts.critic import OfflineCritic
from rl.parts.policies import AgentPolicy
from rl.parts.selection import SelectingConfig, check_selections, selecting_policies
from rl.parts.support_actions import drawn_from


class IDQLConfig(SelectingConfig):
    """Settings of IDQL, by default those of the paper's evaluation: the best of N samples. ``selection: {by: expectile}`` is
    the policy whose values the critic learns.
    """

    agent: str = "idql"


class IDQL(Agent):
    """IDQL (arXiv:2304.10573): behaviour diffusion, implicit Q-learning, and the best of N samples by Q.

    Instead of the best, a sample may be drawn by the weights |tau - 1(Q < V)| (its Eq. 10 for the expectile loss).
    """

    Config: ClassVar[type[SelectingConfig]] = IDQLConfig
    config: SelectingConfig
    calibration: AdvantageCalibration

    def __init__(self, config: SelectingConfig, data: OfflineData, device: torch.device) -> None:
        super().__init__(config, data, device)
        self.behaviour = Behaviour(self.context, config)
        supported = needs_support(config.critic)  # IDQL's own critic learns from the data alone
        self.support = drawn_from(self.behaviour, config, config.support.actions) if supported else None
        self.critic_part = OfflineCritic(self.context, config.critic, self.support)
        self.critic = self.critic_part.critic
        before = [self.behaviour, self.critic_part]
        self.calibration = AdvantageCalibration(self.behaviour, self.critic, config.calibration, device, after=before)

    @classmethod
    @override
    def check(cls, config: Any) -> None:
        check_sampling(config)
        check_critic(config.critic)
        check_selections(config)

    @override
    def parts(self) -> Sequence[Part]:
        support = [self.support] if self.support is not None else []
        return [self.behaviour, *support, self.critic_part, self.calibration]

    @override
    def named_policies(self) -> Mapping[str, AgentPolicy]:
        return selecting_policies(self.config, self.calibration, self.critic_part)
