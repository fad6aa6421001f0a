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

    def __call__(self, score: Tensor, slope: Tensor, t: Tensor) -> Tensor:
        """(B, ...), (B, ...), (B,) -> (B, ...)"""
        return score - scaled(self.omega, slope)


def scaled(omega: float | Tensor, slope: Tensor) -> Tensor:
    """omega * slope, omega a number or (B,)."""
    return (expand(omega, slope) if isinstance(omega, Tensor) else omega) * slope
