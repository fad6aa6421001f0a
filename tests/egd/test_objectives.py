"""Energy networks converge to what their objective's docstring says is its optimum."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from egd.mixtures import GaussianMixture, Quadratic
from egd.networks import EnergyMLP
from egd.objectives import MSE, Analytic
from egd.schedules import VPLinear
from egd.tensors import norm, value_and_grad
from egd.training import EnergyLearner, Fit, Objective

BETA = 2.0
SCHEDULE = VPLinear()
BOWL = Quadratic(torch.tensor([[1.0]], dtype=torch.float64), torch.tensor([-0.5], dtype=torch.float64), 30.0)
SLOPE = Quadratic(torch.zeros(2, 2, dtype=torch.float64), torch.tensor([1.0, -2.0], dtype=torch.float64))


def trained(objective: Objective, sample: Callable, dim: int, steps: int = 1500) -> EnergyMLP:
    network = EnergyMLP(dim, width=48, layers=2, time=8)
    fit = Fit(network, lr=5e-3, steps=steps, decay=True)
    learner = EnergyLearner(fit, SCHEDULE, sample, objective, batch=512)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        learner.update(generator)
    return network


def relative_error(got: Tensor, want: Tensor) -> float:
    """Root mean square error in units of the truth's own spread."""
    return float((got - want).square().mean().sqrt() / (want - want.mean(0)).square().mean().sqrt())


def test_the_mse_objective_learns_the_conditional_expectation(generator: torch.Generator) -> None:
    m = GaussianMixture(torch.tensor([0.4, 0.6]).log(), torch.tensor([[-1.5], [1.0]]), torch.full((2, 1, 1), 0.2))
    network = trained(MSE(BOWL, BETA), lambda n, g: (m.sample(n, g), None), 1)
    t = 0.01 + 0.98 * torch.rand(2000, generator=generator)
    x = m.noised(SCHEDULE, t, generator)
    log_w, mean, cov = m.posterior(SCHEDULE, x, t)
    want = BETA * (log_w.exp() * (BOWL(mean) + 0.5 * cov[..., 0, 0] * BOWL.A[0, 0])).sum(1)
    assert relative_error(network(x, t).detach(), want) < 0.1


def test_the_analytic_objective_at_the_mean_learns_the_exact_energy_of_a_linear_one(
    normal: Callable, generator: torch.Generator
) -> None:
    prior = normal(torch.tensor([0.5, -0.5]), 0.7)
    network = trained(Analytic(SLOPE, prior.posterior(SCHEDULE), BETA, expand_at="mean"), prior.sample, 2)
    t = 0.01 + 0.98 * torch.rand(2000, generator=generator)
    x = prior.as_mixture().noised(SCHEDULE, t, generator)
    got, slope = value_and_grad(lambda x: network(x, t), x)
    want, exact = value_and_grad(lambda x: prior.as_mixture().energy(SCHEDULE, SLOPE, BETA, x, t), x)
    assert relative_error(got, want) < 0.03
    assert float((slope - exact).square().mean().sqrt() / exact.square().mean().sqrt()) < 0.1


def problem(normal: Callable, generator: torch.Generator) -> tuple:
    prior = normal(torch.tensor([0.5, -0.5]), 0.7)
    x0, _ = prior.sample(6, generator)
    return prior.posterior(SCHEDULE), x0, x0 + 1, torch.linspace(0.1, 0.9, 6)


