"""EDM's noise levels, with Karras' spacing as the time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from egd.bounds import Positive

__all__ = ["EDM"]


@dataclass(frozen=True)
class EDM:
    """EDM schedule, alpha_t = 1, sigma_t = (sigma_min^(1/rho) + t (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho.

    Uniform times give the noise levels of Karras et al. (arXiv:2206.00364, Eq. 5). At exactly t = 0 sigma is 0, the data; just
    above it is sigma_min. Raises ValueError unless 0 < sigma_min < sigma_max and rho > 0.
    """

    sigma_min: Positive = 0.002
    sigma_max: Positive = 80.0
    rho: Positive = 7.0

    def __post_init__(self) -> None:
        if not (0 < self.sigma_min < self.sigma_max and self.rho > 0):
            raise ValueError(
                f"need 0 < sigma_min < sigma_max and rho > 0, got {self.sigma_min}, {self.sigma_max} and rho = {self.rho}"
            )

    @property
    def _roots(self) -> tuple[float, float]:
        """sigma_min^(1/rho), and its difference to sigma_max^(1/rho)."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return low, high - low

    def alpha(self, t: Tensor) -> Tensor:
        """Return alpha_t: (B,) -> (B,)."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """Return sigma_t: (B,) -> (B,)."""
        low, span = self._roots
        return torch.where(t > 0, (low + t * span) ** self.rho, torch.zeros_like(t))

    def time(self, lam: Tensor) -> Tensor:
        """Return the t at which -log sigma_t = lam, 0 below sigma_min: (B,) -> (B,)."""
        low, span = self._roots
        return ((torch.exp(-lam / self.rho) - low) / span).clamp(min=0)

    def input_scale(self, t: Tensor) -> Tensor:
        """Return 1 / sqrt(1 + sigma_t^2), EDM's c_in for data of unit variance: (B,) -> (B,)."""
        return (1 + self.sigma(t) ** 2).rsqrt()
