"""Exact samples of the target q(x_0) exp(-beta E(x_0)) / Z without diffusion: data, weighted and resampled."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from egd.experiments.toy2d.data import DataSet


@dataclass(frozen=True)
class Draws:
    """Many points x_0 ~ q (n, 2) and their energies (n,), which represent the target with the weights exp(-beta E) / sum.

    This is self-normalised importance sampling: exact as n grows, and as accurate as ``ess`` independent samples of the target.
    """

    points: Tensor
    energies: Tensor

    @staticmethod
    @torch.no_grad()
    def of(data: DataSet, n: int, generator: torch.Generator, batch: int = 65_536) -> Draws:
        """Draw n points of a data set and compute their energies, in batches to save memory."""
        points, _ = data.sample(n, generator)
        return Draws(points, torch.cat([data.energy(part, None) for part in torch.split(points, batch)]))

    def weights(self, beta: float) -> Tensor:
        """Return the normalised weights (n,)."""
        return torch.softmax(-beta * self.energies.double(), 0)

    def ess(self, beta: float) -> float:
        """Return the effective sample size 1 / sum w^2."""
        return float(1 / self.weights(beta).square().sum())

    def mean_energy(self, beta: float) -> float:
        """Return E[E(x_0)] under the target."""
        return float(self.weights(beta) @ self.energies.double())

    def resample(self, beta: float, n: int, generator: torch.Generator) -> Tensor:
        """Draw n points of the target with replacement, (n, 2)."""
        return self.points[torch.multinomial(self.weights(beta), n, replacement=True, generator=generator)]
