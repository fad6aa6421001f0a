"""The cosine schedule: a quarter of a circle from data to noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from egd.bounds import ProperShare

__all__ = ["VPCosine"]


@dataclass(frozen=True)
class VPCosine:
    """Cosine schedule, alpha_t = cos(pi s t / 2), sigma_t = sin(pi s t / 2) (arXiv:2102.09672 without its offset,
    arXiv:2202.00512).

    ``s`` < 1 ends the schedule short of alpha = 0, by which a noise-predicting denoiser would divide. At the default alpha_1 =
    0.008, near VP-linear's.
    """

    s: ProperShare = 0.995

    def alpha(self, t: Tensor) -> Tensor:
        """Return alpha_t: (B,) -> (B,)."""
        return torch.cos(t * (self.s * torch.pi / 2))

    def sigma(self, t: Tensor) -> Tensor:
        """Return sigma_t: (B,) -> (B,)."""
        return torch.sin(t * (self.s * torch.pi / 2))

    def time(self, lam: Tensor) -> Tensor:
        """Return the t at which log(alpha_t / sigma_t) = lam: (B,) -> (B,)."""
        return 2 / (self.s * torch.pi) * torch.atan(torch.exp(-lam))
