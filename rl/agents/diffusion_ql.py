"""Diffusion-QL: the critic's gradient through the whole sampling chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from egd.config.base import ComponentConfig
from egd.config.catalogue import make_schedule
from egd.config.sections import SamplerConfig
from egd.errors import UserError
from egd.samplers import differentiable
from egd.training.learners import Metrics
from rl.agents.base import Agent
from rl.critics.choice import check_critic
from rl.data.transitions import OfflineData
from rl.parts.base import Part
from rl.parts.behaviour import Behaviour, check_sampling
from rl.parts.critic import OfflineCritic
from rl.parts.diffusion_actor import ActorCritic, DiffusionActor, DiffusionActorConfig, NoisedTransitions, normalised_q_loss
from rl.parts.policies import AgentPolicy


class DiffusionQLConfig(DiffusionActorConfig):
    """Settings of Diffusion-QL: five steps of DDPM, as in the paper: alpha_bar at t = 1, 0.8, ..., 0.2 is that of its ``vp``
    schedule.
    """

    agent: str = "diffusion_ql"
    schedule: ComponentConfig = ComponentConfig(name="vp_linear", beta_max=10.0)  # type: ignore[call-arg]  # extra="allow"
    sampler: SamplerConfig = SamplerConfig(name="ancestral", steps=5, spacing="time", end=0.0)


class DiffusionQL(Agent):
    """Diffusion-QL (arXiv:2208.06193): the denoising loss - eta E Q(s, a) of the policy's own samples, and a critic on samples
    of the averaged policy.
    """

    Config: ClassVar[type[DiffusionActorConfig]] = DiffusionQLConfig
    config: DiffusionActorConfig

    def __init__(self, config: DiffusionActorConfig, data: OfflineData, device: torch.device) -> None:
        super().__init__(config, data, device)
        self.behaviour = Behaviour(self.context, config)
        self.critic_part = OfflineCritic(self.context, config.built_critic)
        self.critic = self.critic_part.critic
        before = [] if config.on_policy else [self.critic_part]
        self.policy_part = DiffusionActor(self.behaviour, self.critic, config, self.improvement_loss, before)
        self.actor_critic = ActorCritic(self.policy_part)
        plain = self.behaviour.sampler
        self.chain = replace(plain, sampler=differentiable(plain.sampler))

    @classmethod
    @override
    def check(cls, config: DiffusionActorConfig) -> None:
        check_sampling(config)
        check_critic(config.built_critic, support=False)
        shift, schedule = torch.zeros(1, 1, requires_grad=True), make_schedule(config.schedule.spec)
        sampler = differentiable(config.sampler.chosen())
        sample = sampler(lambda x, t, c: 0.5 * x + shift, schedule, torch.ones(1, 1), torch.tensor([0.9, 0.5]))
        if not sample.requires_grad:
            message = "its samples cannot be differentiated, as Diffusion-QL needs; use ancestral or ddim, or agent edp"
            raise UserError(f"{config.sampler.name}: {message}", key="sampler.name")

    @override
    def parts(self) -> Sequence[Part]:
        return [self.actor_critic] if self.config.on_policy else [self.critic_part, self.policy_part]

    def improvement_loss(
        self, noised: NoisedTransitions, x: Tensor, output: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Metrics]:
        """Compute -E Q_i(s, a) / E |Q_j(s, a)| at samples a of the policy, with their graph through every step of
        the sampler.
        """
        state = noised.batch.state
        return normalised_q_loss(self.critic, state, self.sampled(state, generator), noised.member)

    def sampled(self, state: Tensor, generator: torch.Generator) -> Tensor:
        """Draw actions of the policy in training, with their graph: (B, S) -> (B, A)."""
        denoiser = self.behaviour.denoiser(self.config.improvement.clip_x0, in_training=True)
        return self.chain.draw(denoiser, state, len(state), generator)

    @override
    def named_policies(self) -> Mapping[str, AgentPolicy]:
        return {"policy": self.policy_part.policy()}
