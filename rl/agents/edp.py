"""EDP: the critic's gradient through one call of the denoiser."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from egd.bounds import Positive
from egd.denoisers import convert
from egd.training.learners import Metrics
from rl.agents.diffusion_actor import DiffusionActor, DiffusionActorConfig, Improved, ImprovementConfig
from rl.data.transitions import Batch

LARGEST = 100.0  # of the weights of advantage-weighted regression, as in IQL


class EDPImprovementConfig(ImprovementConfig):
    """Of Diffusion-QL's, and a second way."""

    extraction: Literal["q", "awr"] = "q"
    """Up the gradient of Q; or by advantage-weighted regression of x_0, as EDP has it with an IQL critic."""
    temperature: Positive = 3.0
    """beta of awr's weights exp(beta (Q - V))."""


class EDPConfig(DiffusionActorConfig):
    """The library's schedule and sampler, of which EDP's are the like: VP, and 15 calls of DPM-Solver."""

    agent: str = "edp"
    improvement: EDPImprovementConfig = EDPImprovementConfig()


class OneStep(Improved):
    """Actions are D(x_t, t, s) of the data's actions noised for the denoising loss, whose call of the network they share."""

    config: EDPImprovementConfig

    def actions(self, state: Tensor, x: Tensor, t: Tensor, output: Tensor) -> Tensor:
        """Its action approximation, (x_t - sigma_t eps) / alpha_t for a noise model: (B, A)"""
        data, prediction = self.behaviour.data, self.behaviour.config.denoiser.prediction
        x0 = convert(output, x, t, self.behaviour.schedule, prediction, "sample")
        return x0.clamp(data.action_low, data.action_high) if self.config.clip_x0 else x0

    def improvement(self, batch: Batch, actions: Tensor, judge: Tensor) -> tuple[Tensor, Metrics]:
        """As Diffusion-QL, or for ``awr`` E min(exp(beta (Q(s, a) - V(s))), 100) |a - a_0|^2 / 2 with the a of the data."""
        if self.config.extraction == "q":
            return super().improvement(batch, actions, judge)
        with torch.no_grad():
            advantage = self.critic.q(batch.state, batch.action) - self.critic.v(batch.state)
            weight = (self.config.temperature * advantage).exp().clamp(max=LARGEST)
        distance = (batch.action - actions).square().sum(1) / 2
        return (weight * distance).mean(), {"weight": weight.mean()}


class EDP(DiffusionActor):
    """EDP (arXiv:2305.20081): the denoising loss - eta E Q(s, D(x_t, t, s)), the critic's gradient through a single call of the
    network, and a critic on samples of its average or by implicit Q-learning.
    """

    Config: ClassVar[type[DiffusionActorConfig]] = EDPConfig
    Learner: ClassVar[type[Improved]] = OneStep
