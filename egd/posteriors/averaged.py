"""Posterior 1, Posterior 2 and the residual form: covariances that depend on t alone, from ``calibrate``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from egd.posteriors.base import Covariance, DiagonalGaussian, FullGaussian, IsotropicGaussian
from egd.posteriors.moments import MomentKind, Moments
from egd.types import Context, Denoiser, Gaussian, Schedule

__all__ = ["posterior1", "posterior2", "residual"]


@dataclass(frozen=True)
class MomentPosterior:
    """Posterior N(D(x_t, t), Sigma(t)) with Sigma interpolated on the calibrated grid, and clamped to the data's variance.

    The quantity that is linear between grid times is Sigma (alpha^2 v + sigma^2) / sigma^2, with v the data's variance. It is
    constant for Gaussian data, Sigma alpha^2 / sigma^2 at low noise (where Sigma bends so much that a line is several times too
    high) and Sigma at high noise. ``schedule`` is the schedule that the moments were estimated under, the one that they hold
    unless given. Without any schedule Sigma itself is linear.
    """

    denoiser: Denoiser
    moments: Moments
    kind: MomentKind = "residual"
    covariance: Covariance = "isotropic"
    schedule: Schedule | None = None

    def __call__(self, x: Tensor, t: Tensor, c: Context = None) -> Gaussian:
        """Return N(D, Sigma(t)): (B, ...), (B,), c -> mean (B, ...) and the covariance at t."""
        mean = self.denoiser(x, t, c)
        values = self.variance(t).to(mean.dtype)
        if self.covariance == "isotropic":
            return IsotropicGaussian(mean, values)
        if self.covariance == "diagonal":
            return DiagonalGaussian(mean, values.reshape(mean.shape))
        return FullGaussian.of(mean, values)

    def variance(self, t: Tensor) -> Tensor:
        """Return Sigma(t): (B,) -> (B,), (B, d) or (B, d, d)."""
        grid, values = self.moments.t, self._grid_values
        place = ((t - grid[0]) / (grid[1] - grid[0])).clamp(0, len(grid) - 1)
        left = place.floor().long().clamp(max=len(grid) - 2)
        weight = (place - left).to(values.dtype).reshape(-1, *[1] * (values.ndim - 1))
        between = torch.lerp(values[left], values[left + 1], weight)
        schedule = self.schedule or self.moments.schedule
        if schedule is None:
            return between.to(t.dtype)
        shrink = _shrinkage(schedule, t, self.moments.data_var).to(values.dtype)
        sigma: Tensor = between * shrink.reshape(weight.shape)
        return (sigma if self._most is None else sigma.minimum(self._most)).to(t.dtype)

    @cached_property
    def _grid_values(self) -> Tensor:
        """Values at the grid times that are interpolated, (T, ...)."""
        m = self.moments
        values = {"isotropic": m.clamped, "diagonal": m.clamped_diagonal, "full": m.clamped_full}[self.covariance](self.kind)
        schedule = self.schedule or m.schedule
        if schedule is None:
            return values
        shrink = _shrinkage(schedule, m.t, m.data_var).to(values.dtype)
        return values / shrink.reshape(-1, *[1] * (values.ndim - 1))

    @cached_property
    def _most(self) -> Tensor | None:
        """Upper bound of the variances, the data's; None for full covariances, which are clamped on the grid alone."""
        m = self.moments
        if self.covariance == "isotropic":
            return m.data_var
        return None if self.covariance == "full" or m.data_cov is None else m.top


def _shrinkage(schedule: Schedule, t: Tensor, var: Tensor) -> Tensor:
    """Return sigma^2 / (alpha^2 v + sigma^2), the share of a Gaussian's variance that remains given x_t: (B,) -> (B,)."""
    noise = schedule.sigma(t) ** 2
    return noise / (schedule.alpha(t) ** 2 * var.to(t.dtype) + noise)


def posterior1(
    denoiser: Denoiser, moments: Moments, covariance: Covariance = "isotropic", schedule: Schedule | None = None
) -> MomentPosterior:
    """Make the posterior with variance (sigma^2/alpha^2) [1 - E eps^2], from the predicted noise. AEPO Eq. 21, 22."""
    return MomentPosterior(denoiser, moments, "posterior1", covariance, schedule)


def posterior2(
    denoiser: Denoiser, moments: Moments, covariance: Covariance = "isotropic", schedule: Schedule | None = None
) -> MomentPosterior:
    """Make the posterior with variance Var(x_0) - E(mu - m)^2, from the data's variance. AEPO Eq. 24, 41."""
    return MomentPosterior(denoiser, moments, "posterior2", covariance, schedule)


def residual(
    denoiser: Denoiser, moments: Moments, covariance: Covariance = "isotropic", schedule: Schedule | None = None
) -> MomentPosterior:
    """Make the posterior with variance E(x_0 - mu)^2, from the denoiser's error; it cannot be negative. AEPO Eq. 42, 43."""
    return MomentPosterior(denoiser, moments, "residual", covariance, schedule)
