"""Problems with known E_t: Gaussian mixtures, with an energy in closed form or by quadrature in two dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from egd.mixtures import GaussianMixture, Quadratic
from egd.types import Context, Energy, Schedule

Kind = str
KINDS = ("linear", "convex", "indefinite", "non-quadratic")


@dataclass(frozen=True)
class Case:
    """A distribution and an energy, with the exact intermediate energy and exact samples of the target."""

    name: str
    kind: Kind
    mixture: GaussianMixture
    energy: Energy

    @property
    def dim(self) -> int:
        """The dimension of the event."""
        return self.mixture.means.shape[1]

    def exact(self, schedule: Schedule, beta: float, x: Tensor, t: Tensor) -> Tensor:
        """Compute E_t(x_t), (B, D), (B,) -> (B,), in closed form or by quadrature over each component of the posterior."""
        if isinstance(self.energy, Quadratic):
            return self.mixture.energy(schedule, self.energy, beta, x, t)
        pieces = zip(torch.split(x, 64), torch.split(t, 64), strict=True)  # 64 rows of 9 components are 0.9 million nodes
        return torch.cat([self._quadrature(schedule, beta, *piece) for piece in pieces])

    def _quadrature(self, schedule: Schedule, beta: float, x: Tensor, t: Tensor) -> Tensor:
        """Integrate by the trapezoidal rule in whitened coordinates, which is exact to rounding for smooth, decaying
        integrands.
        """
        log_w, means, covs = self.mixture.posterior(schedule, x, t)
        axis = torch.linspace(-6, 6, 40, dtype=x.dtype)
        nodes = torch.cartesian_prod(*[axis] * self.dim)
        log_v = torch.log_softmax(-0.5 * nodes.square().sum(1), 0)
        points = means[:, :, None] + nodes @ torch.linalg.cholesky(covs).mT  # (B, K, N, D)
        energies = self.energy(points.flatten(0, 2), None).reshape(points.shape[:3])
        return -torch.logsumexp(log_w[:, :, None] + log_v - beta * energies, (1, 2))

    def target(self, beta: float, n: int, generator: torch.Generator) -> Tensor:
        """Draw n exact samples of q(x) exp(-beta E(x)) / Z: (n, D)."""
        if isinstance(self.energy, Quadratic):
            return self.mixture.tilted(self.energy, beta).sample(n, generator)
        kept: list[Tensor] = []
        while sum(map(len, kept)) < n:  # rejection: E >= 0, so exp(-beta E) is a probability
            x = self.mixture.sample(20_000, generator)
            accept = torch.rand(len(x), generator=generator, dtype=x.dtype) < torch.exp(-beta * self.energy(x, None))
            kept.append(x[accept])
        return torch.cat(kept)[:n]


def ring(components: int = 8, radius: float = 2.5, std: float = 0.15) -> GaussianMixture:
    """Return a mixture of equal narrow modes on a circle."""
    angle = 2 * math.pi * torch.arange(components, dtype=torch.float64) / components
    means = radius * torch.stack([angle.cos(), angle.sin()], 1)
    return GaussianMixture(torch.zeros(components).double().log_softmax(0), means, _round(components, 2, std))


def grid(side: int = 3, spacing: float = 2.0, std: float = 0.25) -> GaussianMixture:
    """Return a mixture of equal modes on a square grid."""
    axis = spacing * (torch.arange(side, dtype=torch.float64) - (side - 1) / 2)
    means = torch.cartesian_prod(axis, axis)
    return GaussianMixture(torch.zeros(side**2).double().log_softmax(0), means, _round(side**2, 2, std))


def wide(dim: int = 2) -> GaussianMixture:
    """Return a mixture of three broad, overlapping, stretched modes: almost unimodal, yet far from Gaussian."""
    means = torch.zeros(3, dim, dtype=torch.float64)
    means[1, 0], means[2, 1] = 2.0, 2.0
    covs = torch.stack([torch.diag(torch.linspace(0.3, 1.5, dim).double().roll(k)) for k in range(3)])
    return GaussianMixture(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log(), means, covs)


def _round(components: int, dim: int, std: float) -> Tensor:
    return std**2 * torch.eye(dim, dtype=torch.float64).expand(components, dim, dim)


def _symmetric(dim: int, seed: int, low: float, high: float) -> Tensor:
    """Return a symmetric matrix with eigenvalues evenly spaced from low to high and random eigenvectors."""
    g = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn(dim, dim, generator=g, dtype=torch.float64))
    matrix: Tensor = (turn * torch.linspace(low, high, dim).double()) @ turn.mT
    return matrix


def _bowl(mixture: GaussianMixture, seed: int) -> Quadratic:
    """Return a convex quadratic around a point near the data. Its curvature falls with the dimension, so that E is of
    order 1.
    """
    dim = mixture.means.shape[1]
    g = torch.Generator().manual_seed(seed)
    A = _symmetric(dim, seed, 0.2, 1.0) / math.sqrt(dim)
    centre = mixture.means[0] + 0.5 * torch.randn(dim, generator=g, dtype=torch.float64)
    return Quadratic(A, -A @ centre, float(0.5 * centre @ A @ centre))


def _grad(dim: int, seed: int) -> Quadratic:
    """Return a linear energy with a gradient of unit length."""
    b = torch.randn(dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Quadratic(torch.zeros(dim, dim, dtype=torch.float64), b / b.norm())


def _saddle(mixture: GaussianMixture, seed: int, beta: float = 10.0) -> Quadratic:
    """Return an indefinite quadratic whose target is finite up to beta: beta A + S_k^-1 is positive definite for every mode."""
    dim = mixture.means.shape[1]
    A = _symmetric(dim, seed, -1.0, 1.0)
    top = torch.linalg.eigvalsh(mixture.covs)[:, -1].max()
    return Quadratic(A * 0.8 / float(beta * top), torch.zeros(dim, dtype=torch.float64))


def waves(x: Tensor, c: Context = None) -> Tensor:
    """Compute 1 + sin(2 x_1) sin(2 x_2), from 0 to 2: (B, 2) -> (B,)."""
    return 1 + torch.sin(2 * x[:, 0]) * torch.sin(2 * x[:, 1])


def shell(x: Tensor, c: Context = None) -> Tensor:
    """Compute (|x|^2 / 4 - 1)^2 / 2, low on the circle of radius 2: (B, 2) -> (B,)."""
    return 0.5 * (x.square().sum(1) / 4 - 1).square()


def cases(seed: int = 0) -> dict[str, Case]:
    """Return all problems by name; ``seed`` determines the random ones."""
    return {case.name: case for case in _all(seed)}


def _all(seed: int) -> Iterator[Case]:
    make: Callable[[int, int], GaussianMixture] = lambda k, d: GaussianMixture.random(k, d, seed=seed + d)  # noqa: E731
    convex = {
        "ring-2d": ring(),
        "grid-2d": grid(),
        "wide-2d": wide(),
        "random-2d": make(5, 2),
        "random-4d": make(5, 4),
        "random-8d": make(5, 8),
        "wide-8d": wide(8),
        "random-16d": make(5, 16),
        "random-32d": make(5, 32),
    }
    for i, (name, mixture) in enumerate(convex.items()):
        yield Case(f"{name}-convex", "convex", mixture, _bowl(mixture, seed + i))
    yield Case("ring-2d-linear", "linear", ring(), _grad(2, seed))
    yield Case("random-8d-linear", "linear", make(5, 8), _grad(8, seed))
    yield Case("random-2d-indefinite", "indefinite", make(5, 2), _saddle(make(5, 2), seed))
    yield Case("random-8d-indefinite", "indefinite", make(5, 8), _saddle(make(5, 8), seed))
    yield Case("grid-2d-waves", "non-quadratic", grid(), waves)
    yield Case("wide-2d-shell", "non-quadratic", wide(), shell)
