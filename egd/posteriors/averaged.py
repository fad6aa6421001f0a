"""Posterior 1, Posterior 2 and the residual form: covariances that depend on t alone, from ``calibrate``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from egd.posteriors.base import Covariance, DiagonalGaussian, FullGaussian, IsotropicGaussian
from egd.posteriors.moments import MomentKind, Moments
from egd.types import Context, Denoiser, Gaussian

__all__ = ["posterior1", "posterior2", "residual"]


@dataclass(frozen=True)
class MomentPosterior:
    """N(D(x_t, t), Sigma(t)), Sigma interpolated on the calibrated grid and clamped to what the data allow."""

    denoiser: Denoiser
    moments: Moments
    kind: MomentKind = "residual"
    covariance: Covariance = "isotropic"

    def __call__(self, x: Tensor, t: Tensor, c: Context = None) -> Gaussian:
        """(B, ...), (B,), c -> mean (B, ...) and the covariance of that time."""
        mean = self.denoiser(x, t, c)
        values = self.variance(t).to(mean.dtype)
        if self.covariance == "isotropic":
            return IsotropicGaussian(mean, values)
        if self.covariance == "diagonal":
            return DiagonalGaussian(mean, values.reshape(mean.shape))
        return FullGaussian.of(mean, values)

    def variance(self, t: Tensor) -> Tensor:
        """Sigma(t), (B,) -> (B,), (B, d) or (B, d, d), linear between grid times."""
        grid, values = self.moments.t, self._grid_values
        place = ((t - grid[0]) / (grid[1] - grid[0])).clamp(0, len(grid) - 1)
        left = place.floor().long().clamp(max=len(grid) - 2)
        weight = (place - left).to(values.dtype).reshape(-1, *[1] * (values.ndim - 1))
        return torch.lerp(values[left], values[left + 1], weight).to(t.dtype)

    @cached_property
    def _grid_values(self) -> Tensor:
        m = self.moments
        return {"isotropic": m.clamped, "diagonal": m.clamped_diagonal, "full": m.clamped_full}[self.covariance](self.kind)


def posterior1(denoiser: Denoiser, moments: Moments, covariance: Covariance = "isotropic") -> MomentPosterior:
    """(sigma^2/alpha^2) [1 - E eps^2], from the predicted noise. AEPO Eq. 21, 22."""
    return MomentPosterior(denoiser, moments, "posterior1", covariance)


def posterior2(denoiser: Denoiser, moments: Moments, covariance: Covariance = "isotropic") -> MomentPosterior:
    """Var(x_0) - E(mu - m)^2, from the data's variance. AEPO Eq. 24, 41."""
    return MomentPosterior(denoiser, moments, "posterior2", covariance)


def residual(denoiser: Denoiser, moments: Moments, covariance: Covariance = "isotropic") -> MomentPosterior:
    """E(x_0 - mu)^2, from the denoiser's error: cannot be negative. AEPO Eq. 42, 43."""
    return MomentPosterior(denoiser, moments, "residual", covariance)
