"""The exact rule."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from egd.bounds import Omega
from egd.tensors import expand

__all__ = ["Additive"]


@dataclass(frozen=True)
class Additive:
    """s - omega grad E_t: AEPO Eq. 13 with a scale; exact at omega = 1. ``omega`` is one number or one a row, (B,)."""

    omega: Omega | Tensor = 1.0

    def __call__(self, score: Tensor, grad: Tensor, t: Tensor) -> Tensor:
        """(B, ...), (B, ...), (B,) -> (B, ...)"""
        return score - scaled(self.omega, grad)


def scaled(omega: float | Tensor, grad: Tensor) -> Tensor:
    """omega * gradient, omega a number or (B,)."""
    return (expand(omega, grad) if isinstance(omega, Tensor) else omega) * grad
