"""Implicit Q-learning: Q and V without evaluating Q at actions outside the data."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor
from typing_extensions import override

from egd.bounds import ProperShare
from egd.tensors import spread
from egd.training.learners import Metrics
from rl.critics.base import Critic, Shared
from rl.data.transitions import Batch

__all__ = ["IQL"]


def expectile_loss(difference: Tensor, tau: float | Tensor) -> Tensor:
    """Compute E |tau - 1(u < 0)| u^2, u (B,). IQL (arXiv:2110.06169) Eq. 5; AEPO Eq. 27."""
    weight = torch.where(difference < 0, 1 - tau, tau)
    return (weight * difference.square()).mean()


class IQL(Critic):
    """Twin (or more) Q and one V by expectile regression (arXiv:2110.06169). The losses of AEPO Eq. 27."""

    def __init__(self, state: int, action: int, *, expectile: ProperShare = 0.7, **shared: Unpack[Shared]) -> None:
        super().__init__(state, action, **shared)
        tau = torch.tensor(expectile, device=self.fit.device)
        self.values.register_buffer("expectile", tau, persistent=False)  # so that runs can differ in it

    @override
    def loss(self, drawn: Batch) -> tuple[Tensor, Metrics]:
        v_loss, v_info = self.value_loss(drawn)
        with torch.no_grad():
            target = self.backup(drawn, self.v(drawn.next_state))
        q_loss, q_info = self.q_loss(drawn, target)
        return v_loss + q_loss, {**q_info, **v_info}

    def value_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Compute E L_tau(Q_target(s, a) - V(s)) for the expectile loss L_tau."""
        with torch.no_grad():
            q = self.q(batch.state, batch.action)
        advantage = q - self.v(batch.state)
        loss = expectile_loss(advantage, self.values.get_buffer("expectile"))
        return loss, {"v_loss": loss.detach(), "advantage_std": spread(advantage.detach()), "q_mean": q.mean()}
