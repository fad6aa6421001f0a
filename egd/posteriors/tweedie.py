"""The covariance by Tweedie's formula, from the denoiser's Jacobian at each sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from egd.bounds import Candidates, Samples, Seed
from egd.posteriors.base import DiagonalGaussian, FullGaussian, IsotropicGaussian
from egd.tensors import jacobian_columns, jacobian_rows
from egd.types import Context, Denoiser, Gaussian, Schedule

__all__ = ["Tweedie"]


@dataclass(frozen=True)
class Tweedie:
    """Posterior N(D, (sigma^2/alpha) dD/dx_t) by the second-order Tweedie formula (arXiv:2206.06340 Eq. 7).

    It is exact for an exact denoiser. ``covariance`` is ``full``, its ``diagonal``, or its ``trace`` over d (isotropic). The
    Jacobian is computed in forward mode, one column a dimension, or with ``reverse`` in reverse mode, for networks with parts
    that have no forward derivative (fused attention); the Jacobian of an exact denoiser is symmetric. Above ``probe_above``
    dimensions the diagonal and the trace are averages over ``probes`` random signs (Hutchinson), and ``full`` raises
    ValueError. Negative variances, which an exact denoiser does not have, are raised to zero. ``detach`` leaves the covariance
    out of the gradient of the energy: cheaper, and no longer exact. Where alpha_t = 0 the formula is 0 / 0, and the covariance
    is that of t = 0.999.
    """

    denoiser: Denoiser
    schedule: Schedule
    covariance: Literal["trace", "diagonal", "full"] = "full"
    probe_above: Samples = 64
    probes: Candidates = 8
    seed: Seed = 0
    detach: bool = False
    reverse: bool = False

    def __call__(self, x: Tensor, t: Tensor, c: Context = None) -> Gaussian:
        """Return the posterior: (B, ...), (B,), c -> mean (B, ...) and covariance of every row."""
        mean = self.denoiser(x, t, c)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach):
            if self.covariance == "full":
                return FullGaussian.of(mean, self._full(x, t, c))
            var = self._diagonal(x, t, c).clamp(min=1e-12)
        return IsotropicGaussian(mean, var.flatten(1).mean(1)) if self.covariance == "trace" else DiagonalGaussian(mean, var)

    def _columns(self, x: Tensor, t: Tensor, c: Context, directions: Tensor) -> Tensor:
        """Compute (sigma^2/alpha) dD/dx v for every direction v: (K, d) -> (K, B, d)."""
        t = torch.where(self.schedule.alpha(t) > 0, t, 0.999)
        product = jacobian_rows if self.reverse else jacobian_columns
        jacobian = product(self.denoiser, x, t, c, directions)
        gain = self.schedule.sigma(t) ** 2 / self.schedule.alpha(t)
        return gain[None, :, None] * jacobian

    def _full(self, x: Tensor, t: Tensor, c: Context) -> Tensor:
        """Compute the covariance (B, d, d). Raises ValueError above ``probe_above`` dimensions."""
        d = x[0].numel()
        if d > self.probe_above:
            raise ValueError(
                f"a full covariance of {d} dimensions takes {d} forward passes; raise probe_above (now {self.probe_above}) "
                "or use covariance='diagonal'"
            )
        return self._columns(x, t, c, torch.eye(d, dtype=x.dtype, device=x.device)).permute(1, 2, 0)

    def _diagonal(self, x: Tensor, t: Tensor, c: Context) -> Tensor:
        """Compute the diagonal of the covariance: (B, ...)."""
        d = x[0].numel()
        if d <= self.probe_above:
            return self._full(x, t, c).diagonal(dim1=1, dim2=2).reshape(x.shape)
        generator = torch.Generator().manual_seed(self.seed)
        signs = (2 * torch.randint(0, 2, (self.probes, d), generator=generator) - 1).to(x)
        estimate = (signs[:, None] * self._columns(x, t, c, signs)).mean(0)
        return estimate.reshape(x.shape)
