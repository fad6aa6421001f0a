"""Parts: what an agent is made of. A part knows how it is trained, and so offers a phase."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import nn

from egd.runs.phases import fresh
from egd.training.learners import Learner
from rl.data.transitions import Batch, OfflineData

Made = TypeVar("Made")


@dataclass(frozen=True)
class RunContext:
    """What the parts of a run are made from: its data, its seed and its device."""

    data: OfflineData
    seed: int
    device: torch.device

    @property
    def states(self) -> int:
        """The number of entries of a state."""
        return self.data.transitions.state.shape[1]

    @property
    def actions(self) -> int:
        """The number of entries of an action."""
        return self.data.transitions.action.shape[1]

    def fresh(self, name: str, make: Callable[[], Made]) -> Made:
        """Make a network with initial weights that depend on the run's seed and its own name alone."""
        made = fresh(self.seed, f"init/{name}", make)
        return made.to(self.device) if isinstance(made, nn.Module) else made


class Part(ABC):
    """A part of an agent that is trained in one phase.

    A subclass gives the phase's ``name`` and ``steps``, the ``settings`` of the recipe that its weights rest on, the
    ``members`` of the transitions that it learns from, and the parts that it comes ``after``. The agent derives from these the
    phase's key in the store, its precision, and what runs that are trained together stack.
    """

    name: str
    steps: int
    settings: Mapping[str, Any] = {}
    members: Sequence[str] = tuple(Batch.__dataclass_fields__)
    after: Sequence[Part] = ()
    hook_first: bool = False
    """Whether what is done between steps is done before the first one, too."""
    reusable: bool = True
    """Whether another run's phase may stand in for its own; not where an environment has part in it."""

    @property
    def learner(self) -> Learner:
        """The learner that trains it: the part itself, unless it has one."""
        return cast(Learner, self)

    def networks(self) -> dict[str, nn.Module]:
        """Name the modules whose tensors are not the same in all runs of a recipe."""
        return {}

    def loss_networks(self) -> dict[str, nn.Module]:
        """Name the networks of all parts that it comes after, and of those before them: what its loss may read."""
        found: dict[str, nn.Module] = {}
        for part in self.after:
            found |= part.loss_networks() | part.networks()
        return found

    def checkpoint_every(self, wanted: int) -> int:
        """Give the steps between checkpoints, where the recipe says ``wanted``."""
        return wanted

    def prepare(self, phase: str, generator: torch.Generator) -> None:  # noqa: B027
        """Make itself usable in the middle of a phase, of its own or of a part that it comes after."""
