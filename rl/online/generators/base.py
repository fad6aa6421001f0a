"""What a generator is to the online loop, and what it is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from egd.runs.phases import Phase
from egd.training.learners import Metrics
from rl.data.transitions import Batch, OfflineData
from rl.online.replay import Replay
from rl.tasks import Task


@dataclass(frozen=True)
class GeneratorContext:
    """What a generator may look at: the offline data, the task, and the agent's policy as it is at the time."""

    data: OfflineData
    task: Task
    act: Callable[[Tensor, torch.Generator], Tensor]
    """Standardised states (B, S) -> actions (B, A) of the policy, drawn."""
    fresh: Callable[[str, Callable[[], Any]], Any]
    """``Agent.fresh``: makes a network, by the run's seed and its name."""
    phase: Callable[..., Phase]
    """``Agent.phase``: for phases that other runs can use."""


class Generator(ABC):
    """Makes transitions. A subclass takes ``world`` and settings of its own; ``refresh`` comes before ``sample``."""

    @classmethod  # noqa: B027
    def check(cls, settings: Mapping[str, Any], task: Task) -> None:
        """UserError for what the types of the settings cannot tell, before anything is trained."""

    def phases(self) -> list[Phase]:
        """What it learns from the offline data alone."""
        return []

    @abstractmethod
    def refresh(self, online: Replay, generator: torch.Generator) -> Metrics:
        """Take notice of the online transitions and of the policy of the day."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """n transitions."""

    def modules(self) -> dict[str, nn.Module]:
        """The networks that a refresh goes on from."""
        return {}

    def kept(self) -> dict[str, Tensor]:
        """What else there is to be kept between refreshes."""
        return {}

    def keep(self, kept: Mapping[str, Tensor]) -> None:  # noqa: B027
        """The inverse of ``kept``."""
