from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from egd.denoisers import score
from egd.mixtures import GaussianMixture, Quadratic
from egd.schedules import VPLinear
from egd.tensors import value_and_grad
from egd.types import Schedule

ENERGY = Quadratic(
    torch.tensor([[0.8, 0.3], [0.3, 0.5]], dtype=torch.float64), torch.tensor([1.0, -0.5], dtype=torch.float64), 0.7
)
BETA = 1.5


def reference(m: GaussianMixture, alpha: float = 1.0, sigma: float = 0.0) -> MixtureSameFamily:
    eye = torch.eye(m.means.shape[1])
    parts = MultivariateNormal(alpha * m.means, alpha**2 * m.covs + sigma**2 * eye)
    return MixtureSameFamily(Categorical(logits=m.log_weights), parts)


def noised(m: GaussianMixture, schedule: Schedule, n: int = 64) -> tuple[Tensor, Tensor]:
    t = torch.linspace(0.02, 0.98, n)
    return m.noised(schedule, t, torch.Generator().manual_seed(3)), t


def log_q(m: GaussianMixture, schedule: Schedule, t: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: m.log_prob(x, schedule.alpha(t), schedule.sigma(t))


def test_log_prob_agrees_with_torch_distributions(mixture: GaussianMixture) -> None:
    x = mixture.sample(50, torch.Generator().manual_seed(0))
    torch.testing.assert_close(mixture.log_prob(x), reference(mixture).log_prob(x))
    alpha, sigma = torch.full((50,), 0.6), torch.full((50,), 0.8)
    torch.testing.assert_close(mixture.log_prob(x, alpha, sigma), reference(mixture, 0.6, 0.8).log_prob(x))


def test_samples_have_the_moments_of_the_mixture(mixture: GaussianMixture, generator: torch.Generator) -> None:
    n = 40_000
    x, truth = mixture.sample(n, generator), reference(mixture)
    error = (x.mean(0) - truth.mean) / (truth.variance / n).sqrt()
    assert error.abs().max() < 4
    torch.testing.assert_close(x.var(0), truth.variance, rtol=0.03, atol=0)


def test_noised_samples_follow_q_t(mixture: GaussianMixture, schedule: Schedule, generator: torch.Generator) -> None:
    n, t = 40_000, torch.tensor([0.5])
    x = mixture.noised(schedule, t.expand(n), generator)
    truth = reference(mixture, float(schedule.alpha(t)), float(schedule.sigma(t)))
    assert ((x.mean(0) - truth.mean) / (truth.variance / n).sqrt()).abs().max() < 4
    torch.testing.assert_close(x.var(0), truth.variance, rtol=0.03, atol=0)


def test_the_denoiser_is_tweedies(mixture: GaussianMixture, schedule: Schedule) -> None:
    x, t = noised(mixture, schedule)
    _, grad = value_and_grad(log_q(mixture, schedule, t), x)
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    torch.testing.assert_close(mixture.denoise(schedule, x, t), (x + sigma**2 * grad) / alpha, rtol=1e-8, atol=1e-8)


def test_the_score_of_the_denoiser_is_the_gradient_of_log_q_t(mixture: GaussianMixture, schedule: Schedule) -> None:
    x, t = noised(mixture, schedule)
    _, grad = value_and_grad(log_q(mixture, schedule, t), x)
    got = score(lambda x, t, c: mixture.denoise(schedule, x, t), schedule, x, t)
    torch.testing.assert_close(got, grad, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("t", [0.25, 0.5, 0.8])
def test_posterior_and_energy_agree_with_quadrature(schedule: Schedule, lattice: Callable, dim: int, t: float) -> None:
    m, energy = GaussianMixture.random(3, dim, seed=4), Quadratic(ENERGY.A[:dim, :dim], ENERGY.b[:dim], ENERGY.e)
    points, cell = lattice(dim, 12.0, 481 if dim == 2 else 4001)
    times = torch.full((3,), t)
    x = m.noised(schedule, times, torch.Generator().manual_seed(7))
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    log_joint = m.log_prob(points) - (x[:, None] - alpha[0] * points).square().sum(2) / (2 * sigma[0] ** 2)
    w = log_joint.softmax(1)
    mean = w @ points
    second = torch.einsum("bn,ni,nj->bij", w, points, points)
    log_w, means, covs = m.posterior(schedule, x, times)
    got = torch.einsum("bk,bkij->bij", log_w.exp(), covs + means[..., :, None] * means[..., None, :])
    torch.testing.assert_close(m.denoise(schedule, x, times), mean, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(got, second, rtol=1e-8, atol=1e-8)
    normaliser = (2 * torch.pi * sigma**2) ** (-dim / 2) * cell * log_joint.exp().sum(1)
    torch.testing.assert_close(normaliser.log(), m.log_prob(x, alpha, sigma), rtol=1e-8, atol=1e-8)
    exact = -(w * torch.exp(-BETA * energy(points))).sum(1).log()
    torch.testing.assert_close(m.energy(schedule, energy, BETA, x, times), exact, rtol=1e-8, atol=1e-8)


def test_the_tilted_mixture_is_q_times_the_boltzmann_factor(mixture: GaussianMixture) -> None:
    x = mixture.sample(30, torch.Generator().manual_seed(0))
    log_ratio = mixture.tilted(ENERGY, BETA).log_prob(x) - mixture.log_prob(x) + BETA * ENERGY(x)  # = -log Z everywhere
    torch.testing.assert_close(log_ratio, log_ratio.mean().expand(30), rtol=1e-9, atol=1e-9)


def test_the_tilted_mixture_agrees_with_importance_weights(mixture: GaussianMixture, generator: torch.Generator) -> None:
    x, mild = mixture.sample(200_000, generator), 0.2
    w = (-mild * ENERGY(x)).softmax(0)
    truth = reference(mixture.tilted(ENERGY, mild))
    for f, want in ((x, truth.mean), (x.square(), truth.variance + truth.mean**2)):
        got = w @ f
        standard_error = (w.square() @ (f - got).square()).sqrt()
        assert ((got - want) / standard_error).abs().max() < 4


def test_guidance_by_the_exact_energy_is_exact_at_every_time(mixture: GaussianMixture, schedule: Schedule) -> None:
    """AEPO Eq. 31: grad log p_t = grad log q_t - grad E_t."""
    x, t = noised(mixture, schedule)
    _, of_p = value_and_grad(log_q(mixture.tilted(ENERGY, BETA), schedule, t), x)
    _, of_q = value_and_grad(log_q(mixture, schedule, t), x)
    _, of_e = value_and_grad(lambda x: mixture.energy(schedule, ENERGY, BETA, x, t), x)
    torch.testing.assert_close(of_p, of_q - of_e, rtol=1e-8, atol=1e-8)


def test_the_energy_tends_to_beta_e_at_the_data(mixture: GaussianMixture, schedule: Schedule) -> None:
    x, t = mixture.sample(20, torch.Generator().manual_seed(0)), torch.full((20,), 1e-5)
    torch.testing.assert_close(mixture.energy(schedule, ENERGY, BETA, x, t), BETA * ENERGY(x), rtol=1e-3, atol=1e-3)


def test_quadratic_is_its_formula(generator: torch.Generator) -> None:
    x = torch.randn(5, 2, generator=generator)
    want = torch.stack([0.5 * v @ ENERGY.A @ v + ENERGY.b @ v + ENERGY.e for v in x])
    torch.testing.assert_close(ENERGY(x), want)


@pytest.mark.parametrize("curvature", [[-100.0, 0.0], [0.0, -100.0], [-100.0, -100.0]], ids=["first", "second", "both"])
def test_a_tilt_without_an_integral_is_refused(mixture: GaussianMixture, curvature: list[float]) -> None:
    runaway = Quadratic(torch.tensor(curvature).diag(), torch.zeros(2))
    with pytest.raises(ValueError, match=r"no finite integral at beta = 2\.0; use a smaller beta"):
        mixture.tilted(runaway, 2.0)


def test_a_concave_energy_is_fine_while_it_has_an_integral(mixture: GaussianMixture) -> None:
    curve = 0.5 / torch.linalg.eigvalsh(mixture.covs).max()
    x, t = noised(mixture, VPLinear())
    energy = Quadratic(-curve * torch.eye(2), torch.zeros(2))
    assert mixture.energy(VPLinear(), energy, 1.0, x, t).isfinite().all()
    assert mixture.tilted(energy, 1.0).log_prob(x).isfinite().all()
