"""A guidance scale that changes along the reverse process."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from egd.bounds import NotNegative, Omega, Positive
from egd.rules.base import wrapped
from egd.tensors import expand
from egd.types import GuidanceRule

__all__ = ["Scheduled"]

ShapeName = Literal["linear", "cosine", "power"]
Shape: TypeAlias = Callable[[Tensor], Tensor]
"""Shape of the schedule, usually from 0 to 1: u = 1 - t (B,), 0 at noise and 1 at data -> (B,)."""


@dataclass(frozen=True)
class Scheduled:
    """Rule with a scheduled scale, w(t) grad E_t in place of grad E_t, w(t) = at_noise + (at_data - at_noise) shape(1 - t).

    By default the scale rises from 0 at t = 1 to omega at t = 0; scales that rise towards the data served classifier-free
    guidance best in arXiv:2404.13040. With u = 1 - t the shapes are u (linear), (1 - cos(pi u)) / 2 (cosine) and u^power; in
    Python, any function of u. The inner ``rule`` is additive at ``omega`` where none is given.
    """

    shape: ShapeName | Shape = "cosine"
    at_noise: NotNegative = 0.0
    at_data: NotNegative = 1.0
    power: Positive = 2.0
    rule: GuidanceRule | None = None
    omega: Omega | Tensor = 1.0

    def __call__(self, score: Tensor, grad: Tensor, t: Tensor) -> Tensor:
        """Return the guided score: (B, ...), (B, ...), (B,) -> (B, ...)."""
        return wrapped(self.rule, self.omega)(score, expand(self.weight(t), grad) * grad, t)

    def weight(self, t: Tensor) -> Tensor:
        """Return w(t): (B,) -> (B,)."""
        return self.at_noise + (self.at_data - self.at_noise) * self._shape(1 - t)

    def _shape(self, u: Tensor) -> Tensor:
        if callable(self.shape):
            return self.shape(u)
        shapes: dict[ShapeName, Tensor] = {
            "linear": u,
            "cosine": (1 - torch.cos(math.pi * u)) / 2,
            "power": u**self.power,
        }
        return shapes[self.shape]
