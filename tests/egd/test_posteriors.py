from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from egd.checkpoint import load_checkpoint, save_checkpoint
from egd.mixtures import GaussianMixture
from egd.posteriors import (
    DiagonalGaussian,
    FullGaussian,
    IsotropicGaussian,
    MomentPosterior,
    Moments,
    calibrate,
    posterior1,
    posterior2,
    residual,
)
from egd.posteriors.base import cholesky
from egd.posteriors.moments import KINDS
from egd.schedules import FlowMatching, VPLinear
from egd.types import Gaussian, Schedule

RUNS = 16
GRID = 6


def calibrated(m: GaussianMixture, schedule: Schedule, seed: int, bias: float = 1.0, samples: int = 2000) -> Moments:
    """Of the mixture's exact denoiser, with its eps scaled by ``bias``."""

    def denoiser(x: Tensor, t: Tensor, c: None) -> Tensor:
        if bias == 1.0:
            return m.denoise(schedule, x, t)
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


def over_x(m: GaussianMixture, schedule: Schedule, t: Tensor, lattice: Callable) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes x_t (N, d), the same time for each (N,), and q_t(x_t) dx (N,): averages over x_t by quadrature."""
    x, cell = lattice(m.means.shape[1], 11.0, 161)
    times = t.expand(len(x))
    density = m.log_prob(x, schedule.alpha(times), schedule.sigma(times)).exp() * cell
    assert float(density.sum()) == pytest.approx(1, abs=1e-6)
    return x, times, density


def exact_covariance(m: GaussianMixture, schedule: Schedule, t: Tensor, lattice: Callable) -> Tensor:
    """E over x_t of Cov(x_0 | x_t) at one time t: (d, d)"""
    x, times, density = over_x(m, schedule, t, lattice)
    log_w, mean, cov = m.posterior(schedule, x, times)
    w = log_w.exp()
    spread = mean - (w[..., None] * mean).sum(1, keepdim=True)
    return torch.einsum("b,bk,bkij->ij", density, w, cov + spread[..., :, None] * spread[..., None, :])


def test_the_three_covariances_of_an_exact_denoiser_are_the_average_posterior_covariance(
    mixture: GaussianMixture, schedule: Schedule, lattice: Callable
) -> None:
    runs = [calibrated(mixture, schedule, seed) for seed in range(RUNS)]
    exact = torch.stack([exact_covariance(mixture, schedule, t.double(), lattice) for t in runs[0].t])
    trace = exact.diagonal(dim1=1, dim2=2).mean(1)
    for kind in KINDS:
        for values, want in (
            (torch.stack([run.raw[kind].double() for run in runs]), trace),
            (torch.stack([run.matrices[kind].double() for run in runs]), exact),
        ):
            error = (values.mean(0) - want) / (values.std(0) / RUNS**0.5)
            assert error.abs().max() < 5, kind
    average = torch.stack([run.matrices["residual"] for run in runs]).mean(0).double()
    torch.testing.assert_close(average, exact, rtol=0.03, atol=0.03)
    torch.testing.assert_close(average.diagonal(dim1=1, dim2=2).mean(1), trace, rtol=0.03, atol=0)


@pytest.mark.parametrize("t", [0.1, 0.4, 0.7])
def test_the_three_full_forms_are_one_covariance_for_an_exact_denoiser(
    mixture: GaussianMixture, schedule: Schedule, lattice: Callable, t: float
) -> None:
    """AEPO Eq. 21 and 41, their expectations over x_t taken by quadrature: no draws, hence many digits."""
    time = torch.tensor(t)
    x, times, density = over_x(mixture, schedule, time, lattice)
    alpha, sigma = schedule.alpha(time), schedule.sigma(time)
    mu = mixture.denoise(schedule, x, times)
    eps = (x - alpha * mu) / sigma
    w = mixture.log_weights.exp()
    mean = w @ mixture.means
    offset = mixture.means - mean
    data = torch.einsum("k,kij->ij", w, mixture.covs + offset[:, :, None] * offset[:, None])
    first = (sigma / alpha) ** 2 * (torch.eye(2) - torch.einsum("b,bi,bj->ij", density, eps, eps))
    second = data - torch.einsum("b,bi,bj->ij", density, mu - mean, mu - mean)
    want = exact_covariance(mixture, schedule, time, lattice)
    torch.testing.assert_close(first, want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(second, want, rtol=1e-5, atol=1e-6)


def test_the_three_variances_agree_with_each_other_where_sigma_is_below_alpha(mixture: GaussianMixture) -> None:
    moments = calibrated(mixture, VPLinear(), 0, samples=20_000)
    low = VPLinear().sigma(moments.t) < VPLinear().alpha(moments.t)
    assert low.sum() >= 2
    for kind in KINDS:
        torch.testing.assert_close(moments.raw[kind][low], moments.raw["residual"][low], rtol=0.05, atol=0.005)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_at_low_noise_posterior2_is_no_matter_of_chance(mixture: GaussianMixture, schedule: Schedule, seed: int) -> None:
    """The plain difference has an error of (sigma / alpha) sqrt(v / N), several times what it estimates."""
    moments = calibrate(
        lambda x, t, c: mixture.denoise(schedule, x, t),
        schedule,
        lambda n, g: (mixture.sample(n, g), None),
        generator=torch.Generator().manual_seed(seed),
        grid=3,
        samples=8192,
        t_min=1e-3,
        t_max=5e-3,
    )
    second, residual = moments.matrices["posterior2"], moments.matrices["residual"]
    assert ((second - residual).flatten(1).norm(dim=1) < 0.35 * residual.flatten(1).norm(dim=1)).all()
    assert ((moments.raw["posterior2"] / moments.raw["residual"] - 1).abs() < 0.25).all()
    assert moments.clamp_share("posterior2") == 0


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


WRONG = {
    "another grid": lambda s: s | {"t": s["t"][:-1]},
    "a kind less": lambda s: {k: v for k, v in s.items() if k != "raw.residual"},
    "float16": lambda s: s | {"raw.posterior1": s["raw.posterior1"].half()},
    "float64": lambda s: s | {"matrices.residual": s["matrices.residual"].double()},
    "integers": lambda s: s | {"data_var": s["data_var"].long()},
    "another shape": lambda s: s | {"matrices.posterior2": s["matrices.posterior2"][:, 0]},
    "no square": lambda s: s | {"data_cov": s["data_cov"][:1]},
}


@pytest.mark.parametrize("kind", WRONG)
def test_moments_that_no_calibration_gives_are_refused(kind: str) -> None:
    m = GaussianMixture(torch.zeros(1), torch.zeros(1, 2), torch.eye(2)[None])
    state = {name: tensor.float() for name, tensor in calibrated(m, VPLinear(), 0, samples=200).state().items()}
    Moments.load(state).checked()
    with pytest.raises(ValueError, match=r"calibration|float32"):
        Moments.load(WRONG[kind](dict(state))).checked()


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
    assert torch.equal(again.data_cov, moments.data_cov)
    for kind in KINDS:
        assert torch.equal(again.raw[kind], moments.raw[kind])
        assert torch.equal(again.matrices[kind], moments.matrices[kind])
        assert torch.equal(again.clamped_full(kind), moments.clamped_full(kind))


def test_isotropic_moments_survive_without_matrices() -> None:
    again = Moments.load(hand_made().state())
    assert again.matrices == {} and again.data_cov is None
    assert torch.equal(again.clamped("posterior1"), hand_made().clamped("posterior1"))


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


def psd(d: int, generator: torch.Generator, batch: int = 1) -> Tensor:
    root = torch.randn(batch, d, d, generator=generator)
    return root @ root.mT + 0.1 * torch.eye(d)


EVENT = (2, 3, 1)


def gaussians(generator: torch.Generator) -> dict[str, tuple[Gaussian, Tensor]]:
    """Each kind over events of shape (2, 3, 1), with its covariance (4, 6, 6)."""
    mean, var = torch.randn(4, *EVENT, generator=generator), 0.1 + torch.rand(4, 6, generator=generator)
    cov = psd(6, generator, 4)
    return {
        "isotropic": (IsotropicGaussian(mean, var[:, 0]), var[:, :1, None] * torch.eye(6)),
        "diagonal": (DiagonalGaussian(mean, var.reshape(mean.shape)), var.diag_embed()),
        "full": (FullGaussian.of(mean, cov), cov),
    }


@pytest.mark.parametrize("kind", ["isotropic", "diagonal", "full"])
def test_root_quadratic_form_and_draws_of_a_gaussian_belong_to_one_covariance(kind: str, generator: torch.Generator) -> None:
    q, cov = gaussians(generator)[kind]
    torch.testing.assert_close(q.root() @ q.root().mT, cov)
    g = torch.randn(4, *EVENT, generator=generator)
    torch.testing.assert_close(q.quadratic(g), torch.einsum("bi,bij,bj->b", g.flatten(1), cov, g.flatten(1)))
    axes = torch.eye(6).reshape(6, 1, *EVENT).expand(6, 4, *EVENT)
    columns = (q.sample(axes) - q.mean).flatten(2).permute(1, 2, 0)  # a draw is linear in its noise
    torch.testing.assert_close(columns @ columns.mT, cov)
    torch.testing.assert_close(q.sample(0 * axes), q.mean.expand(6, 4, *EVENT))


@pytest.mark.parametrize("kind", ["isotropic", "diagonal", "full"])
def test_draws_have_the_moments_of_their_gaussian(kind: str, generator: torch.Generator) -> None:
    q, cov = gaussians(generator)[kind]
    n = 20_000
    draws = q.sample(torch.randn(n, *q.mean.shape, generator=generator)).flatten(2)
    error = (draws.mean(0) - q.mean.flatten(1)) / (cov.diagonal(dim1=1, dim2=2) / n).sqrt()
    assert error.abs().max() < 4.5
    for row in range(4):
        torch.testing.assert_close(draws[:, row].mT.cov(), cov[row], rtol=0.05, atol=0.05 * float(cov[row].abs().max()))


def test_a_covariance_that_is_not_positive_definite_is_repaired_and_the_others_are_left_alone(
    generator: torch.Generator,
) -> None:
    good, vectors = psd(3, generator)[0], torch.linalg.qr(torch.randn(3, 3, generator=generator)).Q
    bad = vectors @ torch.tensor([2.0, 0.5, -1.0]).diag() @ vectors.mT
    factor = cholesky(torch.stack([good, bad, torch.full((3, 3), torch.nan)]))
    torch.testing.assert_close(factor[0], torch.linalg.cholesky(good))
    want = vectors @ torch.tensor([2.0, 0.5, 2e-6]).diag() @ vectors.mT
    torch.testing.assert_close(factor[1] @ factor[1].mT, want)
    assert factor[2].isnan().all()


def test_an_asymmetric_matrix_is_repaired_by_its_symmetric_part(generator: torch.Generator) -> None:
    cov, twist = psd(3, generator), torch.randn(1, 3, 3, generator=generator)
    torch.testing.assert_close(cholesky(cov + twist - twist.mT), torch.linalg.cholesky(cov))


def test_a_repair_leaves_the_gradient_of_sound_rows_alone_and_its_own_finite(generator: torch.Generator) -> None:
    cov = torch.cat([psd(3, generator, 2), -torch.eye(3)[None]]).requires_grad_()  # one with a repeated eigenvalue
    weight = torch.randn(3, 3, 3, generator=generator)
    (got,) = torch.autograd.grad((cholesky(cov) * weight).sum(), cov)
    alone = 0.5 * (cov[:2] + cov[:2].mT)
    (want,) = torch.autograd.grad((torch.linalg.cholesky(alone) * weight[:2]).sum(), cov)
    torch.testing.assert_close(got[:2], want[:2])
    assert got.isfinite().all()


def out_of_range(generator: torch.Generator, d: int = 3, dtype: torch.dtype = torch.float64) -> Moments:
    """Covariances that are too large, negative, indefinite, and at last sound: half of the data's."""
    data = psd(d, generator)[0]
    wild = torch.randn(d, d, generator=generator)
    matrices = torch.stack([5 * data, -data, wild + wild.mT, 0.5 * data]).to(dtype)
    raw = {"residual": matrices.diagonal(dim1=1, dim2=2).mean(1)}
    return Moments(torch.linspace(0, 1, 4), raw, data.trace().to(dtype) / d, {"residual": matrices}, data.to(dtype))


