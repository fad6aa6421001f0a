"""The exact guidance rule."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from egd.bounds import Omega
from egd.tensors import expand

__all__ = ["Additive"]


@dataclass(frozen=True)
class Additive:
    """Additive rule s - omega grad E_t, AEPO Eq. 13 with a guidance scale; exact at omega = 1.

    ``omega`` is one number, or one for each row, (B,).
    """

    omega: Omega | Tensor = 1.0

    def __call__(self, score: Tensor, grad: Tensor, t: Tensor) -> Tensor:
        """Return the guided score: (B, ...), (B, ...), (B,) -> (B, ...)."""
        return score - scaled(self.omega, grad)


def scaled(omega: float | Tensor, grad: Tensor) -> Tensor:
    """Multiply the gradient by omega, a number or (B,)."""
    return (expand(omega, grad) if isinstance(omega, Tensor) else omega) * grad
