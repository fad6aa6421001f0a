"""The conditional expectation of the energy, learned by regression."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from egd.bounds import BetaOrZero
from egd.contracts import energy_values, timed_values
from egd.tensors import spread
from egd.types import Context, Energy, TimedEnergy

__all__ = ["MSE"]


@dataclass(frozen=True)
class MSE:
    """Regression mean (E_Theta(x_t, t, c) - beta E(x_0))^2, whose optimum is beta E[E(x_0) | x_t].

    By Jensen the optimum is never below the exact E_t (AEPO Theorem 3.1).
    """

    energy: Energy
    beta: BetaOrZero = 1.0

    def targets(self, x0: Tensor, x: Tensor, t: Tensor, c: Context) -> Tensor:
        """Compute the regression targets: (B,)."""
        return self.beta * energy_values(self.energy, x0, c).detach()

    def loss(
        self, network: TimedEnergy, x0: Tensor, x: Tensor, t: Tensor, c: Context, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss () and its metrics: x0 and x (B, ...), t (B,)."""
        targets = self.targets(x0, x, t, c)
        loss = (timed_values(network, x, t, c) - targets).square().mean()
        return loss, {
            "target_mean": targets.mean(),
            "target_std": spread(targets),
        }
