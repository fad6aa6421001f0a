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
    """Flow-matching schedule, alpha_t = 1 - sigma_t, sigma_t = shift t / (1 + (shift - 1) t).

    ``shift`` = 1 is rectified flow (arXiv:2209.03003), where sigma = t. Above 1, more of the time is spent at high noise
    (arXiv:2403.03206, Eq. 23). alpha_1 is 0: x_1 holds nothing about x_0, and a noise prediction cannot be turned into x_0
    there. Raises ValueError unless shift > 0.
    """

    shift: Positive = 1.0

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise ValueError(f"need shift > 0, got {self.shift}")

    def alpha(self, t: Tensor) -> Tensor:
        """Return alpha_t: (B,) -> (B,)."""
        return (1 - t) / (1 + (self.shift - 1) * t)

    def sigma(self, t: Tensor) -> Tensor:
        """Return sigma_t: (B,) -> (B,)."""
        return self.shift * t / (1 + (self.shift - 1) * t)

    def time(self, lam: Tensor) -> Tensor:
        """Return the t at which log(alpha_t / sigma_t) = lam: (B,) -> (B,)."""
        return torch.sigmoid(-lam - math.log(self.shift))
