from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from egd.guidance import guide
from egd.mixtures import GaussianMixture, Quadratic
from egd.rules import Additive
from egd.samplers import SAMPLERS, ddim, dpm_solver_pp_2m
from egd.schedules import VPLinear, time_grid
from egd.types import Schedule

EVERY = pytest.mark.parametrize("sampler", list(SAMPLERS.values()), ids=list(SAMPLERS))
STEPS = 10


@dataclass(frozen=True)
class Tabulated:
    """A scheduler's own alphas and sigmas, noise first, at the times 1, 1 - 1/N, ..., 0."""

    alphas: Tensor  # (N + 1,)
    sigmas: Tensor

    def alpha(self, t: Tensor) -> Tensor:
        return self.alphas[self.place(t)]

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigmas[self.place(t)]

    def place(self, t: Tensor) -> Tensor:
        return ((1 - t) * (len(self.alphas) - 1)).round().long()


def walk(
    scheduler: DPMSolverMultistepScheduler | DDIMScheduler, table: Tabulated, m: GaussianMixture, x: Tensor, kind: str
) -> Tensor:
    """diffusers' own loop with the mixture's exact denoiser, as a noise or a sample prediction."""
    times = torch.linspace(1, 0, STEPS + 1, dtype=x.dtype)
    for t, step in zip(times, scheduler.timesteps, strict=False):
        rows = t.expand(len(x))
        out = x0 = m.denoise(table, x, rows)
        if kind == "epsilon":
            out = (x - table.alpha(rows)[:, None] * x0) / table.sigma(rows)[:, None]
        x = scheduler.step(out, step, x).prev_sample
    return x


def in_dtype(m: GaussianMixture, dtype: torch.dtype) -> GaussianMixture:
    return GaussianMixture(m.log_weights.to(dtype), m.means.to(dtype), m.covs.to(dtype))


def agree(sampler: Callable, scheduler: object, table: Tabulated, m: GaussianMixture, kind: str, dtype: torch.dtype) -> None:
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    table, m = Tabulated(table.alphas.to(dtype), table.sigmas.to(dtype)), in_dtype(m, dtype)
    want = walk(scheduler, table, m, x, kind)
    got = sampler(lambda x, t, c: m.denoise(table, x, t), table, x, torch.linspace(1, 0, STEPS + 1, dtype=dtype))
    assert got.dtype == want.dtype == dtype
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


PREDICTIONS = pytest.mark.parametrize("kind", ["epsilon", "sample"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


@DTYPES
@PREDICTIONS
def test_dpm_solver_pp_2m_agrees_with_diffusers(mixture: GaussianMixture, kind: str, dtype: torch.dtype) -> None:
    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint", prediction_type=kind, final_sigmas_type="zero"
    )
    scheduler.set_timesteps(STEPS)
    alphas, sigmas = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas)
    agree(dpm_solver_pp_2m, scheduler, Tabulated(alphas, sigmas), mixture, kind, dtype)


@DTYPES
@PREDICTIONS
def test_ddim_agrees_with_diffusers(mixture: GaussianMixture, kind: str, dtype: torch.dtype) -> None:
    scheduler = DDIMScheduler(clip_sample=False, prediction_type=kind)
    scheduler.set_timesteps(STEPS)
    products = torch.cat([scheduler.alphas_cumprod[scheduler.timesteps], scheduler.final_alpha_cumprod[None]]).double()
    agree(ddim, scheduler, Tabulated(products.sqrt(), (1 - products).sqrt()), mixture, kind, dtype)


def flow_error(sampler: Callable, schedule: Schedule, normal: Callable, steps: int) -> float:
    """On N(m, v) the probability-flow ODE is solved exactly: (x_t - alpha_t m) / sqrt(alpha_t^2 v + sigma_t^2) is constant."""
    m, v = torch.tensor([0.7]), 0.3
    times = time_grid(schedule, steps, start=0.95, end=0.05, spacing="log_snr")
    x = torch.linspace(-2, 2, 9)[:, None]
    (alpha, end), (sigma, sigma_end) = schedule.alpha(times[[0, -1]]), schedule.sigma(times[[0, -1]])
    z = (x - alpha * m) / (alpha**2 * v + sigma**2).sqrt()
    exact = end * m + (end**2 * v + sigma_end**2).sqrt() * z
    return float((sampler(normal(m, v).denoiser(schedule), schedule, x, times) - exact).abs().max())


