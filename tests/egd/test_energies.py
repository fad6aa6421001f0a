"""Every closed form where its docstring says that it is exact."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from egd.energies import DPS, FirstOrder, MonteCarlo, SupportSamples
from egd.energies.base import prepare
from egd.energies.monte_carlo import antithetic
from egd.mixtures import GaussianMixture, Quadratic
from egd.schedules import VPLinear
from egd.tensors import value_and_grad
from egd.types import Context, Schedule

MEAN, VAR, BETA = torch.tensor([0.5, -1.0], dtype=torch.float64), 0.8, 1.7
MILD = 0.4  # where the Boltzmann factor's variance is small, so that rates of convergence show with few draws
LINEAR = Quadratic(torch.zeros(2, 2, dtype=torch.float64), torch.tensor([1.0, -0.5], dtype=torch.float64), 0.3)
BOWL = Quadratic(
    torch.tensor([[0.8, 0.3], [0.3, 0.5]], dtype=torch.float64), torch.tensor([1.0, -0.5], dtype=torch.float64), 0.7
)


def points(m: GaussianMixture, schedule: Schedule, n: int = 32, low: float = 0.02, high: float = 0.98) -> tuple[Tensor, Tensor]:
    t = torch.linspace(low, high, n)
    return m.noised(schedule, t, torch.Generator().manual_seed(3)), t


@pytest.fixture
def prior(normal: Callable):
    return normal(MEAN, VAR)


def test_first_order_is_exact_for_a_linear_energy_and_a_gaussian_prior(prior, schedule: Schedule) -> None:
    energy = FirstOrder(LINEAR, prior.posterior(schedule), BETA)
    x, t = points(prior.as_mixture(), schedule)
    got, got_slope = value_and_grad(lambda x: energy(x, t), x)
    want, grad = value_and_grad(lambda x: prior.as_mixture().energy(schedule, LINEAR, BETA, x, t), x)
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(got_slope, grad, rtol=1e-8, atol=1e-8)


def test_first_order_of_a_linear_energy_is_the_same_wherever_it_is_expanded(prior, schedule: Schedule) -> None:
    energy = FirstOrder(LINEAR, prior.posterior(schedule), BETA)
    x, t = points(prior.as_mixture(), schedule)
    torch.testing.assert_close(energy(x, t, at=x + 3), energy(x, t))


def test_first_order_without_variance_lacks_exactly_the_variance_term(prior, schedule: Schedule) -> None:
    q = prior.posterior(schedule)
    x, t = points(prior.as_mixture(), schedule)
    g = BETA * (q(x, t).mean @ BOWL.A + BOWL.b)
    difference = FirstOrder(BOWL, q, BETA, variance=False)(x, t) - FirstOrder(BOWL, q, BETA)(x, t)
    torch.testing.assert_close(difference, 0.5 * q(x, t).var * g.square().sum(1))


def test_first_order_at_a_point_is_the_tangent_of_the_energy_there(prior, schedule: Schedule) -> None:
    q = prior.posterior(schedule)
    x, t = points(prior.as_mixture(), schedule)
    at = x + 1
    g = BETA * (at @ BOWL.A + BOWL.b)
    want = BETA * BOWL(at) + (g * (q(x, t).mean - at)).sum(1)
    torch.testing.assert_close(FirstOrder(BOWL, q, BETA, variance=False)(x, t, at=at), want)


def test_first_order_has_the_gradient_of_its_value_for_a_curved_energy(prior, schedule: Schedule) -> None:
    energy = FirstOrder(BOWL, prior.posterior(schedule), BETA)
    x, t = points(prior.as_mixture(), schedule)
    _, grad = value_and_grad(lambda x: energy(x, t), x)
    for i, h in enumerate(1e-5 * torch.eye(2)):
        torch.testing.assert_close((energy(x + h, t) - energy(x - h, t)) / 2e-5, grad[:, i], rtol=1e-6, atol=1e-6)


def test_dps_is_exact_as_the_posterior_narrows(mixture: GaussianMixture, schedule: Schedule) -> None:
    """To first order in sigma^2 the posterior is N(x, sigma^2 I), over which DPS - E_t = sigma^2 / 2 (||g||^2 - trace H)."""
    dps = DPS(BOWL, lambda x, t, c: mixture.denoise(schedule, x, t), BETA)
    x = mixture.sample(32, torch.Generator().manual_seed(0))
    bias = 0.5 * ((BETA * (x @ BOWL.A + BOWL.b)).square().sum(1) - BETA * BOWL.A.trace())
    t = torch.full((32,), 1e-4)
    noisy, var = schedule.alpha(t)[:, None] * x, schedule.sigma(t) ** 2
    assert var.max() < 2e-5
    error = dps(noisy, t) - mixture.energy(schedule, BOWL, BETA, noisy, t)
    torch.testing.assert_close(error / var, bias, rtol=0.01, atol=0.01)


def test_dps_with_a_linear_energy_is_the_expectation(prior, schedule: Schedule) -> None:
    x, t = points(prior.as_mixture(), schedule)
    q = prior.posterior(schedule)(x, t)
    torch.testing.assert_close(DPS(LINEAR, prior.denoiser(schedule), BETA)(x, t), BETA * LINEAR(q.mean))


def monte_carlo_error(prior, samples: int, seeds: int = 100) -> float:
    """Root mean square over seeds and points."""
    schedule = VPLinear()
    x, t = points(prior.as_mixture(), schedule)
    want = prior.as_mixture().energy(schedule, BOWL, MILD, x, t)
    got = [MonteCarlo(BOWL, prior.posterior(schedule), MILD, samples, seed)(x, t) for seed in range(seeds)]
    return float((torch.stack(got) - want).square().mean().sqrt())


def test_monte_carlo_converges_to_the_exact_energy_as_one_over_root_k(prior) -> None:
    coarse, fine = monte_carlo_error(prior, 64), monte_carlo_error(prior, 1024)
    assert coarse / fine == pytest.approx(4, rel=0.25)
    assert fine < 0.02


def test_monte_carlo_draws_antithetic_pairs(prior) -> None:
    """A pair sees a linear energy at E(mu) +- b, so that exp averages to cosh(b) >= 1: never above beta E(mu)."""
    x, t = points(prior.as_mixture(), VPLinear())
    q, dps = prior.posterior(VPLinear()), DPS(LINEAR, prior.denoiser(VPLinear()), BETA)(x, t)
    for seed in range(10):
        assert (MonteCarlo(LINEAR, q, BETA, 2, seed)(x, t) < dps).all()


def test_monte_carlo_is_exact_to_all_digits_for_no_spread(prior) -> None:
    narrow = prior.__class__(MEAN, 0.0)
    x, t = points(prior.as_mixture(), VPLinear())
    want = torch.full((32,), float(BETA * BOWL(MEAN)))
    torch.testing.assert_close(MonteCarlo(BOWL, narrow.posterior(VPLinear()), BETA, 7)(x, t), want)


def test_monte_carlo_is_one_smooth_function_whatever_the_batch(prior) -> None:
    energy = MonteCarlo(BOWL, prior.posterior(VPLinear()), BETA, 5)
    x, t = points(prior.as_mixture(), VPLinear())
    torch.testing.assert_close(energy(x, t), torch.cat([energy(x[i : i + 1], t[i : i + 1]) for i in range(len(x))]))


def test_monte_carlo_gives_every_row_its_own_context(prior) -> None:
    def shifted(x: Tensor, c: Context) -> Tensor:
        return BOWL(x - c["shift"])

    x, t = points(prior.as_mixture(), VPLinear(), 6)
    shift, q = torch.arange(12.0).reshape(6, 2) / 6, prior.posterior(VPLinear())
    got = MonteCarlo(shifted, q, BETA, 8)(x, t, {"shift": shift})
    for i in range(6):
        alone = MonteCarlo(shifted, q, BETA, 8)(x[i : i + 1], t[i : i + 1], {"shift": shift[i : i + 1]})
        torch.testing.assert_close(got[i : i + 1], alone)


def supported(m: GaussianMixture, schedule: Schedule, samples: int, seed: int = 0, beta: float = BETA) -> SupportSamples:
    generator = torch.Generator().manual_seed(seed)
    return SupportSamples(BOWL, lambda c, n: m.sample(n, generator)[None], schedule, beta, samples)


def test_support_samples_are_consistent(mixture: GaussianMixture, schedule: Schedule) -> None:
    x, t = points(mixture, schedule, low=0.5)
    want = mixture.energy(schedule, BOWL, MILD, x, t)
    coarse, fine = (
        torch.stack([supported(mixture, schedule, k, s, MILD)(x, t) - want for s in range(32)]).square().mean().sqrt()
        for k in (250, 4000)
    )
    assert float(coarse / fine) > 3  # 4 where the asymptotics have set in
    assert fine < 0.02


def test_support_samples_give_the_exact_direction_at_high_noise(mixture: GaussianMixture, schedule: Schedule) -> None:
    x, t = points(mixture, schedule, low=0.6)
    energy = prepare(supported(mixture, schedule, 20_000), None)
    _, got = value_and_grad(lambda x: energy(x, t, None), x)
    _, want = value_and_grad(lambda x: mixture.energy(schedule, BOWL, BETA, x, t), x)
    assert torch.cosine_similarity(got, want).min() > 0.99


def test_support_samples_are_drawn_once_when_prepared(mixture: GaussianMixture) -> None:
    energy = supported(mixture, VPLinear(), 50)
    x, t = points(mixture, VPLinear(), low=0.5)
    bound = prepare(energy, None)
    assert torch.equal(bound(x, t, None), bound(x, t, None))
    assert not torch.equal(energy(x, t), energy(x, t))


def test_support_samples_give_every_row_the_samples_of_its_context(generator: torch.Generator) -> None:
    def support(c: Tensor, n: int) -> Tensor:
        return c[:, None] + torch.linspace(-1, 1, n)[None, :, None]

    energy = SupportSamples(lambda x, c: (x * c).sum(1), support, VPLinear(), BETA, 9)
    c, x, t = torch.randn(4, 2, generator=generator), torch.randn(4, 2, generator=generator), torch.full((4,), 0.5)
    alone = [energy(x[i : i + 1], t[i : i + 1], c[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(energy(x, t, c), torch.cat(alone))


def test_energies_with_nothing_to_prepare_are_returned_as_they_are(prior) -> None:
    dps = DPS(BOWL, prior.denoiser(VPLinear()))
    assert prepare(dps, None) is dps


def test_the_conditional_expectation_is_never_below_the_exact_energy(mixture: GaussianMixture, schedule: Schedule) -> None:
    """Jensen, AEPO Theorem 3.1: beta E[E(x_0) | x_t] >= E_t(x_t), with equality as the posterior narrows."""
    x, t = points(mixture, schedule, 200, low=1e-3)
    log_w, mean, cov = mixture.posterior(schedule, x, t)
    expectation = (log_w.exp() * (BOWL(mean) + 0.5 * torch.einsum("bkij,ji->bk", cov, BOWL.A))).sum(1)
    gap = BETA * expectation - mixture.energy(schedule, BOWL, BETA, x, t)
    assert (gap > 0).all()
    assert gap[0] < 0.05 < gap.max()


def test_a_support_for_other_contexts_is_refused(generator: torch.Generator) -> None:
    """One row asked of a support drawn for three contexts would be broadcast against all of them."""
    support = lambda c, k: c[:, None] + torch.randn(len(c), k, 2, generator=generator)  # noqa: E731
    bound = SupportSamples(BOWL, support, VPLinear()).prepare(torch.randn(3, 2))
    assert bound(torch.zeros(3, 2), torch.full((3,), 0.5)).shape == (3,)
    with pytest.raises(ValueError, match="drawn for 3 contexts and is asked about 1 rows"):
        bound(torch.zeros(1, 2), torch.full((1,), 0.5))


def test_a_seed_draws_the_same_in_either_precision() -> None:
    single, double = antithetic(6, torch.zeros(1, 3, dtype=torch.float32), 4), antithetic(6, torch.zeros(1, 3), 4)
    assert single.dtype == torch.float32 and double.dtype == torch.float64
    assert torch.equal(single.double(), double)
    z = torch.randn(3, 1, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float32)
    assert torch.equal(single, torch.cat([z, -z]))  # what float32 has always drawn
