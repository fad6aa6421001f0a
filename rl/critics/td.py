"""Q by temporal differences of a policy's own actions, for methods that train the two together."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from egd.training.learners import Metrics
from rl.critics.base import Critic
from rl.data.transitions import Batch

Acted: TypeAlias = tuple[Batch, Tensor]
"""Transitions, and the policy's actions (B, A) in their next states."""


class TD(Critic):
    """Q towards r + gamma (1 - terminal) min_i Q_target,i(s', a'), a' the policy's; V, a baseline only, towards that same Q."""

    def loss(self, drawn: Acted) -> tuple[Tensor, Metrics]:
        """The mean square of all members' errors, and V's."""
        batch, actions = drawn
        with torch.no_grad():
            value = self.q(batch.next_state, actions)
            target = self.backup(batch, value)
        return self.squares(batch, target, batch.next_state, value)
