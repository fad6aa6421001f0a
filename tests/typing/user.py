"""What a user writes, type-checked with mypy --strict: an energy, a rule, an objective and a schedule of one's own, a guided
model, a network that is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import egd
from egd import (
    DPS,
    Additive,
    Clip,
    Context,
    Denoiser,
    DenoiserLearner,
    Energy,
    EnergyLearner,
    EnergyMLP,
    Fit,
    Gaussian,
    GaussianMixture,
    GuidanceRule,
    NetworkDenoiser,
    NoiseMLP,
    Objective,
    Posterior,
    Sampler,
    Schedule,
    Support,
    TimedEnergy,
    VPLinear,
    dpm_solver_pp_2m,
    guide,
    time_grid,
)


class Linear:
    """A schedule."""

    def alpha(self, t: Tensor) -> Tensor:
        """1 - t."""
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        """t."""
        return t


@dataclass(frozen=True)
class Distance:
    """An energy: half the squared distance to a point."""

    point: float

    def __call__(self, x0: Tensor, c: Context = None) -> Tensor:
        """(B, ...) -> (B,)"""
        return (x0 - self.point).square().flatten(1).sum(1) / 2


@dataclass(frozen=True)
class Halved:
    """A guidance rule."""

    omega: float = 1.0

    def __call__(self, score: Tensor, grad: Tensor, t: Tensor) -> Tensor:
        """s - omega e / 2."""
        return score - 0.5 * self.omega * grad


@dataclass(frozen=True)
class Regression:
    """An objective."""

    energy: Energy
    beta: float = 1.0

    def loss(
        self, network: TimedEnergy, x0: Tensor, x: Tensor, t: Tensor, c: Context, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean squared error."""
        loss = (network(x, t, c) - self.beta * self.energy(x0, c)).square().mean()
        return loss, {"loss": loss.detach()}


def sample(n: int, generator: torch.Generator) -> tuple[Tensor, Context]:
    """The data."""
    return torch.randn(n, 2, generator=generator), None


def support(c: Context, k: int) -> Tensor:
    """Samples of the data for every context."""
    return torch.randn(1, k, 2)


def trained(schedule: Schedule, objective: Objective) -> tuple[Denoiser, TimedEnergy]:
    """A denoiser and an energy network."""
    generator = torch.Generator().manual_seed(0)
    noise, energy = NoiseMLP(2), EnergyMLP(2)
    first = DenoiserLearner(Fit(noise, lr=1e-3, steps=2), schedule, sample, batch=8)
    second = EnergyLearner(Fit(energy, lr=1e-3, steps=2), schedule, sample, objective, batch=8)
    egd.training.train(first, 2, generator)
    egd.training.train(second, 2, generator)
    return NetworkDenoiser(noise, schedule), energy


def guided(denoiser: Denoiser, energies: Sequence[TimedEnergy], rule: GuidanceRule, schedule: Schedule) -> Denoiser:
    """A denoiser that is guided by all of them."""
    return Clip(guide(denoiser, egd.energies.Sum(tuple(energies)), rule, schedule), -3.0, 3.0)


def main(sampler: Sampler = dpm_solver_pp_2m) -> Tensor:
    """Draw guided samples."""
    schedule, energy = VPLinear(), Distance(1.0)
    denoiser, learned = trained(schedule, Regression(energy))
    posterior: Posterior = egd.posteriors.Tweedie(denoiser, schedule)
    gaussian: Gaussian = posterior(torch.zeros(1, 2), torch.full((1,), 0.5), None)
    closed: TimedEnergy = egd.energies.MonteCarlo(energy, posterior, 1.0)
    drawn: Support = support
    energies: list[TimedEnergy] = [
        DPS(energy, denoiser, 1.0),
        closed,
        learned,
        egd.energies.SupportSamples(energy, drawn, schedule, 1.0),
    ]
    rules: list[GuidanceRule] = [Halved(), Additive(1.0), egd.rules.Rescaled()]
    model = guided(denoiser, energies, rules[0], schedule)
    exact = GaussianMixture(torch.zeros(1), torch.zeros(1, 2), torch.eye(2)[None])
    start = exact.sample(16, torch.Generator()) + gaussian.mean
    return sampler(model, schedule, start, time_grid(Linear(), 4), None)


if __name__ == "__main__":
    main()