def test_full_covariances_are_clamped_between_zero_and_the_datas(generator: torch.Generator) -> None:
    moments = out_of_range(generator)
    clamped = moments.clamped_full("residual")
    assert torch.linalg.eigvalsh(clamped).min() > -1e-9
    assert torch.linalg.eigvalsh(moments.data_cov - clamped).min() > -1e-9
    torch.testing.assert_close(clamped[0], moments.data_cov)
    torch.testing.assert_close(clamped[1], torch.zeros(3, 3))
    torch.testing.assert_close(clamped[3], 0.5 * moments.data_cov)
    assert moments.clamp_share("residual") >= 2 / 4


def test_variances_are_clamped_coordinate_by_coordinate(generator: torch.Generator) -> None:
    moments = out_of_range(generator)
    top, values = moments.data_cov.diagonal(), moments.matrices["residual"].diagonal(dim1=1, dim2=2)
    want = torch.stack([top, 0 * top, values[2].clamp(min=0).minimum(top), 0.5 * top])
    torch.testing.assert_close(moments.clamped_diagonal("residual"), want)
    flat = replace(moments, matrices={"residual": values}, data_cov=top)
    torch.testing.assert_close(flat.clamped_diagonal("residual"), want)


def test_data_of_lower_rank_have_a_clamped_covariance_too(generator: torch.Generator) -> None:
    """Two equal coordinates and a constant one, in single precision."""

    def sample(n: int, g: torch.Generator) -> tuple[Tensor, None]:
        z = torch.randn(n, 6, generator=g, dtype=torch.float32) @ spread
        return torch.cat([z, z[:, :1], torch.full_like(z[:, :1], 0.3)], 1), None

    spread = torch.randn(6, 20, generator=generator).float()
    moments = calibrate(lambda x, t, c: 0.5 * x, VPLinear(), sample, generator=generator, grid=4, samples=500)
    for kind in KINDS:
        clamped = moments.clamped_full(kind)
        scale = 1e-4 * torch.linalg.eigvalsh(moments.data_cov)[-1]
        assert torch.linalg.eigvalsh(clamped).min() > -scale
        assert torch.linalg.eigvalsh(moments.data_cov - clamped).min() > -scale


