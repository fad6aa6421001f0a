"""Everything in float64, so that a tolerance means something; a quadrature and a Gaussian to compare against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from egd.mixtures import GaussianMixture
from egd.posteriors import IsotropicGaussian
from egd.types import Context, Schedule

Lattice = Callable[[int, float, int], tuple[Tensor, float]]


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def lattice() -> Lattice:
    """(dim, half width, points a side) -> points (N, dim) and the volume of a cell. For a smooth function that decays
    within the box the sum over it converges faster than any power of the spacing."""

    def make(dim: int, half: float, n: int) -> tuple[Tensor, float]:
        axis = torch.linspace(-half, half, n)
        return torch.cartesian_prod(*[axis] * dim).reshape(-1, dim), (2 * half / (n - 1)) ** dim

    return make


@dataclass(frozen=True)
class Normal:
    """N(mean, var I) over any event shape: denoiser, posterior and samples, independent of GaussianMixture."""

    mean: Tensor
    var: float

    def denoiser(self, schedule: Schedule) -> Callable[..., Tensor]:
        return lambda x, t, c=None: self.posterior(schedule)(x, t, c).mean

    def posterior(self, schedule: Schedule) -> Callable[..., IsotropicGaussian]:
        def at(x: Tensor, t: Tensor, c: Context = None) -> IsotropicGaussian:
            alpha, sigma = schedule.alpha(t), schedule.sigma(t)
            total = alpha**2 * self.var + sigma**2
            gain = (alpha * self.var / total).reshape(-1, *[1] * (x.ndim - 1))
            a = alpha.reshape(gain.shape)
            return IsotropicGaussian(self.mean + gain * (x - a * self.mean), self.var * sigma**2 / total)

        return at

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, None]:
        return self.mean + self.var**0.5 * torch.randn(n, *self.mean.shape, generator=generator), None

    def as_mixture(self) -> GaussianMixture:
        return GaussianMixture(torch.zeros(1), self.mean[None], self.var * torch.eye(len(self.mean))[None])


@pytest.fixture
def normal() -> Callable[[Tensor, float], Normal]:
    return Normal
