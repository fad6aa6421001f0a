"""The definition of E_t, averaged over the sigma points of the Gaussian posterior."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from egd.bounds import BetaOrZero, Number
from egd.contracts import energy_values, posterior_at
from egd.tensors import repeat_context
from egd.types import Context, Energy, Posterior

__all__ = ["SigmaPoints"]


@dataclass(frozen=True)
class SigmaPoints:
    """Sigma-point estimate E_t ~ -log sum_k w_k exp(-beta E(x_k)) by the unscented transform (Julier and Uhlmann, 1997).

    With R R^T = Sigma, the points are mu (weight kappa / (d + kappa)) and mu +- sqrt(d + kappa) R e_i (weights 1 / (2 (d +
    kappa))), which have the posterior's mean and covariance. The estimate sees the energy at a distance from mu and needs no
    second derivative. Raises ValueError for a negative kappa: a negative weight has no logarithm.
    """

    energy: Energy
    posterior: Posterior
    beta: BetaOrZero = 1.0
    kappa: Number = 1.0

    def __post_init__(self) -> None:
        if self.kappa < 0:
            raise ValueError(f"need kappa >= 0, got {self.kappa}")

    def __call__(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        """Estimate E_t: (B, ...), (B,), c -> (B,)."""
        q = posterior_at(self.posterior, x, t, c)
        d = x[0].numel()
        axes = math.sqrt(d + self.kappa) * q.root().mT  # (B, d, d): one column sqrt(d + kappa) R e_i for each row
        offsets = torch.cat([torch.zeros_like(axes[:, :1]), axes, -axes], 1)
        points = q.mean[:, None] + offsets.reshape(len(x), 2 * d + 1, *x.shape[1:])
        energies = energy_values(self.energy, points.flatten(0, 1), repeat_context(c, 2 * d + 1)).reshape(len(x), -1)
        weights = torch.full((2 * d + 1,), 0.5 / (d + self.kappa), dtype=x.dtype, device=x.device)
        weights[0] = self.kappa / (d + self.kappa)
        return -torch.logsumexp(weights.log() - self.beta * energies, 1)
