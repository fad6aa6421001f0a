"""In-support softmax Q-learning: the next state's value is a softmax over actions of the behaviour policy."""

from __future__ import annotations

from typing import TypeAlias, Unpack

import torch
from torch import Tensor
from typing_extensions import override

from egd.bounds import Beta
from egd.training.learners import Learner, Metrics
from rl.critics.base import Critic, CriticLearner, Shared
from rl.data.transitions import Batch, OfflineData
from rl.parts.support_actions import SupportTable

__all__ = ["ISQL"]

Supported: TypeAlias = tuple[Batch, Tensor]
"""Transitions, and actions (B, K, A) of the behaviour policy in their next states."""


class ISQL(Critic):
    """Q towards r + gamma (1 - terminal) sum_k w_k Q(s', a'_k), w = softmax_k(beta Q(s', a'_k)), with a' from the behaviour
    policy.

    QGPO (arXiv:2304.12824) Eq. 13 and Algorithm 1; ``beta`` is its alpha of Q-learning. V, which QGPO does not use, is
    regressed on the same softmax value; nothing is learned from it.
    """

    needs_support = True

    def __init__(self, state: int, action: int, *, beta: Beta = 3.0, **shared: Unpack[Shared]) -> None:
        super().__init__(state, action, **shared)
        self.beta = beta

    @override
    def learner(self, data: OfflineData, batch: int, support: SupportTable | None) -> Learner:
        if support is None:
            raise ValueError("ISQL needs a table of support actions")

        def sample(generator: torch.Generator) -> Supported:
            index = data.index(batch, generator)
            return data.transitions[index], support.of_next(index)

        return CriticLearner(self, sample)

    @override
    def loss(self, drawn: Supported) -> tuple[Tensor, Metrics]:
        batch, actions = drawn
        with torch.no_grad():
            value = self.softmax_q(batch.next_state, actions, self.beta)
            target = self.backup(batch, value)
        q_loss, q_info = self.q_loss(batch, target)
        v_loss, v_info = self.v_loss(batch.next_state, value)
        return q_loss + v_loss, {**q_info, **v_info}
