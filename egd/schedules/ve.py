"""The variance-exploding SDE."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from egd.bounds import Positive

__all__ = ["VE"]


@dataclass(frozen=True)
class VE:
    """Variance-exploding SDE of Song et al. (arXiv:2011.13456), alpha_t = 1, sigma_t = sigma_min (sigma_max / sigma_min)^t.

    At exactly t = 0 sigma is 0, the data; just above it is sigma_min. Raises ValueError unless 0 < sigma_min < sigma_max.
    """

    sigma_min: Positive = 0.01
    sigma_max: Positive = 50.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"need 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}")

    def alpha(self, t: Tensor) -> Tensor:
        """Return alpha_t: (B,) -> (B,)."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """Return sigma_t: (B,) -> (B,)."""
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return torch.where(t > 0, torch.exp(low + t * (high - low)), torch.zeros_like(t))

    def time(self, lam: Tensor) -> Tensor:
        """Return the t at which -log sigma_t = lam, 0 below sigma_min: (B,) -> (B,)."""
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return ((-lam - low) / (high - low)).clamp(min=0)

    def input_scale(self, t: Tensor) -> Tensor:
        """Return 1 / sqrt(1 + sigma_t^2): (B,) -> (B,). It brings x_t of data at unit scale to unit scale at any noise."""
        return (1 + self.sigma(t) ** 2).rsqrt()
