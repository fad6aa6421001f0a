"""Behaviour cloning by diffusion: what all methods that start from it must beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from egd.bounds import Temperature
from egd.networks.mlp import NoiseMLP
from egd.runs.phases import Phase
from rl.agents.base import Act, Agent
from rl.data.transitions import OfflineData
from rl.parts.behaviour import Behaviour, check_sampling
from rl.parts.guided_policy import GuidedPolicy, Randomness
from rl.runs.config import DiffusionConfig, RunConfig


class DiffusionBCConfig(DiffusionConfig):
    """A noise model and a sampler."""

    agent: str = "diffusion_bc"
    clip_x0: bool = True
    """Keep the denoiser's x_0, and the actions, within the range of the data's actions."""
    temperature: Temperature = 1.0
    """Of the sampler's initial noise, as in ``guidance``."""


class DiffusionBC(Agent):
    """Behaviour cloning by a diffusion model of the data's actions: mu(a|s), which others guide, select from or weigh."""

    Config: ClassVar[type[RunConfig]] = DiffusionBCConfig
    config: DiffusionBCConfig

    def __init__(self, config: DiffusionBCConfig, data: OfflineData, device: torch.device) -> None:
        super().__init__(config, data, device)
        d = config.denoiser
        network = self.fresh("denoiser", lambda: NoiseMLP(self.actions, self.states, width=d.width, blocks=d.blocks))
        self.behaviour = Behaviour(config, data, network, device)

    @classmethod
    def check(cls, config: Any) -> None:
        """UserError for a schedule or a sampler that does not exist or does not fit."""
        check_sampling(config)

    def phases(self) -> list[Phase]:
        """The noise model."""
        return [self.denoiser_phase(self.behaviour)]

    def policy(self, name: str, scales: Sequence[float], randomness: Randomness) -> Act:
        """One sample a state."""
        clip, b = self.config.clip_x0, self.behaviour
        bounds = (self.data.action_low, self.data.action_high) if clip else None
        sampled = GuidedPolicy(b.sampler, b.denoiser(clip), randomness, bounds=bounds, temperature=self.config.temperature)
        return lambda states, which: sampled(states)

    def modules(self) -> dict[str, nn.Module]:
        """The noise model."""
        return {"noise": self.behaviour.fit.model}
