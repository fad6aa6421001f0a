"""The cosine schedule: a quarter of a circle from data to noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from egd.bounds import ProperShare

__all__ = ["VPCosine"]


@dataclass(frozen=True)
class VPCosine:
    """alpha_t = cos(pi s t / 2), sigma_t = sin(pi s t / 2) (arXiv:2102.09672 without its offset, arXiv:2202.00512).

    ``s`` < 1 ends it short of alpha = 0, by which a noise-predicting denoiser would divide: alpha_1 = 0.008 is VP-linear's.
    """

    s: ProperShare = 0.995

    def alpha(self, t: Tensor) -> Tensor:
        """(B,) -> (B,)"""
        return torch.cos(t * (self.s * torch.pi / 2))

    def sigma(self, t: Tensor) -> Tensor:
        """(B,) -> (B,)"""
        return torch.sin(t * (self.s * torch.pi / 2))

    def time(self, lam: Tensor) -> Tensor:
        """The t at which log(alpha_t / sigma_t) = lam."""
        return 2 / (self.s * torch.pi) * torch.atan(torch.exp(-lam))
