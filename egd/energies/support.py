"""The definition of E_t over samples of the data distribution: what a CEP network converges to, without training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from egd.bounds import BetaOrZero, Samples
from egd.contracts import energy_values
from egd.tensors import repeat_context
from egd.types import Context, Energy, Schedule, Support

__all__ = ["SupportSamples"]


@dataclass(frozen=True)
class SupportSamples:
    """Support-sample estimate E_t ~ -log sum_i w_i exp(-beta E(x^i)), w_i = softmax_i(-||x_t - alpha_t x^i||^2 / (2
    sigma_t^2)), x^i ~ q(. | c).

    It is consistent in the number K of ``samples``, and best at high noise, where many w_i count. ``prepare`` draws the x^i
    once for a whole sampling run; a direct call draws them anew each time.
    """

    energy: Energy
    support: Support
    schedule: Schedule
    beta: BetaOrZero = 1.0
    samples: Samples = 32

    def prepare(self, c: Context) -> DrawnSupport:
        """Return the energy with K samples drawn for every row of c and their energies computed."""
        with torch.no_grad():
            points = self.support(c, self.samples)
            flat = energy_values(self.energy, points.flatten(0, 1), repeat_context(c, self.samples))
        return DrawnSupport(points, self.beta * flat.reshape(points.shape[:2]), self.schedule)

    def __call__(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        """Estimate E_t: (B, ...), (B,), c -> (B,)."""
        return self.prepare(c)(x, t, c)


@dataclass(frozen=True)
class DrawnSupport:
    """Support samples ``points`` (B, K, ...) and beta times their ``energies`` (B, K), with B = 1 where all rows share them."""

    points: Tensor
    energies: Tensor
    schedule: Schedule

    def __call__(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        """Estimate E_t: (B, ...), (B,) -> (B,)."""
        return -torch.logsumexp(self._log_weights(x, t) - self.energies, 1)

    def ess(self, x: Tensor, t: Tensor) -> Tensor:
        """Compute the effective number of samples behind the posterior, 1 / sum_i w_i^2, between 1 and K: (B,)."""
        return torch.exp(-torch.logsumexp(2 * self._log_weights(x, t), 1))

    def _log_weights(self, x: Tensor, t: Tensor) -> Tensor:
        """Compute log w_i, (B, K). Distances are products, so that (B, K, d) is never made when all rows share the samples."""
        alpha, sigma = self.schedule.alpha(t)[:, None], self.schedule.sigma(t)[:, None]
        points, flat = self.points.flatten(2), x.flatten(1)
        if len(points) not in (1, len(x)):
            raise ValueError(
                f"the support was drawn for {len(points)} contexts and is asked about {len(x)} rows: "
                "prepare(c) with a context for every row"
            )
        cross = flat @ points[0].mT if len(points) == 1 else torch.einsum("bd,bkd->bk", flat, points)
        return torch.log_softmax((alpha * cross - 0.5 * alpha**2 * points.square().sum(2)) / sigma**2, 1)
