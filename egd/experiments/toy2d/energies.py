"""Energies in the plane that are smooth everywhere and equal CEP's labels on the data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from egd.types import Context


@dataclass(frozen=True)
class SoftLabel:
    """E(x) = sum_k softmax_k(-||x - p_k||^2 / (2 width^2)) e_k for points p_k (K, 2) with energies e_k (K,).

    Where the data are the points plus noise N(0, width^2 I) this is E[label | x]: on the data it equals the label wherever the
    labels do not overlap.
    """

    points: Tensor
    labels: Tensor
    width: float

    def __call__(self, x: Tensor, c: Context = None) -> Tensor:
        """Compute the energy: (B, 2) -> (B,)."""
        distance = (x[:, None] - self.points.to(x)).square().sum(2)  # (B, K)
        value: Tensor = torch.softmax(-distance / (2 * self.width**2), 1) @ self.labels.to(x)
        return value


@dataclass(frozen=True)
class RingLabel:
    """The energy of ``SoftLabel`` with the radius in place of x: E = e_k on the ring of radius r_k, for ``radii`` (K,)."""

    radii: Tensor
    labels: Tensor
    width: float

    def __call__(self, x: Tensor, c: Context = None) -> Tensor:
        """Compute the energy: (B, 2) -> (B,)."""
        distance = (smooth_radius(x)[:, None] - self.radii.to(x)).square()  # (B, K)
        value: Tensor = torch.softmax(-distance / (2 * self.width**2), 1) @ self.labels.to(x)
        return value


def smooth_radius(x: Tensor, inside: float = 0.01) -> Tensor:
    """Compute sqrt(||x||^2 + inside^2), smooth at the origin: (B, 2) -> (B,)."""
    return (x.square().sum(1) + inside**2).sqrt()


def columns(x: Tensor, c: Context = None) -> Tensor:
    """Return 0 in the columns [-4, -2] and [0, 2], 1 in the others, with edges of width 0.03: (B, 2) -> (B,)."""
    return torch.sigmoid(-torch.sin(math.pi / 2 * x[:, 0]) / 0.05)


def outward(x: Tensor, c: Context = None) -> Tensor:
    """Compute 1 - ||x||^2 / 9 through a softplus of width 0.05, which levels off at 0: (B, 2) -> (B,)."""
    return torch.nn.functional.softplus(1 - x.square().sum(1) / 9, beta=20)


def inward(x: Tensor, c: Context = None) -> Tensor:
    """Compute 0.3 ||x||: (B, 2) -> (B,)."""
    return 0.3 * smooth_radius(x)
