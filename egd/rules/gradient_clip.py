"""A bound on the norm of an energy's gradient."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from egd.bounds import Omega, Positive
from egd.rules.base import wrapped
from egd.tensors import expand, norm
from egd.types import GuidanceRule

__all__ = ["GradientClip"]


@dataclass(frozen=True)
class GradientClip:
    """Rule with a clipped gradient, e min(1, limit / ||e||) in place of e = grad E_t, norms per sample.

    With ``relative`` the bound is limit times ||s||. A shorter gradient is not changed, so the rule is exact there if the inner
    rule is. The inner ``rule`` (additive at ``omega`` where none is given) comes after the clip: its scale multiplies the
    clipped gradient. Raises ValueError unless limit > 0.
    """

    limit: Positive
    relative: bool = False
    rule: GuidanceRule | None = None
    omega: Omega | Tensor = 1.0

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise ValueError(f"limit must be positive, got {self.limit}; for no guidance at all take omega = 0")

    def __call__(self, score: Tensor, grad: Tensor, t: Tensor) -> Tensor:
        """Return the guided score: (B, ...), (B, ...), (B,) -> (B, ...)."""
        bound = self.limit * norm(score) if self.relative else self.limit
        shrink = (bound / norm(grad).clamp(min=1e-12)).clamp(max=1)
        return wrapped(self.rule, self.omega)(score, expand(shrink, grad) * grad, t)
