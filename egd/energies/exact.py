"""The exact intermediate energy of a Gaussian mixture and a quadratic energy."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from egd.bounds import BetaOrZero
from egd.mixtures import GaussianMixture, Quadratic
from egd.types import Context, Schedule

__all__ = ["ExactEnergy"]


@dataclass(frozen=True)
class ExactEnergy:
    """Exact E_t(x_t) = -log E[exp(-beta E(x_0)) | x_t] in closed form (AEPO Eq. 11); for benchmarks and tests."""

    energy: Quadratic
    mixture: GaussianMixture
    schedule: Schedule
    beta: BetaOrZero = 1.0

    def __call__(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        """Compute E_t: (B, D), (B,), c -> (B,)."""
        return self.mixture.energy(self.schedule, self.energy, self.beta, x, t)
