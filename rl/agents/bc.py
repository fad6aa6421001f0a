"""Behaviour cloning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from typing_extensions import override

from rl.agents.direct import DirectAgent
from rl.data.transitions import OfflineData
from rl.parts.base import Part
from rl.parts.cloning import ClonedActor
from rl.runs.config import ActorConfig, RunConfig


class BCConfig(RunConfig):
    """A policy and nothing else."""

    agent: str = "bc"
    actor: ActorConfig = ActorConfig()


class BC(DirectAgent):
    """The data's actions regressed on its states: by squared error, or by the likelihood of a Gaussian."""

    Config: ClassVar[type[RunConfig]] = BCConfig
    config: BCConfig

    def __init__(self, config: BCConfig, data: OfflineData, device: torch.device) -> None:
        super().__init__(config, data, device)
        self.cloned = ClonedActor(self.context, config.actor)
        self.actor = self.cloned.actor

    @override
    def parts(self) -> Sequence[Part]:
        return [self.cloned]
