"""Behaviour cloning by diffusion, the baseline of all methods that start from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from typing_extensions import override

from egd.bounds import Temperature
from rl.agents.base import Agent
from rl.config import DiffusionConfig, RunConfig
from rl.data.transitions import OfflineData
from rl.parts.base import Part
from rl.parts.behaviour import Behaviour, check_sampling
from rl.parts.policies import AgentPolicy


class DiffusionBCConfig(DiffusionConfig):
    """Settings of a noise model and a sampler."""

    agent: str = "diffusion_bc"
    clip_x0: bool = True
    """Keep the denoiser's x_0, and the actions, within the range of the data's actions."""
    temperature: Temperature = 1.0
    """Temperature of the sampler's initial noise, as in ``guidance``."""


class DiffusionBC(Agent):
    """Behaviour cloning by a diffusion model mu(a|s) of the data's actions, which other methods guide, select from or weigh."""

    Config: ClassVar[type[RunConfig]] = DiffusionBCConfig
    config: DiffusionBCConfig

    def __init__(self, config: DiffusionBCConfig, data: OfflineData, device: torch.device) -> None:
        super().__init__(config, data, device)
        self.behaviour = Behaviour(self.context, config)

    @classmethod
    @override
    def check(cls, config: Any) -> None:
        check_sampling(config)

    @override
    def parts(self) -> Sequence[Part]:
        return [self.behaviour]

    @override
    def named_policies(self) -> Mapping[str, AgentPolicy]:
        return {"policy": self.behaviour.policy(self.config.clip_x0, temperature=self.config.temperature)}
