"""Parts of an agent. A part defines its own training, and offers it as a phase."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import nn

from egd.runs.phase import fresh
from egd.training.learners import Learner
from rl.data.transitions import Batch, OfflineData

Made = TypeVar("Made")


@dataclass(frozen=True)
class RunContext:
    """Data, seed and device of a run, from which its parts are made."""

    data: OfflineData
    seed: int
    device: torch.device

    @property
    def states(self) -> int:
        """Number of entries of a state."""
        return self.data.transitions.state.shape[1]

    @property
    def actions(self) -> int:
        """Number of entries of an action."""
        return self.data.transitions.action.shape[1]

    def fresh(self, name: str, make: Callable[[], Made]) -> Made:
        """Make a network whose initial weights depend on the run's seed and on ``name`` alone."""
        made = fresh(self.seed, f"init/{name}", make)
        return made.to(self.device) if isinstance(made, nn.Module) else made


class Part(ABC):
    """Part of an agent that is trained in one phase.

    A subclass defines the phase's ``name`` and ``steps``, the ``settings`` of the recipe that its weights depend on, the
    ``members`` of the transitions that it learns from, and the parts that it comes ``after``. From these the agent derives the
    phase's key in the store, its precision, and the tensors that runs trained together stack.
    """

    name: str
    steps: int
    settings: Mapping[str, Any] = {}
    members: Sequence[str] = tuple(Batch.__dataclass_fields__)
    after: Sequence[Part] = ()
    hook_first: bool = False
    """Whether the phase's hook is also called before the first step."""
    reusable: bool = True
    """Whether the phase of another run may be reused; not where training uses an environment."""

    @property
    def learner(self) -> Learner:
        """Learner that trains the part: the part itself, unless it has one."""
        return cast(Learner, self)

    def networks(self) -> dict[str, nn.Module]:
        """Return, by name, the modules whose tensors differ between runs of a recipe."""
        return {}

    def loss_networks(self) -> dict[str, nn.Module]:
        """Return, by name, the networks that the loss may evaluate: those of all parts that this one comes after, directly or
        not.
        """
        found: dict[str, nn.Module] = {}
        for part in self.after:
            found |= part.loss_networks() | part.networks()
        return found

    def checkpoint_every(self, wanted: int) -> int:
        """Return the steps between checkpoints, where the recipe says ``wanted``."""
        return wanted

    def prepare(self, phase: str, generator: torch.Generator) -> None:  # noqa: B027
        """Prepare for use in the middle of a phase, of this part or of one that it comes after."""
