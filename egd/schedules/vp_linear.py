"""The variance-preserving SDE with linear rates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from egd.bounds import NotNegative, Positive

__all__ = ["VPLinear"]


@dataclass(frozen=True)
class VPLinear:
    """Variance-preserving SDE of Song et al. (arXiv:2011.13456), log alpha_t = -t^2 (beta_max - beta_min)/4 - t beta_min/2.

    sigma_t^2 = 1 - alpha_t^2. QGPO and AEPO use this schedule.
    """

    beta_min: NotNegative = 0.1
    beta_max: Positive = 20.0

    def log_alpha(self, t: Tensor) -> Tensor:
        """Return log alpha_t: (B,) -> (B,)."""
        return -(t**2) * (self.beta_max - self.beta_min) / 4 - t * self.beta_min / 2

    def alpha(self, t: Tensor) -> Tensor:
        """Return alpha_t: (B,) -> (B,)."""
        return self.log_alpha(t).exp()

    def sigma(self, t: Tensor) -> Tensor:
        """Return sigma_t: (B,) -> (B,); expm1 keeps it accurate as t -> 0."""
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def time(self, lam: Tensor) -> Tensor:
        """Return the t at which log(alpha_t / sigma_t) = lam, in closed form (DPM-Solver, appendix D.4): (B,) -> (B,)."""
        y = torch.nn.functional.softplus(-2 * lam)  # = -2 log alpha
        span = self.beta_max - self.beta_min
        return 2 * y / ((self.beta_min**2 + 2 * span * y).sqrt() + self.beta_min)
