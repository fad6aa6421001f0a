"""Gaussians that stand for q(x_0 | x_t)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from egd.tensors import expand, inner


@dataclass(frozen=True)
class IsotropicGaussian:
    """N(mean, var I): mean (B, ...), var (B,)."""

    mean: Tensor
    var: Tensor

    def quadratic(self, g: Tensor) -> Tensor:
        """var ||g||^2: (B, ...) -> (B,)"""
        return self.var * inner(g, g)

    def sample(self, noise: Tensor) -> Tensor:
        """mean + sqrt(var) noise: (K, B, ...) -> (K, B, ...)"""
        return self.mean + expand(self.var, self.mean).sqrt() * noise
