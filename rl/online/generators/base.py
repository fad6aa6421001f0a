"""The contract of a generator of transitions, and what it is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from egd.training.learners import Metrics
from rl.data.transitions import Batch, OfflineData
from rl.online.replay import Replay
from rl.parts.base import Part
from rl.tasks import Task


@dataclass(frozen=True)
class GeneratorContext:
    """The offline data, the task, and the agent's current policy: what a generator may look at."""

    data: OfflineData
    task: Task
    act: Callable[[Tensor, torch.Generator], Tensor]
    """Standardised states (B, S) -> actions (B, A) of the policy, drawn."""
    fresh: Callable[[str, Callable[[], Any]], Any]
    """(name, make) -> a network with initial weights by the run's seed and its name."""


class Generator(ABC):
    """A source of transitions. A subclass takes ``context`` and settings of its own; ``refresh`` comes before ``sample``."""

    @classmethod  # noqa: B027
    def check(cls, settings: Mapping[str, Any], task: Task) -> None:
        """Raise UserError for what the types of the settings cannot tell, before anything is trained."""

    def parts(self) -> Sequence[Part]:
        """List what learns from the offline data alone."""
        return []

    @abstractmethod
    def refresh(self, online: Replay, generator: torch.Generator) -> Metrics:
        """Learn from the online transitions and the current policy; return metrics."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """Draw n transitions."""

    def networks(self) -> dict[str, nn.Module]:
        """Name the networks that a refresh goes on from."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Give all else that a resumed run must have again."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Restore what ``state`` gave."""
