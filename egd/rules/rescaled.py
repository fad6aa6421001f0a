"""AEPO's rescaled guidance."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from egd.bounds import Omega
from egd.rules.additive import scaled
from egd.tensors import expand, norm

__all__ = ["Rescaled"]


@dataclass(frozen=True)
class Rescaled:
    """(s - omega grad E_t) ||s|| / ||s - omega grad E_t||: AEPO Eq. 45, norms per sample.

    Guidance turns the score but never lengthens it. That is robust to a wrong energy and never exact.
    """

    omega: Omega | Tensor = 1.0

    def __call__(self, score: Tensor, grad: Tensor, t: Tensor) -> Tensor:
        """(B, ...), (B, ...), (B,) -> (B, ...)"""
        guided = score - scaled(self.omega, grad)
        return guided * expand(norm(score) / norm(guided).clamp(min=1e-12), guided)