@pytest.mark.parametrize("nu", [0.0, 0.001, 0.25])
def test_the_expansion_point_is_the_data_moved_by_nu_up_the_energy(
    normal: Callable, generator: torch.Generator, nu: float
) -> None:
    posterior, x0, x, t = problem(normal, generator)
    bowl = Quadratic(torch.diag(torch.tensor([1.0, 3.0])), torch.tensor([1.0, -0.5]))
    visited: list[Tensor] = []

    def recording(p: Tensor, c: None) -> Tensor:
        visited.append(p.detach().clone())
        return bowl(p)

    Analytic(recording, posterior, BETA, nu=nu).target(x0, x, t, None)
    start, point = visited
    uphill = x0 @ bowl.A + bowl.b
    assert torch.equal(start, x0)
    torch.testing.assert_close(point - x0, nu * uphill / norm(uphill)[:, None], rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(norm(point - x0), torch.full((6,), nu), rtol=1e-10, atol=1e-14)
    assert nu == 0 or (bowl(point) > bowl(x0)).all()


def test_the_analytic_target_is_the_first_order_form_at_that_point(normal: Callable, generator: torch.Generator) -> None:
    posterior, x0, x, t = problem(normal, generator)
    q = posterior(x, t)
    bowl = Quadratic(torch.diag(torch.tensor([1.0, 3.0])), torch.tensor([1.0, -0.5]))
    g = BETA * (x0 @ bowl.A + bowl.b)
    tangent = BETA * bowl(x0) + (g * (q.mean - x0)).sum(1)
    got = Analytic(bowl, posterior, BETA, nu=0.0, variance=False).target(x0, x, t, None)
    torch.testing.assert_close(got, tangent)
    got = Analytic(bowl, posterior, BETA, nu=0.0).target(x0, x, t, None)
    torch.testing.assert_close(got, tangent - 0.5 * q.var * g.square().sum(1))


def test_a_flat_energy_does_not_divide_by_its_zero_gradient(normal: Callable, generator: torch.Generator) -> None:
    posterior, x0, x, t = problem(normal, generator)
    flat = Quadratic(torch.zeros(2, 2), torch.zeros(2), 4.0)
    torch.testing.assert_close(Analytic(flat, posterior, BETA).target(x0, x, t, None), torch.full((6,), 4 * BETA))


@pytest.mark.parametrize("kind", ["analytic at data", "analytic at mean", "mse"])
def test_the_target_carries_no_gradient(normal: Callable, generator: torch.Generator, kind: str) -> None:
    posterior, x0, x, t = problem(normal, generator)
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))  # a critic's, say

    def energy(p: Tensor, c: None) -> Tensor:
        return (p.square() * weight).sum(1)

    objectives = {
        "analytic at data": Analytic(energy, posterior, BETA),
        "analytic at mean": Analytic(energy, posterior, BETA, expand_at="mean"),
        "mse": MSE(energy, BETA),
    }
    objective = objectives[kind]
    assert not objective.target(x0, x.requires_grad_(), t, None).requires_grad
    network = EnergyMLP(2, width=8, layers=1, time=4)
    loss, metrics = objective.loss(network, x0, x, t, None)
    loss.backward()
    assert weight.grad is None
    assert all(p.grad is not None for p in network.parameters())
    torch.testing.assert_close(metrics["target_mean"], objective.target(x0, x, t, None).mean())


def test_an_energy_learner_works_at_unit_scale_whatever_the_units(normal: Callable) -> None:
    prior = normal(torch.tensor([0.5]), 0.7)
    fit = Fit(EnergyMLP(1, width=8, layers=1, time=4), lr=1e-3, steps=1)
    learner = EnergyLearner(fit, SCHEDULE, prior.sample, MSE(BOWL, 1e4), batch=4096)
    metrics = learner.update(torch.Generator().manual_seed(0))
    assert float(metrics["loss"]) == pytest.approx(1, abs=0.2)
    assert float(learner.scale) == pytest.approx(float(metrics["target_std"]))


def test_a_foreign_network_keeps_its_own_scale(normal: Callable) -> None:
    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.level = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor, t: Tensor, c: None) -> Tensor:
            return self.level.expand(len(x))

    learner = EnergyLearner(Fit(Plain(), lr=1e-3, steps=1), SCHEDULE, normal(torch.zeros(1), 1.0).sample, MSE(BOWL), batch=16)
    assert float(learner.update(torch.Generator().manual_seed(0))["loss"]) > 100
    assert learner.scale == 1.0
