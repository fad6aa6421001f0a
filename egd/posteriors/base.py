"""Gaussians that approximate q(x_0 | x_t), one per row: isotropic, diagonal or full covariance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from egd.tensors import expand, inner

Covariance = Literal["isotropic", "diagonal", "full"]


@dataclass(frozen=True)
class IsotropicGaussian:
    """Gaussian N(mean, var I): mean (B, ...), var (B,)."""

    mean: Tensor
    var: Tensor

    def quadratic(self, g: Tensor) -> Tensor:
        """Return var ||g||^2: (B, ...) -> (B,)."""
        return self.var * inner(g, g)

    def root(self) -> Tensor:
        """Return sqrt(var) I: (B, d, d)."""
        eye = torch.eye(self.mean[0].numel(), dtype=self.mean.dtype, device=self.mean.device)
        return self.var.sqrt()[:, None, None] * eye

    def sample(self, noise: Tensor) -> Tensor:
        """Return mean + sqrt(var) noise: (K, B, ...) -> (K, B, ...)."""
        return self.mean + expand(self.var, self.mean).sqrt() * noise


@dataclass(frozen=True)
class DiagonalGaussian:
    """Gaussian N(mean, diag(var)): mean and var (B, ...)."""

    mean: Tensor
    var: Tensor

    def quadratic(self, g: Tensor) -> Tensor:
        """Return sum_i var_i g_i^2: (B, ...) -> (B,)."""
        return inner(self.var * g, g)

    def root(self) -> Tensor:
        """Return diag(sqrt(var)): (B, d, d)."""
        return self.var.sqrt().flatten(1).diag_embed()

    def sample(self, noise: Tensor) -> Tensor:
        """Return mean + sqrt(var) noise: (K, B, ...) -> (K, B, ...)."""
        return self.mean + self.var.sqrt() * noise


@dataclass(frozen=True)
class FullGaussian:
    """Gaussian N(mean, R R^T): mean (B, ...), ``factor`` R (B, d, d) for the flattened event of d entries."""

    mean: Tensor
    factor: Tensor

    @staticmethod
    def of(mean: Tensor, cov: Tensor) -> FullGaussian:
        """Make the Gaussian of a covariance (B, d, d), repaired where it is not positive definite (``cholesky``)."""
        return FullGaussian(mean, cholesky(cov))

    def quadratic(self, g: Tensor) -> Tensor:
        """Return ||R^T g||^2: (B, ...) -> (B,)."""
        return torch.einsum("bij,bi->bj", self.factor, g.flatten(1)).square().sum(1)

    def root(self) -> Tensor:
        """Return R: (B, d, d)."""
        return self.factor

    def sample(self, noise: Tensor) -> Tensor:
        """Return mean + R noise: (K, B, ...) -> (K, B, ...)."""
        return self.mean + torch.einsum("bij,kbj->kbi", self.factor, noise.flatten(2)).reshape(len(noise), *self.mean.shape)


def cholesky(cov: Tensor, floor: float = 1e-6) -> Tensor:
    """Compute the Cholesky factor (B, d, d) of covariances (B, d, d), differentiably.

    Rows that are not positive definite have their eigenvalues raised to ``floor`` times their largest (or to 1e-12, if that is
    more). The correction is held constant under differentiation, because eigenvectors of repeated eigenvalues have no
    derivative. Rows that are not finite, of a sample that has diverged, become nan.
    """
    sound, cov = finite_rows(0.5 * (cov + cov.mT))
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(cov)
    if bool(failed.any()):
        repaired = torch.where(failed[:, None, None] > 0, _raised(cov, floor), cov.detach())
        factor = torch.linalg.cholesky(repaired + (cov - cov.detach()))
    return torch.where(sound, factor, torch.nan)


def finite_rows(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Tell which of the matrices (B, d, d) are finite, (B, 1, 1), and return them with the identity in place of the others.

    Without this, one diverged sample would end the whole batch with an error of LAPACK.
    """
    sound = matrices.isfinite().flatten(1).all(1)[:, None, None]
    eye = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    return sound, torch.where(sound, matrices, eye)


@torch.no_grad()
def _raised(cov: Tensor, floor: float) -> Tensor:
    """Raise the eigenvalues of cov (B, d, d) to the floor.

    The result is composed from eigenvectors: added to cov, a small floor would be lost to rounding beside a large negative
    eigenvalue.
    """
    values, vectors = torch.linalg.eigh(cov)
    least = (floor * values[:, -1:]).clamp(min=1e-12)
    raised: Tensor = (vectors * values.maximum(least)[:, None, :]) @ vectors.mT
    return raised
