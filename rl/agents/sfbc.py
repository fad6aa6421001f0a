"""SfBC: samples of the behaviour policy, chosen by a critic that plans within the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from typing_extensions import override

from rl.agents.base import Agent
from rl.config import CriticConfig
from rl.critics.choice import check_critic, needs_support
from rl.data.transitions import OfflineData
from rl.parts.base import Part
from rl.parts.behaviour import Behaviour, check_sampling
from rl.parts.calibration import AdvantageCalibration
from rl.parts.critic import OfflineCritic
from rl.parts.policies import AgentPolicy
from rl.parts.selection import SelectingConfig, SelectionConfig, check_selections, selecting_policies
from rl.parts.support_actions import drawn_from


class SfBCConfig(SelectingConfig):
    """Settings of SfBC: in-sample planning, and one of 32 samples by softmax. Q and 1 / beta are in units of the returns'
    spread.
    """

    agent: str = "sfbc"
    critic: CriticConfig = CriticConfig(name="in_sample_planning")
    selection: SelectionConfig = SelectionConfig(candidates=32, by="softmax", beta=100.0)


class SfBC(Agent):
    """SfBC (arXiv:2209.14548): behaviour diffusion, in-sample planning on stored samples of it, and one of K samples per state,
    drawn by softmax(alpha Q).
    """

    Config: ClassVar[type[SelectingConfig]] = SfBCConfig
    config: SelectingConfig
    calibration: AdvantageCalibration

    def __init__(self, config: SelectingConfig, data: OfflineData, device: torch.device) -> None:
        super().__init__(config, data, device)
        self.behaviour = Behaviour(self.context, config)
        supported = needs_support(config.critic)  # SfBC's own critic does
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
