"""Gaussian mixtures: every quantity of energy-guided diffusion in closed form, for tests and benchmarks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from egd.tensors import expand
from egd.types import Context, Schedule


@dataclass(frozen=True)
class GaussianMixture:
    """Gaussian mixture sum_k w_k N(m_k, S_k): ``log_weights`` (K,), ``means`` (K, D), ``covs`` (K, D, D)."""

    log_weights: Tensor
    means: Tensor
    covs: Tensor

    @staticmethod
    def random(
        components: int, dim: int, *, seed: int = 0, spread: float = 2.0, dtype: torch.dtype = torch.float64
    ) -> GaussianMixture:
        """Draw a mixture with random weights, means ~ N(0, spread^2 I) and well-conditioned random covariances."""
        g = torch.Generator().manual_seed(seed)
        root = 0.3 * torch.randn(components, dim, dim, generator=g, dtype=dtype)
        covs = root @ root.mT + 0.1 * torch.eye(dim, dtype=dtype)
        means = spread * torch.randn(components, dim, generator=g, dtype=dtype)
        return GaussianMixture(torch.randn(components, generator=g, dtype=dtype).log_softmax(0), means, covs)

    def diffused(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return the component means (B, K, D) and covariances (B, K, D, D) of x_t, for alpha and sigma (B,)."""
        eye = torch.eye(self.means.shape[1], dtype=self.means.dtype, device=self.means.device)
        covs = alpha[:, None, None, None] ** 2 * self.covs + sigma[:, None, None, None] ** 2 * eye
        return alpha[:, None, None] * self.means, covs

    def log_prob(self, x: Tensor, alpha: Tensor | None = None, sigma: Tensor | None = None) -> Tensor:
        """Compute log q_t(x), (B, D) -> (B,); at t = 0 unless alpha and sigma are given."""
        one = torch.ones(1, dtype=x.dtype, device=x.device)
        means, covs = self.diffused(one if alpha is None else alpha, 0 * one if sigma is None else sigma)
        return torch.logsumexp(self._log_joint(x, means, covs), 1)

    def _log_joint(self, x: Tensor, means: Tensor, covs: Tensor) -> Tensor:
        root = torch.linalg.cholesky(covs)
        eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device).expand_as(root)
        z = _apply(torch.linalg.solve_triangular(root, eye, upper=False), x[:, None] - means)
        log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        joint: Tensor = self.log_weights - 0.5 * z.square().sum(-1) - log_det - 0.5 * x.shape[1] * math.log(2 * math.pi)
        return joint

    def posterior(self, schedule: Schedule, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute q(x_0 | x_t), a mixture again: log-weights (B, K), means (B, K, D) and covariances (B, K, D, D).

        The covariances do not depend on x_t: they are (1, K, D, D) where all times are the same.
        """
        t = t[:1] if bool((t == t[0]).all()) else t
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        means, covs = self.diffused(alpha, sigma)
        log_w = self._log_joint(x, means, covs).log_softmax(1)
        gain = alpha[:, None, None, None] * torch.linalg.solve(covs, self.covs.expand_as(covs)).mT  # alpha S C^-1
        mean = self.means + _apply(gain, x[:, None] - means)
        cov = self.covs - alpha[:, None, None, None] * gain @ self.covs
        return log_w, mean, cov

    def denoise(self, schedule: Schedule, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        """Compute the exact denoiser E[x_0 | x_t]: (B, D)."""
        log_w, mean, _ = self.posterior(schedule, x, t)
        return (log_w.exp()[..., None] * mean).sum(1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n samples: (n, D)."""
        k = torch.multinomial(self.log_weights.exp(), n, replacement=True, generator=generator)
        z = torch.randn(n, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[k] + torch.einsum("bij,bj->bi", torch.linalg.cholesky(self.covs)[k], z)

    def noised(self, schedule: Schedule, t: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one x_t ~ q_t for every t (B,): (B, D)."""
        x0 = self.sample(len(t), generator)
        z = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
        return expand(schedule.alpha(t), x0) * x0 + expand(schedule.sigma(t), x0) * z

    def tilted(self, energy: Quadratic, beta: float) -> GaussianMixture:
        """Return the target q(x) exp(-beta E(x)) / Z, a mixture again.

        Raises ValueError unless beta A + S^-1 is positive definite.
        """
        log_z, means, covs = energy.tilt(self.means[None], self.covs[None], beta)
        return GaussianMixture((self.log_weights + log_z[0]).log_softmax(0), means[0], covs[0])

    def energy(self, schedule: Schedule, energy: Quadratic, beta: float, x: Tensor, t: Tensor) -> Tensor:
        """Compute the exact E_t(x_t) = -log E[exp(-beta E(x_0)) | x_t]: (B,). AEPO Eq. 11."""
        log_w, mean, cov = self.posterior(schedule, x, t)
        log_z, _, _ = energy.tilt(mean, cov, beta)
        return -torch.logsumexp(log_w + log_z, 1)


@dataclass(frozen=True)
class Quadratic:
    """Quadratic energy E(x) = 1/2 x^T A x + b^T x + e: ``A`` (D, D) symmetric, ``b`` (D,)."""

    A: Tensor
    b: Tensor
    e: float = 0.0

    def __call__(self, x: Tensor, c: Context = None) -> Tensor:
        """Evaluate E: (B, D) -> (B,)."""
        return 0.5 * torch.einsum("...i,ij,...j->...", x, self.A, x) + x @ self.b + self.e

    def tilt(self, mean: Tensor, cov: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
        """Compute log Z = log E[exp(-beta E)] (B, K), and the tilted mean and covariance, under Gaussians.

        The Gaussians are N(mean (B, K, D), cov (B | 1, K, D, D)). With H = beta A, g = beta (A mean + b): log Z = -beta E(mean)
        + 1/2 g^T (I + cov H)^-1 cov g - 1/2 log det(I + cov H). Raises ValueError where the integral diverges.
        """
        H = beta * self.A
        g = beta * (mean @ self.A + self.b)
        M = torch.eye(H.shape[0], dtype=mean.dtype, device=mean.device) + cov @ H
        if not bool((torch.linalg.eigvals(M.detach()).real > 0).all()):
            raise ValueError(f"q exp(-beta E) has no finite integral at beta = {beta}; use a smaller beta")
        log_det = torch.linalg.slogdet(M).logabsdet
        tilted_cov = torch.linalg.solve(M, cov)
        step = _apply(tilted_cov, g)
        log_z = -beta * self(mean) + 0.5 * (g * step).sum(-1) - 0.5 * log_det
        return log_z, mean - step, tilted_cov


def _apply(matrix: Tensor, v: Tensor) -> Tensor:
    """Multiply matrices (B, K, D, D), or (1, K, D, D) for all rows, with vectors (B, K, D)."""
    if len(matrix) == 1:
        return torch.einsum("kij,bkj->bki", matrix[0], v)
    return torch.einsum("bkij,bkj->bki", matrix, v)
