"""Distances between sets of samples."""

from __future__ import annotations

import torch
from torch import Tensor


def sliced_wasserstein(x: Tensor, y: Tensor, projections: int, generator: torch.Generator) -> Tensor:
    """Compute the sliced Wasserstein-2 distance of the empirical distributions of x (N, ...) and y (M, ...): ().

    The distance is the square root of the mean over random unit directions u of W_2^2(<u, x>, <u, y>), where in one dimension
    W_2^2 = int_0^1 (F_x^-1(s) - F_y^-1(s))^2 ds. The quantile functions are step functions and are integrated exactly, so that
    N and M may differ. Events are flattened. Two samples of one distribution are not at distance 0: compare with that floor.
    Raises ValueError for an empty set, different event shapes or no projection.
    """
    if projections < 1:
        raise ValueError(f"projections is 1 or more; got {projections}")
    if x.shape[1:] != y.shape[1:] or not (len(x) and len(y)):
        raise ValueError(f"needs two non-empty sets of one event shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    u = torch.randn(x.shape[1], projections, generator=generator, dtype=x.dtype, device=generator.device).to(x.device)
    u = u / u.norm(dim=0)
    i, j, width = _common_steps(len(x), len(y), x.device)
    gap = (x @ u).sort(0).values[i] - (y @ u).sort(0).values[j]
    squared: Tensor = width.to(gap) @ gap.square()  # (projections,)
    return squared.mean().sqrt()


def _common_steps(n: int, m: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the ranks i and j of the points where the quantile functions of n and of m points are constant, and the widths."""
    both = [m * torch.arange(n + 1, device=device), n * torch.arange(1, m, device=device)]  # in units of 1 / (n m)
    cuts: Tensor = torch.unique(torch.cat(both))
    return cuts[:-1] // m, cuts[:-1] // n, cuts.diff().double() / (n * m)


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """Compute 2 E|X - Y| - E|X - X'| - E|Y - Y'| of samples x (N, ...), y (M, ...): () (Szekely and Rizzo, 2013).

    The estimate is unbiased: 0 in expectation for samples of one distribution, where it may come out negative, and positive for
    any others. Events are flattened. Raises ValueError for sets of fewer than two or of different event shapes.
    """
    if x.shape[1:] != y.shape[1:] or min(len(x), len(y)) < 2:
        raise ValueError(f"needs two sets of two or more of one event shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    within = [_distances(v, v).sum() / (len(v) * (len(v) - 1)) for v in (x, y)]
    return 2 * _distances(x, y).mean() - within[0] - within[1]


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Compute ||x_i - y_j||, (N, M), from differences: |x|^2 + |y|^2 - 2 x y loses all digits where points lie far from 0."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