@pytest.mark.parametrize("make", [posterior1, posterior2, residual])
@pytest.mark.parametrize("covariance", ["isotropic", "diagonal", "full"])
def test_a_recipes_posterior_gives_the_covariance_of_its_kind_and_time(
    make: Callable, covariance: str, generator: torch.Generator
) -> None:
    grid = torch.tensor([0.0, 0.5, 1.0])
    data = psd(6, generator)[0]
    shares = {kind: s * torch.tensor([0.2, 0.4, 0.8]) for kind, s in zip(KINDS, (1.0, 0.9, 0.8), strict=True)}
    matrices = {kind: share[:, None, None] * data for kind, share in shares.items()}
    raw = {kind: m.diagonal(dim1=1, dim2=2).mean(1) for kind, m in matrices.items()}
    moments = Moments(grid, raw, data.trace() / 6, matrices, data)
    x, t = torch.randn(3, *EVENT, generator=generator), torch.tensor([0.0, 0.25, 0.9])
    q = make(lambda x, t, c: 2 * x, moments, covariance)(x, t)
    torch.testing.assert_close(q.mean, 2 * x)
    share = shares[make.__name__][0] / 0.2 * torch.tensor([0.2, 0.3, 0.72])
    cov = share[:, None, None] * data
    diagonal = cov.diagonal(dim1=1, dim2=2)
    want = {"isotropic": diagonal.mean(1)[:, None].expand(3, 6).diag_embed(), "diagonal": diagonal.diag_embed(), "full": cov}
    torch.testing.assert_close(q.root() @ q.root().mT, want[covariance])


