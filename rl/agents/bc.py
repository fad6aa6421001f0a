"""Behaviour cloning."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch

from egd.runs.phases import Phase
from egd.training.learners import Fit
from rl.agents.direct import DirectAgent
from rl.data.transitions import OfflineData
from rl.parts.actors import make_actor
from rl.parts.cloning import Cloning
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
        a = config.actor
        self.actor = self.fresh("actor", lambda: make_actor(a, self.states, self.actions))
        self.fit = Fit(self.actor, lr=a.lr, steps=a.steps, decay=a.decay)

    def phases(self) -> list[Phase]:
        """One."""
        a = self.config.actor
        cloning = Cloning(self.actor, self.fit, partial(self.data.sample, a.batch))
        return [self.phase("policy", a.steps, cloning, {"actor": a.model_dump(mode="json")}, data=("state", "action"))]
