"""The clean energy at the posterior mean."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from egd.bounds import BetaOrZero
from egd.contracts import denoised, energy_values
from egd.types import Context, Denoiser, Energy

__all__ = ["DPS"]


@dataclass(frozen=True)
class DPS:
    """Energy at the posterior mean, E_t ~ beta E(D(x_t, t)): diffusion posterior sampling (arXiv:2209.14687).

    It is exact as the posterior's spread goes to zero (t -> 0), and biased elsewhere (AEPO Theorem 3.1).
    """

    energy: Energy
    denoiser: Denoiser
    beta: BetaOrZero = 1.0

    def __call__(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        """Estimate E_t: (B, ...), (B,), c -> (B,)."""
        return self.beta * energy_values(self.energy, denoised(self.denoiser, x, t, c), c)
