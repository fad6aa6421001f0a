"""The definition of E_t, averaged over samples of the Gaussian posterior."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from egd.bounds import BetaOrZero, Samples, Seed
from egd.contracts import energy_values, posterior_at
from egd.tensors import repeat_context
from egd.types import Context, Energy, Posterior

__all__ = ["MonteCarlo"]


@dataclass(frozen=True)
class MonteCarlo:
    """Monte Carlo estimate E_t ~ -log 1/K sum_k exp(-beta E(mu + Sigma^(1/2) z_k)), AEPO Eq. 11 over a Gaussian posterior.

    It is exact as K -> infinity when the posterior is Gaussian. The z_k come in antithetic pairs, are drawn from a fixed
    ``seed`` and shared by all rows, so that the estimate is one smooth function of x_t.
    """

    energy: Energy
    posterior: Posterior
    beta: BetaOrZero = 1.0
    samples: Samples = 16
    seed: Seed = 0

    def __call__(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        """Estimate E_t: (B, ...), (B,), c -> (B,)."""
        q = posterior_at(self.posterior, x, t, c)
        points = q.sample(antithetic(self.samples, x[:1], self.seed)).transpose(0, 1).flatten(0, 1)  # (B * K, ...)
        energies = energy_values(self.energy, points, repeat_context(c, self.samples)).reshape(len(x), self.samples)
        return math.log(self.samples) - torch.logsumexp(-self.beta * energies, 1)


def antithetic(n: int, like: Tensor, seed: int) -> Tensor:
    """Draw n standard normals shaped like ``like`` in pairs z, -z: (n, ...).

    They are the same for a seed whatever the precision of ``like``.
    """
    z = torch.randn((n + 1) // 2, *like.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32).to(like)
    return torch.cat([z, -z])[:n]
