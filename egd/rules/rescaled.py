"""AEPO's rescaled guidance rule."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from egd.bounds import Omega
from egd.rules.additive import scaled
from egd.tensors import expand, norm

__all__ = ["Rescaled"]


@dataclass(frozen=True)
class Rescaled:
    """Rescaled rule (s - omega grad E_t) ||s|| / ||s - omega grad E_t||, norms per sample. AEPO Eq. 45.

    Guidance turns the score and keeps its length. The rule is robust to a wrong energy, and never exact.
    """

    omega: Omega | Tensor = 1.0

    def __call__(self, score: Tensor, grad: Tensor, t: Tensor) -> Tensor:
        """Return the guided score: (B, ...), (B, ...), (B,) -> (B, ...)."""
        guided = score - scaled(self.omega, grad)
        return guided * expand(norm(score) / norm(guided).clamp(min=1e-12), guided)
