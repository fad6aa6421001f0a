"""The energy to second order around the posterior mean."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from egd.bounds import BetaOrZero, Positive, Width
from egd.contracts import energy_values, posterior_at
from egd.posteriors.base import finite_rows
from egd.samplers.watching import note_clips
from egd.tensors import transformed, value_gradient_hessian
from egd.types import Context, Energy, Posterior

__all__ = ["SecondOrder"]


@dataclass
class ClipCount:
    """Count of clips: rows whose curvature was clipped, of all rows."""

    clipped: int = 0
    total: int = 0

    def add(self, clipped: int, total: int) -> None:
        """Count more rows, here and in the sampling run that is being watched."""
        self.clipped, self.total = self.clipped + clipped, self.total + total
        note_clips(clipped, total)

    @property
    def share(self) -> float:
        """Share of the rows so far whose curvature was clipped."""
        return self.clipped / max(1, self.total)


@dataclass(frozen=True)
class SecondOrder:
    """Second-order expansion E_t ~ beta E(mu) - 1/2 g^T (I + Sigma H)^-1 Sigma g + 1/2 log det(I + Sigma H), g = beta grad E, H
    = beta Hess E at mu.

    It is exact for a Gaussian posterior N(mu, Sigma) and a quadratic E. With R R^T = Sigma, the eigenvalues of R^T H R are
    clipped from below at -1 + ``delta``, where the integral would otherwise diverge; ``clips`` counts the rows. The Hessian
    takes d products, and more than ``max_dim`` dimensions raise ValueError. A ReLU network's Hessian is zero: use a smooth
    activation.
    """

    energy: Energy
    posterior: Posterior
    beta: BetaOrZero = 1.0
    delta: Positive = 0.05
    max_dim: Width = 256
    clips: ClipCount = field(default_factory=ClipCount, compare=False)

    def __call__(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        """Estimate E_t: (B, ...), (B,), c -> (B,)."""
        if x[0].numel() > self.max_dim:
            raise ValueError(
                f"a Hessian of {x[0].numel()} dimensions: raise max_dim (now {self.max_dim}), or use dps or monte_carlo"
            )
        q = posterior_at(self.posterior, x, t, c)
        value, grad, hessian = value_gradient_hessian(partial(energy_values, self.energy), q.mean, c)
        model = LocalQuadratic.fit(self.beta * value, self.beta * grad, self.beta * hessian, q.root(), self.delta, self.clips)
        return -model.log_partition()


@dataclass(frozen=True)
class LocalQuadratic:
    """Quadratic q(u) = ``value`` + ``grad``^T u + 1/2 u^T ``curvature`` u in whitened coordinates u ~ N(0, I), x = mu + R u.

    Shapes are (N,), (N, d), (N, d, d); ``factor`` is the Cholesky factor of I + curvature.
    """

    value: Tensor
    grad: Tensor
    curvature: Tensor
    factor: Tensor

    @staticmethod
    def fit(
        value: Tensor,
        grad: Tensor,
        hessian: Tensor,
        root: Tensor,
        delta: Positive,
        clips: ClipCount | None = None,
        instead: float | None = None,
    ) -> LocalQuadratic:
        """Make the quadratic of value, gradient and Hessian by x at mu, and R; curvatures below -1 + delta become ``instead``.

        Without ``instead`` they become -1 + delta. Eigenvectors are held constant under differentiation: this is exact for the
        log-determinant, and repeated eigenvalues do no harm.
        """
        curvature = root.mT @ hessian @ root
        sound, curvature = finite_rows(0.5 * (curvature + curvature.mT))
        eye = torch.eye(curvature.shape[-1], dtype=curvature.dtype, device=curvature.device)
        below = torch.linalg.cholesky_ex(curvature.detach() + (1 - delta) * eye).info > 0
        recorded = transformed()  # a recorded graph cannot branch: all rows then take the branch of clipped rows
        if recorded or bool(below.any()):
            with torch.no_grad():
                values, vectors = torch.linalg.eigh(curvature)
                keep = (vectors * (values > delta - 1).to(values)[:, None, :]) @ vectors.mT
            clipped = keep @ curvature @ keep + (delta - 1 if instead is None else instead) * (eye - keep)
            curvature = torch.where(below[:, None, None], clipped, curvature)
        if clips is not None and not recorded:
            clips.add(int(below.sum()), len(below))
        pull = torch.einsum("bij,bi->bj", root, grad)
        value = torch.where(sound[:, 0, 0], value, torch.nan)
        factor: Tensor
        factor, failed = torch.linalg.cholesky_ex(curvature + eye)  # beside an eigenvalue of 1e16, rounding loses the bound
        return LocalQuadratic(value, pull, curvature, torch.where(failed[:, None, None] > 0, torch.nan, factor))

    def log_partition(self) -> Tensor:
        """Compute log E exp(-q(u)): (N,)."""
        half: Tensor = torch.linalg.solve_triangular(self.factor, self.grad[..., None], upper=False)[..., 0]
        log_det: Tensor = self.factor.diagonal(dim1=1, dim2=2).log().sum(1)
        return -self.value + 0.5 * half.square().sum(1) - log_det

    def tilted(self, noise: Tensor) -> Tensor:
        """Draw from the density ~ N(u; 0, I) exp(-q(u)) by standard normal noise (P, d): (N, P, d)."""
        mean = -torch.cholesky_solve(self.grad[..., None], self.factor)
        spread = torch.linalg.solve_triangular(self.factor.mT, noise.mT.expand(len(mean), -1, -1), upper=True)
        drawn: Tensor = (mean + spread).mT
        return drawn

    def __call__(self, u: Tensor) -> Tensor:
        """Evaluate q(u): (N, P, d) -> (N, P)."""
        linear: Tensor = torch.einsum("npd,nd->np", u, self.grad)
        return self.value[:, None] + linear + 0.5 * torch.einsum("npd,nde,npe->np", u, self.curvature, u)