def test_above_full_up_to_only_variances_are_estimated(mixture: GaussianMixture) -> None:
    full, few = (
        calibrate(
            lambda x, t, c: mixture.denoise(VPLinear(), x, t),
            VPLinear(),
            lambda n, g: (mixture.sample(n, g), None),
            generator=torch.Generator().manual_seed(0),
            grid=GRID,
            samples=3000,
            full_up_to=up_to,
        )
        for up_to in (2, 1)
    )
    assert full.data_cov.shape == (2, 2) and few.data_cov.shape == (2,)
    torch.testing.assert_close(few.data_cov, full.data_cov.diagonal())
    torch.testing.assert_close(few.data_var, full.data_var)
    for kind in KINDS:
        torch.testing.assert_close(few.matrices[kind], full.matrices[kind].diagonal(dim1=1, dim2=2))
        torch.testing.assert_close(few.raw[kind], full.raw[kind])
        torch.testing.assert_close(few.clamped_diagonal(kind), full.clamped_diagonal(kind))
    with pytest.raises(ValueError, match=r"raise calibrate\(full_up_to=\) or use covariance='diagonal'"):
        few.clamped_full("residual")
    with pytest.raises(ValueError, match=r"isotropic variances only; make them with calibrate\(\)"):
        hand_made().clamped_diagonal("residual")


