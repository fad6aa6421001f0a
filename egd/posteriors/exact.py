"""The exact moments of q(x_0 | x_t) for a Gaussian mixture."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from egd.mixtures import GaussianMixture
from egd.posteriors.base import FullGaussian
from egd.types import Context, Schedule

__all__ = ["ExactPosterior"]


@dataclass(frozen=True)
class ExactPosterior:
    """Mean and full covariance of the exact posterior of a Gaussian mixture; for benchmarks and tests."""

    mixture: GaussianMixture
    schedule: Schedule

    def __call__(self, x: Tensor, t: Tensor, c: Context = None) -> FullGaussian:
        """Return N(mean (B, D), covariance (B, D, D)) for x (B, D) and t (B,)."""
        log_w, means, covs = self.mixture.posterior(self.schedule, x, t)
        w = log_w.exp()[..., None]
        mean = (w * means).sum(1)
        offset = means - mean[:, None]
        cov = (w[..., None] * (covs + offset[..., :, None] * offset[..., None, :])).sum(1)
        return FullGaussian.of(mean, cov)
