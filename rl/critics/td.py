"""Temporal differences on a policy's own actions, for methods that train policy and critic together."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor
from typing_extensions import override

from egd.training.learners import Metrics
from rl.critics.base import Critic
from rl.data.transitions import Batch

Acted: TypeAlias = tuple[Batch, Tensor]
"""Transitions, and the policy's actions (B, A) in their next states."""


class TD(Critic):
    """Q towards r + gamma (1 - terminal) min_i Q_target,i(s', a'), a' from the policy; V, a baseline only, towards the same
    minimum.
    """

    @override
    def loss(self, drawn: Acted) -> tuple[Tensor, Metrics]:
        batch, actions = drawn
        with torch.no_grad():
            value = self.q(batch.next_state, actions)
            target = self.backup(batch, value)
        q_loss, q_info = self.q_loss(batch, target)
        v_loss, v_info = self.v_loss(batch.next_state, value)
        return q_loss + v_loss, {**q_info, **v_info}
