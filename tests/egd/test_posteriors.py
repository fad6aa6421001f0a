from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from egd.checkpoint import load_checkpoint, save_checkpoint
from egd.mixtures import GaussianMixture
from egd.posteriors import IsotropicGaussian, MomentPosterior, Moments, calibrate
from egd.posteriors.base import cholesky
from egd.posteriors.moments import KINDS
from egd.schedules import VPLinear
from egd.types import Schedule

RUNS = 16
GRID = 6


def calibrated(m: GaussianMixture, schedule: Schedule, seed: int, bias: float = 1.0, samples: int = 2000) -> Moments:
    """Of the mixture's exact denoiser, with its eps scaled by ``bias``."""

    def denoiser(x: Tensor, t: Tensor, c: None) -> Tensor:
        alpha = schedule.alpha(t)[:, None]
        return (x - bias * (x - alpha * m.denoise(schedule, x, t))) / alpha

    generator = torch.Generator().manual_seed(seed)
    return calibrate(
        denoiser,
        schedule,
        lambda n, g: (m.sample(n, g), None),
        generator=generator,
        grid=GRID,
        samples=samples,
        batch=1500,
        t_min=0.02,
    )


def exact_variance(m: GaussianMixture, schedule: Schedule, t: Tensor, lattice: Callable) -> Tensor:
    """E over x_t of trace Cov(x_0 | x_t) / d at one time t, by quadrature over x_t."""
    x, cell = lattice(m.means.shape[1], 11.0, 161)
    times = t.expand(len(x))
    log_w, mean, cov = m.posterior(schedule, x, times)
    w = log_w.exp()
    spread = mean - (w[..., None] * mean).sum(1, keepdim=True)
    trace = (w * (cov.diagonal(dim1=-2, dim2=-1).sum(-1) + spread.square().sum(-1))).sum(1)
    density = m.log_prob(x, schedule.alpha(times), schedule.sigma(times)).exp() * cell
    assert float(density.sum()) == pytest.approx(1, abs=1e-6)
    return (density * trace).sum() / x.shape[1]


def test_the_three_variances_of_an_exact_denoiser_are_the_average_posterior_variance(
    mixture: GaussianMixture, schedule: Schedule, lattice: Callable
) -> None:
    runs = [calibrated(mixture, schedule, seed) for seed in range(RUNS)]
    exact = torch.stack([exact_variance(mixture, schedule, t, lattice) for t in runs[0].t])
    for kind in KINDS:
        values = torch.stack([run.raw[kind].double() for run in runs])
        error = (values.mean(0) - exact) / (values.std(0) / RUNS**0.5)
        assert error.abs().max() < 5, kind
    residual = torch.stack([run.raw["residual"] for run in runs]).mean(0).double()
    torch.testing.assert_close(residual, exact, rtol=0.03, atol=0)


def test_the_three_variances_agree_with_each_other_where_sigma_is_below_alpha(mixture: GaussianMixture) -> None:
    moments = calibrated(mixture, VPLinear(), 0, samples=20_000)
    low = VPLinear().sigma(moments.t) < VPLinear().alpha(moments.t)
    assert low.sum() >= 2
    for kind in KINDS:
        torch.testing.assert_close(moments.raw[kind][low], moments.raw["residual"][low], rtol=0.05, atol=0.005)


def test_the_data_variance_is_that_of_the_mixture(mixture: GaussianMixture) -> None:
    w = mixture.log_weights.exp()
    mean = w @ mixture.means
    total = torch.einsum("k,kii->i", w, mixture.covs) + w @ (mixture.means - mean).square()
    moments = calibrated(mixture, VPLinear(), 0, samples=20_000)
    assert float(moments.data_var) == pytest.approx(float(total.mean()), rel=0.03)


def test_a_bias_of_one_percent_ruins_posterior1_but_not_the_residual(mixture: GaussianMixture) -> None:
    schedule, samples, bias = VPLinear(), 60_000, 0.01
    moments = calibrated(mixture, schedule, 0, bias=1 + bias, samples=samples)
    ratio = (schedule.sigma(moments.t) / schedule.alpha(moments.t)) ** 2
    assert moments.raw["posterior1"][-1] < -0.01 * ratio[-1]  # 2 % of sigma^2 / alpha^2, less Monte-Carlo error
    exact = calibrated(mixture, schedule, 0, samples=samples)
    excess = moments.raw["residual"] - exact.raw["residual"]  # bias^2 E||eps||^2/d sigma^2/alpha^2: second order
    assert (excess <= 1.2 * bias**2 * ratio + 0.01).all()
    assert (moments.raw["residual"] > 0).all()
    outside = (moments.raw["posterior1"] < 0) | (moments.raw["posterior1"] > moments.data_var)
    assert moments.clamp_share("posterior1") == float(outside.double().mean()) >= 2 / GRID
    for kind in KINDS:
        assert ((moments.clamped(kind) >= 0) & (moments.clamped(kind) <= moments.data_var)).all()


