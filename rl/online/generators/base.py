"""Contract of a generator of transitions, and the context it is given."""

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
    """Offline data, task and current policy of the agent, from which a generator is built."""

    data: OfflineData
    task: Task
    act: Callable[[Tensor, torch.Generator], Tensor]
    """Draws actions (B, A) of the policy in standardised states (B, S)."""
    fresh: Callable[[str, Callable[[], Any]], Any]
    """Calls ``make`` for a network whose initial weights are drawn by the run's seed and the given name."""


class Generator(ABC):
    """Source of transitions. A subclass takes ``context`` and settings of its own; ``refresh`` is called before ``sample``."""

    @classmethod  # noqa: B027
    def check(cls, settings: Mapping[str, Any], task: Task) -> None:
        """Raise UserError for invalid settings that their types do not reveal, before anything is trained."""

    def parts(self) -> Sequence[Part]:
        """Return the parts that learn from the offline data alone."""
        return []

    @abstractmethod
    def refresh(self, online: Replay, generator: torch.Generator) -> Metrics:
        """Learn from the online transitions and the current policy; return metrics."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """Draw n transitions."""

    def networks(self) -> dict[str, nn.Module]:
        """Return, by name, the networks that a refresh continues from."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Return all other tensors that a resumed run needs."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Restore the tensors returned by ``state``."""
