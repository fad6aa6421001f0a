"""Flow matching: a straight line from data to noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from egd.bounds import Positive

__all__ = ["FlowMatching"]


@dataclass(frozen=True)
class FlowMatching:
    """alpha_t = 1 - sigma_t, sigma_t = shift t / (1 + (shift - 1) t): rectified flow (arXiv:2209.03003) for ``shift`` = 1,
    where sigma = t; above 1 more of the time is spent at high noise (arXiv:2403.03206, Eq. 23).

    alpha_1 is 0: there x_t says nothing of x_0, and a noise prediction cannot be turned into one. Raises ValueError unless
    shift > 0.
    """

    shift: Positive = 1.0

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise ValueError(f"need shift > 0, got {self.shift}")

    def alpha(self, t: Tensor) -> Tensor:
        """(B,) -> (B,)"""
        return (1 - t) / (1 + (self.shift - 1) * t)

    def sigma(self, t: Tensor) -> Tensor:
        """(B,) -> (B,)"""
        return self.shift * t / (1 + (self.shift - 1) * t)

    def time(self, lam: Tensor) -> Tensor:
        """The t at which log(alpha_t / sigma_t) = lam."""
        return torch.sigmoid(-lam - math.log(self.shift))
