"""Agents that are trained offline and then go on learning in the environment."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from egd.runs.phases import Phase
from egd.training.learners import Fit, Metrics
from rl.agents.direct import DirectAgent
from rl.data.transitions import Batch, OfflineData
from rl.envs.making import env_factory
from rl.online.choice import check_generator, make_generator
from rl.online.config import OnlineConfig
from rl.online.generators.base import GeneratorContext
from rl.online.learner import Kept, OnlineLearner
from rl.online.resumable_env import ResumableEnv
from rl.tasks import find_task


class FineTuned(DirectAgent):
    """Mixed in before an offline agent: its phases, then those of the generator, then ``online``."""

    learns_online = True

    def __init__(self, config: Any, data: OfflineData, device: torch.device) -> None:
        super().__init__(config, data, device)
        online: OnlineConfig = config.online
        task = config.found_task()
        world = GeneratorContext(data, task, self.explore, self.fresh, self.phase)
        self.generator = None if online.generator is None else make_generator(online.generator, world)
        live = ResumableEnv(env_factory(task, task.observation_keys), config.seed)
        self.online = OnlineLearner(self, online, live, self.generator, seed=config.seed)

    @classmethod
    def check(cls, config: Any) -> None:
        """Also UserError for a generator that does not exist or does not fit."""
        super().check(config)
        if config.online.generator is not None:
            check_generator(config.online.generator, find_task(config.task))

    def phases(self) -> list[Phase]:
        """Offline, of the generator, online."""
        more = [] if self.generator is None else self.generator.phases()
        offline = super().phases()  # type: ignore[safe-super]  # of the agent that this is mixed into
        return [*offline, *more, Phase("online", self.config.online.steps, self.online, hook_first=True)]

    @abstractmethod
    def explore(self, states: Tensor, generator: torch.Generator) -> Tensor:
        """Actions to learn from, of its policy: (B, S) -> (B, A)"""

    @abstractmethod
    def improve(self, batch: Batch, generator: torch.Generator) -> Metrics:
        """One update of all its networks."""

    @abstractmethod
    def fits(self) -> Sequence[Fit]:
        """All that an update descends by."""

    @abstractmethod
    def learned(self) -> Mapping[str, Kept]:
        """Everything that decides later updates, by name."""
