"""Targets given by samples: log-ratios learned from them, compared with the exact ones of Gaussian mixtures.

q is a replay: a share ``f`` of online samples with density p, the rest offline samples. The target is p = q e^w with w = log p
/ q. The exact intermediate energy E_t(x_t) = -log p_t(x_t) / q_t(x_t) is the difference of two mixtures' log densities.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from egd.denoisers import at_unit_scale
from egd.energies.clean import at_zero
from egd.energies.dps import DPS
from egd.energies.second_order import SecondOrder
from egd.guidance import guide
from egd.metrics import energy_distance
from egd.mixtures import GaussianMixture
from egd.networks.mlp import EnergyMLP
from egd.objectives.cep import CEP
from egd.objectives.ratio import Ratio
from egd.posteriors import calibrate, residual
from egd.rules import Additive
from egd.samplers import heun
from egd.schedules import EDM, time_grid
from egd.tensors import isolated_rng, value_and_grad
from egd.training.learners import EnergyLearner, Fit, train
from egd.training.times import UNIFORM, LogNormalTimes, Times
from egd.types import Context, Denoiser, Energy, Objective, TimedEnergy

LEVELS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Noise levels sigma at which gradients are compared; the data are of order 1."""


@dataclass(frozen=True)
class RatioSettings:
    """The amount of work per row."""

    seed: int = 0
    share: float = 0.1
    """Share of online samples in q."""
    samples: int = 2000
    points: int = 512
    """States x_t ~ q_t at each noise level."""
    steps: int = 32
    """Steps of Heun's method."""
    training: int = 1500
    """Training steps of each network."""


@dataclass(frozen=True)
class RatioRow:
    """One estimator on one problem.

    ``cosine`` and ``error`` (relative, root mean square) are those of the gradient at each of LEVELS. ``distance`` is the
    energy distance from guided samples to samples of p, and ``floor`` the mean absolute energy distance between two sets of
    samples of p. ``mean_error`` and ``std_error`` are the errors of the samples' mean and standard deviations, in units of p's
    standard deviations. ``seconds`` is the time of training.
    """

    case: str
    estimator: str
    cosine: tuple[float, ...]
    error: tuple[float, ...]
    distance: float
    floor: float
    mean_error: float
    std_error: float
    seconds: float


