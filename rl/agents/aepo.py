"""AEPO: analytic energy-guided policy optimisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from typing_extensions import override

from rl.agents.base import Agent
from rl.config import GuidedConfig
from rl.critics.choice import check_critic
from rl.data.transitions import OfflineData
from rl.parts.base import Part
from rl.parts.behaviour import Behaviour, check_sampling
from rl.parts.calibration import AdvantageCalibration
from rl.parts.critic import OfflineCritic
from rl.parts.guidance import Guidance
from rl.parts.guidance_settings import check_guidance, check_joint, support_actions, trained_guidances, try_components
from rl.parts.joint import Joint
from rl.parts.policies import AgentPolicy
from rl.parts.support_actions import drawn_from


class AEPOConfig(GuidedConfig):
    """Settings of a behaviour model, a critic, and guidance; the paper's energy is ``guidance: {energy: analytic}``."""

    agent: str = "aepo"


class AEPO(Agent):
    """AEPO (arXiv:2505.01822): behaviour diffusion, implicit Q-learning, and guidance by an intermediate energy in closed form
    or regressed on one.

    The policy is pi(a|s) ~ mu(a|s) exp(beta Q(s, a)) (Eq. 4).

    The energy given to ``egd`` is E(a, s) = V(s) - Q(s, a).
    """

    Config: ClassVar[type[AEPOConfig]] = AEPOConfig
    config: GuidedConfig
    calibration: AdvantageCalibration
    guidance: Guidance

    def __init__(self, config: GuidedConfig, data: OfflineData, device: torch.device) -> None:
        super().__init__(config, data, device)
        try_components(config, (self.context.actions,), self.context.states)
        self.behaviour = Behaviour(self.context, config)
        k = support_actions(config)  # 0 for closed forms, which draw their own
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
        check_joint(config)

    @classmethod
    @override
    def batch_key(cls, config: Any) -> Mapping[str, Any]:
        return {**super().batch_key(config), "guidances": trained_guidances(config)}

    @override
    def parts(self) -> Sequence[Part]:
        # the order of Algorithm 1: each part on its converged predecessors, or jointly as the paper writes it
        energies = list(self.guidance.energies.values())
        if self.config.training == "joint":
            return [Joint([self.behaviour, self.critic_part], self.calibration, energies, self.config.calibration.every)]
        return [
            self.behaviour,  # E |eps_phi(a_t, s, t) - eps|^2
            *([self.support] if self.support is not None else []),
            self.critic_part,  # L_V and L_Q, Eq. 27
            self.calibration,  # the posterior's variance over t, Eq. 22, 24 or 42
            *energies,  # E (E_Theta(a_t, s, t) - E_t)^2, Eq. 26, its target by Eq. 25 at Eq. 46's point
        ]

    @override
    def named_policies(self) -> Mapping[str, AgentPolicy]:
        return self.guidance.policies()
