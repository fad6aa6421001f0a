"""QGPO: contrastive energy prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from typing_extensions import override

from egd.config.base import ComponentConfig
from egd.config.sections import EnergyNetworkConfig
from egd.errors import UserError
from rl.agents.base import Agent
from rl.config import CriticConfig, GuidanceConfig, GuidedConfig
from rl.critics.choice import check_critic
from rl.data.transitions import OfflineData
from rl.parts.base import Part
from rl.parts.behaviour import Behaviour, check_sampling
from rl.parts.calibration import AdvantageCalibration
from rl.parts.critic import OfflineCritic
from rl.parts.guidance import Guidance
from rl.parts.guidance_settings import check_guidance, support_actions, trained_guidances, try_components
from rl.parts.policies import AgentPolicy
from rl.parts.support_actions import drawn_from


class QGPOConfig(GuidedConfig):
    """Settings of a behaviour model, an in-support critic, and guidance by contrastive energy prediction on K support actions
    per state.
    """

    agent: str = "qgpo"
    critic: CriticConfig = CriticConfig(name="isql")
    energy_network: EnergyNetworkConfig = EnergyNetworkConfig(layers=4, batch=4096)
    """Settings of the energy network; its batch is 256 states of 16 actions."""
    guidance: GuidanceConfig = GuidanceConfig(energy=ComponentConfig(name="cep"), clip_x0=False)


class QGPO(Agent):
    """QGPO (arXiv:2304.12824, Algorithm 1): behaviour diffusion, in-support softmax Q-learning, and guidance by contrastive
    energy prediction.

    Critic and energy learn from support actions that are drawn once for every state. The policy is pi(a|s) ~ mu(a|s) exp(beta
    Q(s, a)).
    """

    Config: ClassVar[type[QGPOConfig]] = QGPOConfig
    config: QGPOConfig
    calibration: AdvantageCalibration
    guidance: Guidance

    def __init__(self, config: QGPOConfig, data: OfflineData, device: torch.device) -> None:
        super().__init__(config, data, device)
        try_components(config, (self.context.actions,), self.context.states)
        self.behaviour = Behaviour(self.context, config)
        k = support_actions(config)  # 0 where neither critic nor energy uses any
        self.support = drawn_from(self.behaviour, config, k) if k else None
        self.critic_part = OfflineCritic(self.context, config.critic, self.support)
        self.critic = self.critic_part.critic
        before = [self.behaviour, self.critic_part]
        self.calibration = AdvantageCalibration(self.behaviour, self.critic, config.calibration, device, after=before)
        self.guidance = Guidance(self.context, config, self.calibration, self.critic_part, self.support)

    @classmethod
    @override
    def check(cls, config: Any) -> None:
        check_sampling(config)
        check_critic(config.critic)
        check_guidance(config.guidances)
        if config.training == "joint":
            raise UserError("QGPO's parts are trained one after the other; use phased, or agent: aepo", key="training")

    @classmethod
    @override
    def batch_key(cls, config: Any) -> Mapping[str, Any]:
        return {**super().batch_key(config), "guidances": trained_guidances(config)}

    @override
    def parts(self) -> Sequence[Part]:
        return [
            self.behaviour,  # E |eps_phi(a_t, s, t) - eps|^2
            *([self.support] if self.support is not None else []),  # K actions of mu in every state and next state
            self.critic_part,  # (r + gamma softmax_k(beta Q) . Q(s', a_k) - Q(s, a))^2, Eq. 13
            self.calibration,
            *self.guidance.energies.values(),  # -sum_k softmax_k(beta Q) log softmax_k(-E_Theta), Eq. 12
        ]

    @override
    def named_policies(self) -> Mapping[str, AgentPolicy]:
        return self.guidance.policies()
