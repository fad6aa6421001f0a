"""Second order and sigma points where their docstrings say that they are exact, and their guards."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from egd.energies import FirstOrder, MonteCarlo
from egd.energies.second_order import SecondOrder
from egd.energies.sigma_points import SigmaPoints
from egd.mixtures import GaussianMixture, Quadratic
from egd.posteriors import ExactPosterior, FullGaussian, IsotropicGaussian
from egd.schedules import VPLinear
from egd.tensors import jacobian_columns, jacobian_rows, value_and_grad, value_gradient_hessian
from egd.types import Context, Schedule, TimedEnergy

F64 = {"dtype": torch.float64}
BETA = 1.7
SLOPE = torch.tensor([1.0, -0.5], **F64)
LINEAR = Quadratic(torch.zeros(2, 2, **F64), SLOPE, 0.3)
BOWL = Quadratic(torch.tensor([[0.8, 0.3], [0.3, 0.5]], **F64), SLOPE, 0.7)
SADDLE = Quadratic(torch.tensor([[0.8, 0.3], [0.3, -0.2]], **F64), SLOPE, 0.7)


@pytest.fixture
def gaussian() -> GaussianMixture:
    """One component, its covariance neither round nor aligned with the axes."""
    return GaussianMixture(torch.zeros(1), torch.tensor([[0.5, -1.0]]), torch.tensor([[[0.9, -0.4], [-0.4, 0.5]]]))


def points(m: GaussianMixture, schedule: Schedule, n: int = 32) -> tuple[Tensor, Tensor]:
    t = torch.linspace(0.02, 0.98, n)
    return m.noised(schedule, t, torch.Generator().manual_seed(3)), t


def slope_of(energy: TimedEnergy, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
    return value_and_grad(lambda x: energy(x, t, c), x)[1]


def differences(energy: TimedEnergy, x: Tensor, t: Tensor, h: float = 1e-5) -> Tensor:
    steps = h * torch.eye(x.shape[1])
    return torch.stack([(energy(x + s, t, None) - energy(x - s, t, None)) / (2 * h) for s in steps], 1)


@pytest.mark.parametrize("energy", [BOWL, SADDLE, LINEAR], ids=["bowl", "saddle", "linear"])
def test_second_order_is_exact_for_a_quadratic_energy_and_a_gaussian(
    gaussian: GaussianMixture, schedule: Schedule, energy: Quadratic
) -> None:
    x, t = points(gaussian, schedule)
    estimate = SecondOrder(energy, ExactPosterior(gaussian, schedule), BETA)
    got, got_slope = value_and_grad(lambda x: estimate(x, t), x)
    want, grad = value_and_grad(lambda x: gaussian.energy(schedule, energy, BETA, x, t), x)
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(got_slope, grad, rtol=1e-8, atol=1e-8)
    assert estimate.clips.share == 0 and estimate.clips.total == 2 * 16


def test_second_order_of_a_linear_energy_is_first_order(mixture: GaussianMixture, schedule: Schedule) -> None:
    x, t = points(mixture, schedule)
    first, second = (kind(LINEAR, ExactPosterior(mixture, schedule), BETA) for kind in (FirstOrder, SecondOrder))
    torch.testing.assert_close(second(x, t), first(x, t))
    torch.testing.assert_close(slope_of(second, x, t), slope_of(first, x, t))


def at(x: Tensor, var: float | Tensor) -> Callable[..., IsotropicGaussian]:
    """A posterior N(x_t, var I), so that the place is the input."""
    return lambda x, t, c=None: IsotropicGaussian(x, torch.as_tensor(var).expand(len(x)))


def test_curvature_below_the_bound_is_clipped_and_counted() -> None:
    """E = -5/2 x_1^2 + 1/2 x_2^2 under variances 1 and 0.1: R^T H R is diag(-5, 1) and diag(-0.5, 0.1)."""
    energy = Quadratic(torch.tensor([-5.0, 1.0]).diag(), torch.zeros(2))
    x, t = torch.tensor([[0.3, 0.4], [0.3, 0.4]]), torch.ones(2)
    estimate = SecondOrder(energy, at(x, torch.tensor([1.0, 0.1])), delta=0.05)
    g = x @ energy.A
    bent = torch.tensor([[0.05, 2.0], [0.5, 1.1]])
    pull = torch.tensor([[1.0], [0.1]]) * g.square()
    want = energy(x) - 0.5 * (pull / bent).sum(1) + 0.5 * bent.log().sum(1)
    torch.testing.assert_close(estimate(x, t), want)
    assert (estimate.clips.clipped, estimate.clips.total, estimate.clips.share) == (1, 2, 0.5)
    estimate(x, t)
    assert (estimate.clips.clipped, estimate.clips.total) == (2, 4)


def test_a_strongly_concave_energy_stays_finite_and_a_diverged_row_harms_no_other(generator: torch.Generator) -> None:
    wild = Quadratic(-1e6 * torch.eye(3), torch.ones(3))
    x, t = torch.randn(4, 3, generator=generator), torch.ones(4)
    estimate = SecondOrder(wild, at(x, 2.0))
    value, grad = value_and_grad(lambda x: estimate(x, t), x)
    assert value.isfinite().all() and grad.isfinite().all()
    assert estimate.clips.share == 1
    x[0] = torch.nan
    value = SecondOrder(wild, at(x, 2.0))(x, t)
    assert value.isfinite().tolist() == [False, True, True, True]


def quartic(x: Tensor, c: Context = None) -> Tensor:
    return 0.25 * x.pow(4).sum(1) + 0.3 * x[:, 0] * x[:, 1]


def test_gradients_pass_through_repeated_eigenvalues() -> None:
    """At x_1 = x_2 without the cross term the Hessian is a multiple of I; eigenvectors then have no derivative."""
    round_energy = lambda x, c=None: 0.25 * x.pow(4).sum(1)  # noqa: E731
    x, t = torch.tensor([[0.7, 0.7], [0.0, 0.0], [0.7, -0.7]]), torch.ones(3)
    for energy in (round_energy, quartic):
        estimate = SecondOrder(energy, at(x, 0.5), BETA)
        torch.testing.assert_close(slope_of(estimate, x, t), differences(estimate, x, t), rtol=1e-7, atol=1e-7)
        assert estimate.clips.share == 0


def test_gradients_pass_through_repeated_eigenvalues_that_are_clipped() -> None:
    hill = lambda x, c=None: -0.25 * x.pow(4).sum(1)  # noqa: E731
    x, t = torch.tensor([[2.0, 2.0], [2.0, 0.1], [-2.0, 2.0]]), torch.ones(3)  # curvature -12 and -0.03
    estimate = SecondOrder(hill, at(x, 0.5))
    torch.testing.assert_close(slope_of(estimate, x, t), differences(estimate, x, t), rtol=1e-7, atol=1e-7)
    assert estimate.clips.share == 1


def test_second_order_takes_any_event_shape_and_the_context_of_its_row(generator: torch.Generator) -> None:
    """E = c sum_i x_i^3 / 6: g = c x^2 / 2, H = c diag(x)."""
    x = 0.3 * torch.rand(4, 2, 1, 3, generator=generator)
    c, t = {"scale": 1 + torch.rand(4, generator=generator)}, torch.ones(4)
    energy = lambda x, c: c["scale"] * x.flatten(1).pow(3).sum(1) / 6  # noqa: E731
    scale, flat = c["scale"][:, None], x.flatten(1)
    g, bent = BETA * scale * flat.square() / 2, 1 + 0.4 * BETA * scale * flat
    want = BETA * energy(x, c) - 0.5 * (0.4 * g.square() / bent).sum(1) + 0.5 * bent.log().sum(1)
    torch.testing.assert_close(SecondOrder(energy, at(x, 0.4), BETA)(x, t, c), want)


def test_a_hessian_of_many_dimensions_is_refused_with_a_remedy() -> None:
    x, t = torch.zeros(1, 5), torch.ones(1)
    with pytest.raises(ValueError, match=r"5 dimensions: raise max_dim \(now 4\), or use dps or monte_carlo"):
        SecondOrder(quartic, at(x, 1.0), max_dim=4)(x, t)


def test_jacobians_and_hessians_are_those_of_reverse_mode(generator: torch.Generator) -> None:
    x, t, c = torch.randn(3, 2, 2, generator=generator), torch.rand(3, generator=generator), torch.randn(3, generator=generator)

    def f(x: Tensor, t: Tensor, c: Context) -> Tensor:
        return torch.sin(x * t[:, None, None]) * x.flip(1) * c[:, None, None]

    got = jacobian_columns(f, x, t, c, torch.eye(4)).permute(1, 2, 0)
    for i in range(3):
        want = torch.autograd.functional.jacobian(lambda p, i=i: f(p[None], t[i : i + 1], c[i : i + 1])[0], x[i])
        torch.testing.assert_close(got[i], want.reshape(4, 4))
    torch.testing.assert_close(jacobian_rows(f, x, t, c, torch.eye(4)).permute(1, 0, 2), got)
    e = lambda x, c: (c * torch.sin(x.flatten(1).prod(1))).reshape(-1)  # noqa: E731
    value, grad, hessian = value_gradient_hessian(e, x, c)
    torch.testing.assert_close(value, e(x, c))
    for i in range(3):
        alone = lambda p, i=i: e(p[None], c[i : i + 1])[0]  # noqa: E731
        torch.testing.assert_close(grad[i], torch.autograd.functional.jacobian(alone, x[i]).flatten())
        torch.testing.assert_close(hessian[i], torch.autograd.functional.hessian(alone, x[i]).reshape(4, 4))


def test_sigma_points_have_the_posteriors_mean_and_covariance(gaussian: GaussianMixture, schedule: Schedule) -> None:
    """E_t / beta -> E[E(x_0) | x_t] as beta -> 0, and for a quadratic energy this is E(mu) + 1/2 tr(Sigma A)."""
    x, t = points(gaussian, schedule)
    q = ExactPosterior(gaussian, schedule)(x, t)
    want = BOWL(q.mean) + 0.5 * (q.root() @ q.root().mT * BOWL.A).sum((1, 2))
    for kappa in (0.0, 1.0, 3.0):
        got = SigmaPoints(BOWL, ExactPosterior(gaussian, schedule), 1e-7, kappa)(x, t) / 1e-7
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_sigma_points_err_in_the_fourth_order_of_beta_for_a_linear_energy(
    gaussian: GaussianMixture, schedule: Schedule
) -> None:
    """Mean and variance are right, the third cumulant is zero by symmetry; the fourth is that of the points."""
    x, t = points(gaussian, schedule)
    error = [
        (SigmaPoints(LINEAR, ExactPosterior(gaussian, schedule), beta)(x, t) - gaussian.energy(schedule, LINEAR, beta, x, t))
        .abs()
        .max()
        for beta in (0.2, 0.1)
    ]
    assert float(error[0] / error[1]) == pytest.approx(16, rel=0.05)
    assert error[1] < 1e-4


def test_sigma_points_have_the_gradient_of_their_value(mixture: GaussianMixture) -> None:
    x, t = points(mixture, VPLinear(), 8)
    for kappa in (0.0, 1.0):
        estimate = SigmaPoints(BOWL, ExactPosterior(mixture, VPLinear()), BETA, kappa)
        torch.testing.assert_close(slope_of(estimate, x, t), differences(estimate, x, t), rtol=1e-5, atol=1e-5)


def test_sigma_points_give_every_row_its_context_over_any_event_shape(generator: torch.Generator) -> None:
    x, t = torch.randn(4, 2, 3, generator=generator), torch.ones(4)
    shift = torch.randn(4, 2, 3, generator=generator)
    energy = lambda x, c: 0.5 * (x - c["shift"]).square().flatten(1).sum(1)  # noqa: E731
    estimate = SigmaPoints(energy, at(x, 0.7))
    alone = [estimate(x[i : i + 1], t[i : i + 1], {"shift": shift[i : i + 1]}) for i in range(4)]
    torch.testing.assert_close(estimate(x, t, {"shift": shift}), torch.cat(alone))


def test_a_negative_kappa_is_refused() -> None:
    with pytest.raises(ValueError, match=r"need kappa >= 0, got -1"):
        SigmaPoints(BOWL, at(torch.zeros(1, 2), 1.0), kappa=-1)


def test_monte_carlo_over_a_full_gaussian_converges(gaussian: GaussianMixture, schedule: Schedule) -> None:
    """With the diagonal alone it would not: the energy's cross term sees the correlation."""
    x, t = points(gaussian, schedule)
    exact, mild = ExactPosterior(gaussian, schedule), 0.4
    want = gaussian.energy(schedule, BOWL, mild, x, t)
    error = [
        torch.stack([MonteCarlo(BOWL, exact, mild, k, seed)(x, t) - want for seed in range(50)]).square().mean().sqrt()
        for k in (64, 1024)
    ]
    assert float(error[0] / error[1]) == pytest.approx(4, rel=0.3)
    assert error[1] < 0.02

    def uncorrelated(x: Tensor, t: Tensor, c: Context = None) -> FullGaussian:
        q = exact(x, t)
        return FullGaussian.of(q.mean, (q.root() @ q.root().mT) * torch.eye(2))

    assert (MonteCarlo(BOWL, uncorrelated, mild, 4096)(x, t) - want).abs().max() > 0.04