def hand_made() -> Moments:
    raw = {"posterior1": torch.tensor([0.1, 0.5, -0.3]), "residual": torch.tensor([0.1, 0.3, 7.0])}
    return Moments(torch.tensor([0.0, 0.5, 1.0]), raw, torch.tensor(2.0))


@pytest.mark.parametrize(
    ("kind", "t", "want"),
    [
        ("posterior1", 0.25, 0.3),
        ("posterior1", 0.5, 0.5),
        ("posterior1", 0.75, 0.25),
        ("posterior1", 1.0, 0.0),
        ("residual", 0.1, 0.14),
        ("residual", 1.0, 2.0),
    ],
)
def test_the_variance_is_linear_between_grid_times_and_clamped_at_them(kind: str, t: float, want: float) -> None:
    posterior = MomentPosterior(lambda x, t, c: x, hand_made(), kind)
    assert float(posterior.variance(torch.tensor([t]))) == pytest.approx(want)


def test_times_outside_the_grid_take_its_ends() -> None:
    moments = replace(hand_made(), t=torch.tensor([0.1, 0.2, 0.3]))
    posterior = MomentPosterior(lambda x, t, c: x, moments, "residual")
    torch.testing.assert_close(posterior.variance(torch.tensor([0.0, 0.9])), torch.tensor([0.1, 2.0]))


def test_clamp_share_counts_the_grid_times_where_the_clamp_acts() -> None:
    assert hand_made().clamp_share("posterior1") == pytest.approx(1 / 3)
    assert hand_made().clamp_share("residual") == pytest.approx(1 / 3)
    assert replace(hand_made(), data_var=torch.tensor(9.0)).clamp_share("residual") == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_calibrated_posterior_serves_times_of_either_precision(mixture: GaussianMixture, dtype: torch.dtype) -> None:
    moments = calibrated(mixture, VPLinear(), 0)
    posterior = MomentPosterior(lambda x, t, c: 0.5 * x, moments, "residual")
    t = moments.t[1:3].to(dtype)
    q = posterior(torch.ones(2, 2, dtype=dtype), t)
    torch.testing.assert_close(q.mean, torch.full((2, 2), 0.5, dtype=dtype))
    torch.testing.assert_close(q.var.float(), moments.raw["residual"][1:3], rtol=1e-4, atol=0)


def test_moments_survive_a_checkpoint(mixture: GaussianMixture, tmp_path) -> None:
    moments = calibrated(mixture, VPLinear(), 0)
    save_checkpoint(tmp_path / "m.safetensors", moments.state(), {})
    again = Moments.load(load_checkpoint(tmp_path / "m.safetensors")[0])
    assert set(again.raw) == set(KINDS)
    assert torch.equal(again.t, moments.t)
    assert torch.equal(again.data_var, moments.data_var)
    assert all(torch.equal(again.raw[kind], moments.raw[kind]) for kind in KINDS)


def test_an_isotropic_gaussian_has_its_quadratic_form_and_moments_over_any_event_shape(generator: torch.Generator) -> None:
    mean, var = torch.randn(2, 3, 4, 4, generator=generator), torch.tensor([0.5, 2.0])
    q = IsotropicGaussian(mean, var)
    g = torch.randn(mean.shape, generator=generator)
    torch.testing.assert_close(q.quadratic(g), var * g.square().sum((1, 2, 3)))
    draws = q.sample(torch.randn(4000, *mean.shape, generator=generator))
    torch.testing.assert_close(draws.var(0).mean((1, 2, 3)), var, rtol=0.02, atol=0)
    assert ((draws.mean(0) - mean) / (var / 4000).sqrt()[:, None, None, None]).abs().max() < 4.5


def test_covariances_without_a_positive_eigenvalue_are_repaired_in_single_precision(generator: torch.Generator) -> None:
    vectors = torch.linalg.qr(torch.randn(500, 2, 2, generator=generator)).Q.float()
    values = -10 * torch.rand(500, 2, generator=generator).float()
    factor = cholesky((vectors * values[:, None]) @ vectors.mT)
    assert factor.isfinite().all()
    assert factor.abs().max() < 1e-3
