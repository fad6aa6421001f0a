"""The definition of E_t as a regression of exp(-E_Theta) on exp(-beta E)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from egd.bounds import BetaOrZero, Candidates
from egd.contracts import energy_values, timed_values
from egd.tensors import spread
from egd.types import Context, Energy, TimedEnergy

__all__ = ["ExpMSE"]


@dataclass(frozen=True)
class ExpMSE:
    """Regression mean (exp(-E_Theta(x_t, t, c)) - exp(-beta E(x_0)))^2, whose optimum is the exact E_t (AEPO Eq. 11).

    The optimum includes the constant of E_t. Both exponents are lowered by the largest one of the batch, so that none exceeds
    0. This weights batches by the inverse square of their largest term, without effect on the optimum as B -> infinity if
    exp(-beta E) is bounded. The loss hardly depends on E_t where it is more than a few units above its minimum: use it for
    small beta, or prefer CEP.

    With ``samples`` of one context side by side, the largest exponent is that of each such group, as in QGPO
    (arXiv:2304.12824): all contexts count, however much their energies differ. As long as the network is nowhere below a
    group's lowest energy, as its optimum never is, this only weights contexts, and the optimum is exact for the samples of each
    context. Rows that do not divide into groups form one group.
    """

    energy: Energy
    beta: BetaOrZero = 1.0
    samples: Candidates | None = None
    grouped: ClassVar[bool] = True
    dimensionless: ClassVar[bool] = True

    def targets(self, x0: Tensor, x: Tensor, t: Tensor, c: Context) -> Tensor:
        """Compute beta E(x_0), (B,); the network starts at their mean, and E_Theta's spread is at most theirs."""
        return self.beta * energy_values(self.energy, x0, c).detach()

    def loss(
        self, network: TimedEnergy, x0: Tensor, x: Tensor, t: Tensor, c: Context, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss () and its metrics: x0 and x (B, ...), t (B,)."""
        targets, guesses = self.targets(x0, x, t, c), timed_values(network, x, t, c)
        k = self.samples if self.samples and len(x0) % self.samples == 0 else len(x0)
        lowest = torch.minimum(targets, guesses.detach()).reshape(-1, k).amin(1)
        floor = lowest.repeat_interleave(k)
        loss = ((floor - guesses).exp() - (floor - targets).exp()).square().mean()
        return loss, {"target_mean": targets.mean(), "target_std": spread(targets)}