@pytest.mark.parametrize(("sampler", "order"), [(dpm_solver_pp_2m, 2), (ddim, 1)], ids=["dpm_solver_pp_2m", "ddim"])
def test_the_order_of_convergence(sampler: Callable, order: int, schedule: Schedule, normal: Callable) -> None:
    errors = [flow_error(sampler, schedule, normal, steps) for steps in (80, 160, 320)]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.12)
    assert errors[1] / errors[2] == pytest.approx(2**order, rel=0.06)


@EVERY
def test_a_constant_denoiser_is_reached_in_one_step(sampler: Callable, schedule: Schedule, generator: torch.Generator) -> None:
    goal, x = torch.randn(2, 5, 3, 2, generator=generator)
    got = sampler(lambda x, t, c: goal, schedule, x, torch.tensor([0.9, 0.0]))
    torch.testing.assert_close(got, goal)


@EVERY
def test_a_walk_to_time_zero_ends_exactly_on_the_denoised(
    sampler: Callable, schedule: Schedule, mixture: GaussianMixture, generator: torch.Generator
) -> None:
    x, seen = torch.randn(8, 2, generator=generator), []

    def denoiser(x: Tensor, t: Tensor, c: None) -> Tensor:
        seen.append(mixture.denoise(schedule, x, t))
        return seen[-1]

    got = sampler(denoiser, schedule, x, torch.linspace(0.9, 0, 8))
    assert len(seen) == 7  # one evaluation a step
    torch.testing.assert_close(got, seen[-1], rtol=1e-12, atol=1e-12)


@EVERY
def test_sampling_is_deterministic_given_the_noise(
    sampler: Callable, mixture: GaussianMixture, generator: torch.Generator
) -> None:
    x, times = torch.randn(8, 2, generator=generator), time_grid(VPLinear(), 6)

    def run(rows: slice) -> Tensor:
        return sampler(lambda x, t, c: mixture.denoise(VPLinear(), x, t), VPLinear(), x[rows], times)

    assert torch.equal(run(slice(8)), run(slice(8)))
    torch.testing.assert_close(run(slice(2, 4)), run(slice(8))[2:4])


@EVERY
def test_the_context_reaches_the_denoiser_at_every_step(sampler: Callable, generator: torch.Generator) -> None:
    x, c = torch.randn(2, 4, 2, generator=generator)
    torch.testing.assert_close(sampler(lambda x, t, c: c, VPLinear(), x, torch.tensor([1.0, 0.5, 0.0]), c), c)


@EVERY
@pytest.mark.parametrize("times", [[0.0, 1.0], [1.0, 0.5, 0.5], [1.0], [[1.0, 0.0]]], ids=["rising", "flat", "one", "2-d"])
def test_times_that_do_not_fall_are_refused(sampler: Callable, times: list) -> None:
    with pytest.raises(ValueError, match="times must decrease, noise first"):
        sampler(lambda x, t, c: x, VPLinear(), torch.zeros(1, 1), torch.tensor(times))


@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_guided_sampling_with_the_exact_oracle_reproduces_the_target(generator: torch.Generator, beta: float) -> None:
    n, schedule = 3000, VPLinear()
    means = torch.tensor([[2.0, 0.0], [-2.0, 1.0], [0.0, -2.5]])
    m = GaussianMixture(torch.tensor([0.5, 0.2, 0.3]).log(), means, 0.1 * torch.eye(2).expand(3, 2, 2))
    energy = Quadratic(0.2 * torch.eye(2), torch.tensor([0.3, 0.2]))
    target = m.tilted(energy, beta)
    guided = guide(
        lambda x, t, c: m.denoise(schedule, x, t), lambda x, t, c: m.energy(schedule, energy, beta, x, t), Additive(), schedule
    )
    x = torch.randn(n, 2, generator=generator)
    x = dpm_solver_pp_2m(guided, schedule, x, time_grid(schedule, 30, spacing="log_snr"))
    exact = target.log_weights.exp()
    share = torch.cdist(x, means).argmin(1).bincount(minlength=3) / n
    assert ((share - exact) / (exact * (1 - exact) / n).sqrt()).abs().max() < 4
    assert (exact - m.log_weights.exp()).abs().max() > 0.1  # which q itself would not pass
    many = energy(target.sample(200_000, generator))
    assert abs(energy(x).mean() - many.mean()) < 4 * many.std() * (1 / n + 1 / 200_000) ** 0.5
    assert float(energy(x).std()) == pytest.approx(float(many.std()), rel=0.1)