@pytest.mark.parametrize("size", [1e16, 1e30, 1e300])
def test_where_a_huge_curvature_and_a_clipped_one_meet_only_that_row_is_lost(size: float, generator: torch.Generator) -> None:
    """Beside 1e16 rounding leaves nothing of the bound: no number there, and the other rows as they would be alone."""
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator))
    bent = turn @ torch.diag(torch.tensor([size, -2.0, 1.0])) @ turn.mT
    mild = torch.diag(torch.tensor([0.5, -3.0, 1.0]))

    def energy(x: Tensor, c: Context = None) -> Tensor:
        hessian = torch.where((x[:, 0] > 5)[:, None, None], 0.5 * (bent + bent.mT), mild)
        return 0.5 * torch.einsum("bi,bij,bj->b", x, hessian, x)

    estimate = SecondOrder(energy, lambda x, t, c=None: IsotropicGaussian(x, torch.ones(len(x))))
    x, kept = torch.randn(4, 3, generator=generator), torch.tensor([0, 1, 3])
    x[2, 0] = 9.0
    value, grad = value_and_grad(lambda x: estimate(x, torch.ones(len(x))), x)
    alone, slope_alone = value_and_grad(lambda x: estimate(x, torch.ones(len(x))), x[kept])
    assert value.isfinite()[kept].all()
    torch.testing.assert_close(value[kept], alone)
    torch.testing.assert_close(grad[kept], slope_alone)