@dataclass(frozen=True)
class RatioProblem:
    """The online density p and the replay q."""

    name: str
    p: GaussianMixture
    q: GaussianMixture

    def clean(self, x: Tensor, c: Context = None) -> Tensor:
        """Compute E(x) = -log p(x) / q(x): (B, D) -> (B,)."""
        return self.q.log_prob(x) - self.p.log_prob(x)

    def energy(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        """Compute the exact E_t: (B, D), (B,) -> (B,)."""
        alpha, sigma = EDM().alpha(t), EDM().sigma(t)
        return self.q.log_prob(x, alpha, sigma) - self.p.log_prob(x, alpha, sigma)

    def denoise(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        """Evaluate the exact denoiser of q: (B, D), (B,) -> (B, D)."""
        return self.q.denoise(EDM(), x, t)


def problems(settings: RatioSettings) -> dict[str, RatioProblem]:
    """Return the problems by name: modes selected from the replay, and modes shifted and narrowed, in several dimensions."""
    found = {}
    for name, dim, moved in (("chosen-2d", 2, 0.0), ("moved-2d", 2, 0.6), ("moved-8d", 8, 0.4), ("moved-23d", 23, 0.25)):
        offline = _scaled(GaussianMixture.random(5, dim, seed=settings.seed + dim))
        shift = moved * torch.randn(2, dim, generator=torch.Generator().manual_seed(dim), dtype=torch.float64)
        weights = torch.tensor([0.7, 0.3], dtype=torch.float64).log()
        p = GaussianMixture(weights, offline.means[:2] + shift, offline.covs[:2] * (0.5 if moved else 1.0))
        found[name] = RatioProblem(name, p, _union(p, offline, settings.share))
    return found


def _scaled(mixture: GaussianMixture) -> GaussianMixture:
    """Shift and scale a mixture to mean 0 and a mean variance of 1."""
    x = mixture.sample(20_000, torch.Generator().manual_seed(0))
    mean, unit = x.mean(0), float(x.var(0).mean().sqrt())
    return GaussianMixture(mixture.log_weights, (mixture.means - mean) / unit, mixture.covs / unit**2)


def _union(p: GaussianMixture, offline: GaussianMixture, share: float) -> GaussianMixture:
    weights = torch.cat([p.log_weights + math.log(share), offline.log_weights + math.log1p(-share)])
    return GaussianMixture(weights, torch.cat([p.means, offline.means]), torch.cat([p.covs, offline.covs]))


# -- estimators --------------------------------------------------------------------------------------------------------

Make = Callable[[RatioProblem, RatioSettings], TimedEnergy]


def _trained(problem: RatioProblem, settings: RatioSettings, objective: Objective, times: Times, seed: int) -> TimedEnergy:
    with isolated_rng(settings.seed + seed):
        network = EnergyMLP(problem.q.means.shape[1], width=128, layers=3)
    fit = Fit(network, lr=2e-3, steps=settings.training, decay=True)
    sample = lambda n, g: (problem.q.sample(n, g).float(), None)  # noqa: E731
    learner = EnergyLearner(fit, EDM(), sample, objective, batch=256, times=times)
    train(learner, settings.training, torch.Generator().manual_seed(settings.seed + seed))
    scaled = at_unit_scale(network.requires_grad_(False), EDM())
    return lambda x, t, c: scaled(x.float(), t.float(), c).to(x.dtype)


def _noised(problem: RatioProblem, settings: RatioSettings, kind: Any = "logistic") -> TimedEnergy:
    wanted = lambda n, g: (problem.p.sample(n, g).float(), None)  # noqa: E731
    return _trained(problem, settings, Ratio(EDM(), wanted, kind), LogNormalTimes(EDM(), -0.5, 1.5), 1)


def _learned(problem: RatioProblem, settings: RatioSettings) -> Energy:
    """Train the clean log-ratio by discrimination without noise."""
    wanted = lambda n, g: (problem.p.sample(n, g).float(), None)  # noqa: E731
    return at_zero(_trained(problem, settings, Ratio(EDM(), wanted, clean=True), UNIFORM, 2))


def _cep(problem: RatioProblem, settings: RatioSettings, *, exact: bool) -> TimedEnergy:
    clean = problem.clean if exact else _learned(problem, settings)
    energy: Energy = lambda x, c: clean(x.double(), c).float()  # noqa: E731
    return _trained(problem, settings, CEP(energy, EDM()), LogNormalTimes(EDM(), -0.5, 1.5), 3)


def _second_order(problem: RatioProblem, settings: RatioSettings, *, exact: bool) -> TimedEnergy:
    clean = problem.clean if exact else _learned(problem, settings)
    sample = lambda n, g: (problem.q.sample(n, g), None)  # noqa: E731
    generator = torch.Generator().manual_seed(settings.seed)
    moments = calibrate(problem.denoise, EDM(), sample, generator=generator, grid=40, samples=4096)
    return SecondOrder(clean, residual(problem.denoise, moments))


def _dps(problem: RatioProblem, settings: RatioSettings, *, exact: bool) -> TimedEnergy:
    return DPS(problem.clean if exact else _learned(problem, settings), problem.denoise)


def _clean(problem: RatioProblem, settings: RatioSettings, *, exact: bool) -> TimedEnergy:
    """Return E evaluated at x_t as if it were x_0, which no theory supports."""
    clean = problem.clean if exact else _learned(problem, settings)
    return lambda x, t, c: clean(x, c)


ESTIMATORS: Mapping[str, Make] = {
    "exact": lambda problem, settings: problem.energy,
    "none": lambda problem, settings: lambda x, t, c: 0 * x.sum(1),
    "noised discriminator": _noised,
    "noised, InfoNCE": partial(_noised, kind="info_nce"),
    "CEP, learned w": partial(_cep, exact=False),
    "CEP, exact w": partial(_cep, exact=True),
    "second order, learned w": partial(_second_order, exact=False),
    "second order, exact w": partial(_second_order, exact=True),
    "DPS, learned w": partial(_dps, exact=False),
    "DPS, exact w": partial(_dps, exact=True),
    "clean at x_t, learned w": partial(_clean, exact=False),
    "clean at x_t, exact w": partial(_clean, exact=True),
}


# -- measuring ---------------------------------------------------------------------------------------------------------


def run(problem: RatioProblem, estimators: Sequence[str], settings: RatioSettings) -> Iterator[RatioRow]:
    """Yield the rows of one problem."""
    generator = torch.Generator().manual_seed(settings.seed + 5)
    truth = [problem.p.sample(settings.samples, generator) for _ in range(2)]
    floor = _floor(problem, settings)
    states = [_state(problem, sigma, settings.points, generator) for sigma in LEVELS]
    for label in estimators:
        started = time.perf_counter()
        energy = ESTIMATORS[label](problem, settings)
        seconds = time.perf_counter() - started
        compared = [_compare(energy, *state) for state in states]
        x = _sample(problem, energy, settings)
        std = truth[0].std(0)
        off = ((x.mean(0) - truth[0].mean(0)) / std).square().mean().sqrt()
        wide = (x.std(0) / std - 1).square().mean().sqrt()
        cosines, errors = zip(*compared, strict=True)
        distance = float(energy_distance(x, truth[1]))
        yield RatioRow(problem.name, label, cosines, errors, distance, floor, float(off), float(wide), seconds)


def _floor(problem: RatioProblem, settings: RatioSettings, pairs: int = 8) -> float:
    """Return the mean absolute energy distance between two sets of samples of p; a single distance may be negative."""
    generator = torch.Generator().manual_seed(settings.seed + 6)
    sets = [problem.p.sample(settings.samples, generator) for _ in range(2 * pairs)]
    return sum(abs(float(energy_distance(x, y))) for x, y in zip(sets[::2], sets[1::2], strict=True)) / pairs


def _state(problem: RatioProblem, sigma: float, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return x_t ~ q_t, t and the exact gradient."""
    t = EDM().time(torch.tensor(sigma, dtype=torch.float64).log().neg()).expand(n)
    x = problem.q.noised(EDM(), t, generator)
    return x, t, value_and_grad(lambda x: problem.energy(x, t), x)[1]


def _compare(energy: TimedEnergy, x: Tensor, t: Tensor, exact: Tensor) -> tuple[float, float]:
    grad = value_and_grad(lambda x: energy(x, t, None), x)[1]
    cosine = torch.nn.functional.cosine_similarity(grad, exact, eps=1e-12).mean()
    return float(cosine), float((grad - exact).square().sum().sqrt() / exact.square().sum().sqrt())


def _sample(problem: RatioProblem, energy: TimedEnergy, settings: RatioSettings) -> Tensor:
    generator = torch.Generator().manual_seed(settings.seed + 3)
    noise = 80 * torch.randn(settings.samples, problem.q.means.shape[1], generator=generator, dtype=torch.float64)
    times = time_grid(EDM(), settings.steps).double()
    guided: Denoiser = guide(problem.denoise, energy, Additive(), EDM())
    return torch.cat([heun(guided, EDM(), part, times) for part in torch.split(noise, 500)])
