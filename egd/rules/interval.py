"""Guidance in an interval of noise levels only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from egd.bounds import Number, Omega
from egd.rules.base import wrapped
from egd.tensors import expand
from egd.types import GuidanceRule

__all__ = ["Interval"]


@dataclass(frozen=True)
class Interval:
    """Inner rule for t in [low, high], and the unguided score elsewhere (arXiv:2404.07724, there for classifier-free guidance).

    It serves estimates of E_t that are good at some noise levels and wrong at others. It saves no time: the energy is evaluated
    everywhere. The inner ``rule`` is additive at ``omega`` where none is given. Raises ValueError unless low < high.
    """

    low: Number = 0.0
    high: Number = 1.0
    rule: GuidanceRule | None = None
    omega: Omega | Tensor = 1.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"need low < high, got [{self.low}, {self.high}]: data is at t = 0, noise at t = 1")

    def __call__(self, score: Tensor, grad: Tensor, t: Tensor) -> Tensor:
        """Return the guided score: (B, ...), (B, ...), (B,) -> (B, ...)."""
        inside = (t >= self.low) & (t <= self.high)
        return torch.where(expand(inside, score), wrapped(self.rule, self.omega)(score, grad, t), score)
