"""EDP: the critic's gradient through one call of the denoiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from egd.bounds import Positive
from egd.denoisers import convert
from egd.training.learners import Metrics
from rl.agents.base import Agent
from rl.critics.choice import check_critic
from rl.data.transitions import Batch, OfflineData
from rl.parts.base import Part
from rl.parts.behaviour import Behaviour, check_sampling
from rl.parts.critic import OfflineCritic
from rl.parts.diffusion_actor import (
    ActorCritic,
    DiffusionActor,
    DiffusionActorConfig,
    ImprovementConfig,
    NoisedTransitions,
    normalised_q_loss,
)
from rl.parts.policies import AgentPolicy

LARGEST = 100.0  # upper bound of the weights of advantage-weighted regression, as in IQL


class EDPImprovementConfig(ImprovementConfig):
    """Settings of the policy's improvement by a critic: as in Diffusion-QL, or by advantage-weighted regression."""

    extraction: Literal["q", "awr"] = "q"
    """Improvement along the gradient of Q, or by advantage-weighted regression of x_0, EDP's choice with an IQL critic."""
    temperature: Positive = 3.0
    """Inverse temperature beta of awr's weights exp(beta (Q - V))."""


class EDPConfig(DiffusionActorConfig):
    """Settings of EDP with the library's schedule and sampler, which resemble the paper's: VP, and 15 calls of DPM-Solver."""

    agent: str = "edp"
    improvement: EDPImprovementConfig = EDPImprovementConfig()


class EDP(Agent):
    """EDP (arXiv:2305.20081): the denoising loss - eta E Q(s, D(x_t, t, s)), with the critic's gradient through a single call
    of the network.

    The critic learns on samples of the averaged policy, or by implicit Q-learning.
    """

    Config: ClassVar[type[EDPConfig]] = EDPConfig
    config: EDPConfig

    def __init__(self, config: EDPConfig, data: OfflineData, device: torch.device) -> None:
        super().__init__(config, data, device)
        self.behaviour = Behaviour(self.context, config)
        self.critic_part = OfflineCritic(self.context, config.built_critic)
        self.critic = self.critic_part.critic
        before = [] if config.on_policy else [self.critic_part]
        improvement_loss = self.q_loss if config.improvement.extraction == "q" else self.awr_loss
        self.policy_part = DiffusionActor(self.behaviour, self.critic, config, improvement_loss, before)
        self.actor_critic = ActorCritic(self.policy_part)

    @classmethod
    @override
    def check(cls, config: EDPConfig) -> None:
        check_sampling(config)
        check_critic(config.built_critic, support=False)

    @override
    def parts(self) -> Sequence[Part]:
        return [self.actor_critic] if self.config.on_policy else [self.critic_part, self.policy_part]

    def q_loss(
        self, noised: NoisedTransitions, x: Tensor, output: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Metrics]:
        """Compute -E Q_i(s, a) / E |Q_j(s, a)| at the action approximation a."""
        actions = self.approximated(x, noised.t, output)
        return normalised_q_loss(self.critic, noised.batch.state, actions, noised.member)

    def awr_loss(
        self, noised: NoisedTransitions, x: Tensor, output: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Metrics]:
        """Compute E w(s, a_0) |a - a_0|^2 / 2, where a_0 is the data's action and a its approximation."""
        batch, actions = noised.batch, self.approximated(x, noised.t, output)
        weight = self.advantage_weight(batch)
        distance = (batch.action - actions).square().sum(1) / 2
        return (weight * distance).mean(), {"weight": weight.mean()}

    @torch.no_grad()
    def advantage_weight(self, batch: Batch) -> Tensor:
        """Compute w = min(exp(beta (Q(s, a) - V(s))), 100): (B,)."""
        advantage = self.critic.q(batch.state, batch.action) - self.critic.v(batch.state)
        return (self.config.improvement.temperature * advantage).exp().clamp(max=LARGEST)

    def approximated(self, x: Tensor, t: Tensor, output: Tensor) -> Tensor:
        """Compute D(x_t, t, s), the action approximation (x_t - sigma_t eps) / alpha_t of a noise model: (B, A).

        It approximates the data's actions that are noised for the denoising loss, and shares that loss's call of the network.
        """
        x0 = convert(output, x, t, self.behaviour.schedule, self.config.denoiser.prediction, "sample")
        clip = self.config.improvement.clip_x0
        return x0.clamp(self.data.action_low, self.data.action_high) if clip else x0

    @override
    def named_policies(self) -> Mapping[str, AgentPolicy]:
        return {"policy": self.policy_part.policy()}