def test_where_alpha_is_zero_the_posterior_is_the_data(mixture: GaussianMixture) -> None:
    moments = calibrated(mixture, FlowMatching(), 0, samples=20_000)
    for kind in KINDS:
        torch.testing.assert_close(moments.matrices[kind][-1], moments.data_cov, rtol=1e-4, atol=0.01)
        assert moments.matrices[kind].isfinite().all()


def test_images_and_dicts_of_contexts_are_calibrated_like_vectors() -> None:
    schedule = VPLinear()

    def sample(n: int, g: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        shift = torch.randint(0, 2, (n,), generator=g).double()
        return shift[:, None, None, None] + 0.5 * torch.randn(n, *EVENT, generator=g), {"shift": shift}

    def denoiser(x: Tensor, t: Tensor, c: dict[str, Tensor]) -> Tensor:
        alpha, sigma, mean = (v[:, None, None, None] for v in (schedule.alpha(t), schedule.sigma(t), c["shift"]))
        return mean + 0.25 * alpha / (0.25 * alpha**2 + sigma**2) * (x - alpha * mean)

    moments = calibrate(
        denoiser, schedule, sample, generator=torch.Generator().manual_seed(0), grid=3, samples=20_000, t_min=0.1, t_max=0.5
    )
    alpha, sigma = schedule.alpha(moments.t), schedule.sigma(moments.t)
    want = (0.25 * sigma**2 / (0.25 * alpha**2 + sigma**2)).float()
    torch.testing.assert_close(moments.raw["residual"], want.to(moments.raw["residual"]), rtol=0.02, atol=0)
    eye = torch.eye(6, dtype=moments.matrices["residual"].dtype)
    torch.testing.assert_close(moments.matrices["residual"], want[:, None, None] * eye, rtol=0.05, atol=0.005)


@pytest.mark.parametrize("covariance", ["isotropic", "diagonal", "full"])
def test_between_grid_times_the_variance_is_that_of_the_time(schedule: Schedule, covariance: str) -> None:
    """At t = 0.002 a line from the grid's first time to its second is several times too high: Sigma falls as sigma^2."""
    data = GaussianMixture(torch.zeros(1), torch.zeros(1, 2), torch.tensor([[[1.0, 0.3], [0.3, 0.5]]]))
    denoiser = lambda x, t, c=None: data.denoise(schedule, x, t)  # noqa: E731
    moments = calibrate(denoiser, schedule, lambda n, g: (data.sample(n, g), None), generator=torch.Generator(), samples=8192)
    t = torch.tensor([2e-3, 3e-3, 1e-2, 0.35, 0.72])
    _, _, cov = data.posterior(schedule, torch.zeros(len(t), 2), t)
    exact = cov[:, 0]
    got = MomentPosterior(denoiser, moments, covariance=covariance).variance(t)
    spread = exact.diagonal(dim1=1, dim2=2)
    want = {"isotropic": spread.mean(1), "diagonal": spread, "full": exact}[covariance]
    error = (got - want).reshape(len(t), -1).norm(dim=1)
    assert (error < 0.04 * want.reshape(len(t), -1).norm(dim=1)).all()
    loaded = replace(Moments.load(moments.state()), schedule=None)
    assert (residual(denoiser, loaded, covariance, schedule).variance(t) - got).abs().max() < 1e-6  # a recipe gives its own
    assert (residual(denoiser, loaded, covariance).variance(t[:1]) / got[:1]).flatten()[0] > 1.5  # without one: the line
