"""In-support softmax Q-learning: values of the next state by a softmax over actions of the behaviour policy."""

from __future__ import annotations

from typing import TypeAlias, Unpack

import torch
from pydantic import PositiveFloat
from torch import Tensor

from egd.training import Learner, Metrics
from rl.critics.base import Critic, CriticLearner, Shared
from rl.support import SupportTable
from rl.transitions import Batch, OfflineData

__all__ = ["ISQL"]

Supported: TypeAlias = tuple[Batch, Tensor]
"""Transitions, and actions (B, K, A) of the behaviour policy in their next states."""


class ISQL(Critic):
    """Q towards r + gamma (1 - terminal) sum_k w_k Q(s', a'_k), w = softmax_k(beta Q(s', a'_k)), the a' drawn from the
    behaviour policy. QGPO (arXiv:2304.12824) Eq. 13 and Algorithm 1; ``beta`` is its alpha of Q-learning.

    V, which QGPO has no use for, is regressed on the same softmax value; nothing is learned from it.
    """

    needs_support = True

    def __init__(self, state: int, action: int, *, beta: PositiveFloat = 3.0, **shared: Unpack[Shared]) -> None:
        super().__init__(state, action, **shared)
        self.beta = beta

    def learner(self, data: OfflineData, batch: int, support: SupportTable | None) -> Learner:
        """Draws transitions with the support of their next states. ValueError without a table of it."""
        if support is None:
            raise ValueError("ISQL needs a table of support actions")

        def sample(generator: torch.Generator) -> Supported:
            index = data.index(batch, generator)
            return data.transitions[index], support.of_next(index)

        return CriticLearner(self, sample)

    def value(self, state: Tensor, actions: Tensor) -> Tensor:
        """sum_k w_k Q(s, a_k): (B, S), (B, K, A) -> (B,)"""
        k = actions.shape[1]
        q = self.q(state.repeat_interleave(k, 0), actions.flatten(0, 1)).reshape(-1, k)
        return ((self.beta * q).softmax(1) * q).sum(1)

    def loss(self, drawn: Supported) -> tuple[Tensor, Metrics]:
        """The mean square of all members' errors, and V's."""
        batch, actions = drawn
        with torch.no_grad():
            value = self.value(batch.next_state, actions)
            target = batch.reward + self.gamma * (1 - batch.terminal) * value
        q = self.values.q(batch.state, batch.action)
        q_loss = (q - target).square().mean()
        v_loss = (self.v(batch.next_state) - value).square().mean()
        return q_loss + v_loss, {"q_loss": q_loss.detach(), "v_loss": v_loss.detach(), "q_mean": q.detach().mean()}
