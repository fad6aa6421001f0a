"""Diffusion-QL: the critic's gradient through the whole sampling chain."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from egd.config.base import ComponentConfig
from egd.errors import UserError
from egd.samplers import differentiable
from rl.agents.diffusion_actor import DiffusionActor, DiffusionActorConfig, Improved
from rl.parts.behaviour import make_schedule
from rl.parts.guided_policy import ActionSampler
from rl.runs.config import SamplerConfig


class DiffusionQLConfig(DiffusionActorConfig):
    """Five steps of DDPM, as the paper has it: alpha_bar at t = 1, 0.8, ..., 0.2 is that of its ``vp`` schedule."""

    agent: str = "diffusion_ql"
    schedule: ComponentConfig = ComponentConfig(name="vp_linear", beta_max=10.0)  # type: ignore[call-arg]  # extra="allow"
    sampler: SamplerConfig = SamplerConfig(name="ancestral", steps=5, spacing="time", end=0.0)


class ThroughChain(Improved):
    """Actions are samples, differentiated through every step of the sampler."""

    @cached_property
    def sampler(self) -> ActionSampler:
        """The policy's, with a graph."""
        plain = self.behaviour.sampler
        return replace(plain, sampler=differentiable(plain.sampler))

    def actions(self, state: Tensor, x: Tensor, t: Tensor, output: Tensor) -> Tensor:
        """(B, A)"""
        denoiser = self.behaviour.denoiser(self.config.clip_x0, in_training=True)
        return self.sampler.draw(denoiser, state, len(state), self.generator)


class DiffusionQL(DiffusionActor):
    """Diffusion-QL (arXiv:2208.06193): the denoising loss - eta E Q(s, a) of the policy's own samples, and a critic on the
    samples of its average.
    """

    Config: ClassVar[type[DiffusionActorConfig]] = DiffusionQLConfig
    Learner: ClassVar[type[Improved]] = ThroughChain

    @classmethod
    def check(cls, config: DiffusionActorConfig) -> None:
        """As all, and UserError for a sampler whose samples have no graph."""
        super().check(config)
        shift, schedule = torch.zeros(1, 1, requires_grad=True), make_schedule(config.schedule.spec)
        sampler = differentiable(config.sampler.chosen())
        sample = sampler(lambda x, t, c: 0.5 * x + shift, schedule, torch.ones(1, 1), torch.tensor([0.9, 0.5]))
        if not sample.requires_grad:
            message = "its samples cannot be differentiated, as Diffusion-QL needs; use ancestral or ddim, or agent edp"
            raise UserError(f"{config.sampler.name}: {message}", key="sampler.name")
