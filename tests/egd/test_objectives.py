"""Energy networks converge to what their objective's docstring says is its optimum."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from egd.config.components import Registry, Spec, build
from egd.energies import DPS, SecondOrder, Sum
from egd.energies.support import SupportSamples
from egd.mixtures import GaussianMixture, Quadratic
from egd.networks.mlp import EnergyMLP
from egd.objectives import CEP, MSE, Analytic, ExpMSE, Ratio
from egd.posteriors import IsotropicGaussian
from egd.schedules import VPLinear
from egd.tensors import norm, value_and_grad
from egd.training.learners import EnergyLearner, Fit
from egd.types import Context, Objective

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


@pytest.mark.slow
def test_the_analytic_objective_at_the_mean_learns_the_exact_energy_of_a_linear_one(
    normal: Callable, generator: torch.Generator
) -> None:
    prior = normal(torch.tensor([0.5, -0.5]), 0.7)
    network = trained(Analytic(SLOPE, prior.posterior(SCHEDULE), BETA, expand_at="mean"), prior.sample, 2)
    t = 0.01 + 0.98 * torch.rand(2000, generator=generator)
    x = prior.as_mixture().noised(SCHEDULE, t, generator)
    got, grad = value_and_grad(lambda x: network(x, t), x)
    want, exact = value_and_grad(lambda x: prior.as_mixture().energy(SCHEDULE, SLOPE, BETA, x, t), x)
    assert relative_error(got, want) < 0.03
    assert float((grad - exact).square().mean().sqrt() / exact.square().mean().sqrt()) < 0.1


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

    Analytic(recording, posterior, BETA, nu=nu).targets(x0, x, t, None)
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
    got = Analytic(bowl, posterior, BETA, nu=0.0, variance=False).targets(x0, x, t, None)
    torch.testing.assert_close(got, tangent)
    got = Analytic(bowl, posterior, BETA, nu=0.0).targets(x0, x, t, None)
    torch.testing.assert_close(got, tangent - 0.5 * q.var * g.square().sum(1))


def test_a_flat_energy_does_not_divide_by_its_zero_gradient(normal: Callable, generator: torch.Generator) -> None:
    posterior, x0, x, t = problem(normal, generator)
    flat = Quadratic(torch.zeros(2, 2), torch.zeros(2), 4.0)
    torch.testing.assert_close(Analytic(flat, posterior, BETA).targets(x0, x, t, None), torch.full((6,), 4 * BETA))


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
    assert not objective.targets(x0, x.requires_grad_(), t, None).requires_grad
    network = EnergyMLP(2, width=8, layers=1, time=4)
    loss, metrics = objective.loss(network, x0, x, t, None, torch.Generator())
    loss.backward()
    assert weight.grad is None
    assert all(p.grad is not None for p in network.parameters())
    torch.testing.assert_close(metrics["target_mean"], objective.targets(x0, x, t, None).mean())


def test_clips_of_a_target_are_a_metric_of_training() -> None:
    """Under a posterior of variance 1 the hill's curvature is -2, which has no integral; it is where x_1 > 0."""

    def hill(x: Tensor, c: Context = None) -> Tensor:
        return torch.where(x[:, 0] > 0, -1.0, 0.5) * x.square().sum(1)

    def posterior(x: Tensor, t: Tensor, c: Context = None) -> IsotropicGaussian:
        return IsotropicGaussian(x, torch.ones(len(x)))

    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [-2.0, 1.0], [-1.0, 1.0]])
    network = EnergyMLP(2, width=8, layers=1, time=4)
    for target, clipped in (
        (SecondOrder(hill, posterior), 0.25),
        (Sum([SecondOrder(hill, posterior)]), 0.25),
        (hill_at_mean, None),
    ):
        _, metrics = Analytic(target=target).loss(network, x, x, torch.ones(4), None, torch.Generator())
        assert metrics.get("target_clipped") == clipped


def hill_at_mean(x: Tensor, t: Tensor, c: Context = None) -> Tensor:
    return -x.square().sum(1)


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


def test_the_analytic_objective_needs_something_to_aim_at() -> None:
    with pytest.raises(ValueError, match="needs an energy and a posterior, or a target"):
        Analytic(SLOPE)


def test_a_recipe_gives_the_analytic_objective_its_target(normal: Callable) -> None:
    posterior, denoiser = normal(torch.zeros(2), 1.0).posterior(SCHEDULE), normal(torch.zeros(2), 1.0).denoiser(SCHEDULE)
    parts = {"energy": SLOPE, "denoiser": denoiser, "posterior": posterior, "beta": BETA}
    made = build(Registry("energy", "egd.objectives"), Spec("analytic", {"target": {"name": "dps", "beta": 5}}), parts, "k")
    assert made.target == DPS(SLOPE, denoiser, 5.0)
    x0, x, t = torch.randn(4, 2), torch.randn(4, 2), torch.full((4,), 0.5)
    torch.testing.assert_close(made.targets(x0, x, t, None), 5 * SLOPE(denoiser(x, t)))


def test_a_target_is_prepared_for_the_contexts_of_each_batch() -> None:
    asked: list[Context] = []

    def support(c: Context, k: int) -> Tensor:
        asked.append(c)
        return torch.ones(3, k, 2)

    target = SupportSamples(SLOPE, support, SCHEDULE, BETA, 4)
    c = torch.zeros(3, 1)
    got = Analytic(target=target).targets(torch.zeros(3, 2), torch.zeros(3, 2), torch.full((3,), 0.5), c)
    torch.testing.assert_close(got, BETA * SLOPE(torch.ones(3, 2)))
    assert len(asked) == 1
    assert asked[0] is c


def cep(**settings: object) -> CEP:
    return CEP(SLOPE, SCHEDULE, beta=BETA, **settings)  # type: ignore[arg-type]


EVERY = {
    "analytic": Analytic(target=lambda x, t, c: x.sum(1)),
    "mse": MSE(SLOPE),
    "exp_mse": ExpMSE(SLOPE),
    "cep": cep(),
    "cep, batch": cep(labels="batch"),
    "ratio": Ratio(SCHEDULE, lambda n, g: (1 + torch.randn(n, 2, generator=g), None)),
    "ratio, info_nce": Ratio(SCHEDULE, lambda n, g: (1 + torch.randn(n, 2, generator=g), None), "info_nce"),
}


@pytest.mark.parametrize("objective", EVERY.values(), ids=EVERY.keys())
def test_all_randomness_is_that_of_the_generator(objective: Objective) -> None:
    x0, x, t = torch.randn(64, 2), torch.randn(64, 2), torch.rand(64)
    network = lambda x, t, c: x.square().sum(1)  # noqa: E731
    torch.manual_seed(5)
    first, _ = objective.loss(network, x0, x, t, None, torch.Generator().manual_seed(1))
    torch.manual_seed(6)
    second, _ = objective.loss(network, x0, x, t, None, torch.Generator().manual_seed(1))
    other, _ = objective.loss(network, x0, x, t, None, torch.Generator().manual_seed(2))
    assert torch.equal(first, second)
    assert torch.equal(first, other) == isinstance(objective, Analytic | MSE | ExpMSE)


def image_sum(x: Tensor, c: Context = None) -> Tensor:
    return x.flatten(1).sum(1)


IMAGES = {
    "exp_mse": ExpMSE(image_sum),
    "cep": CEP(image_sum, SCHEDULE),
    "ratio": Ratio(SCHEDULE, lambda n, g: (torch.randn(n, 3, 4, 4, generator=g), None)),
    "analytic": Analytic(target=lambda x, t, c: image_sum(x)),
}


@pytest.mark.parametrize("objective", IMAGES.values(), ids=IMAGES.keys())
def test_events_have_any_shape(objective: Objective, generator: torch.Generator) -> None:
    x0, t = torch.randn(32, 3, 4, 4, generator=generator), torch.rand(32, generator=generator)
    loss, _ = objective.loss(lambda x, t, c: image_sum(x), x0, x0, t, None, generator)
    assert loss.shape == ()
    assert bool(loss.isfinite())


class Recorder:
    """A network that remembers what it was asked."""

    def __call__(self, x: Tensor, t: Tensor, c: Context) -> Tensor:
        self.x, self.t, self.c = x, t, c
        return x.sum(1)


@pytest.mark.parametrize(("rows", "groups", "size"), [(64, 4, 16), (70, 4, 16), (10, 1, 10)])
def test_the_batch_is_cut_into_groups_with_one_time_each(rows: int, groups: int, size: int) -> None:
    x0, t, seen = torch.randn(rows, 2), torch.rand(rows), Recorder()
    c = {"s": torch.arange(rows)[:, None]}
    cep().loss(seen, x0, x0, t, c, torch.Generator().manual_seed(0))
    assert torch.equal(seen.t, t[:groups].repeat_interleave(size))
    assert torch.equal(seen.c["s"][:, 0], torch.arange(groups * size))
    noise = (seen.x - SCHEDULE.alpha(seen.t)[:, None] * x0[: groups * size]) / SCHEDULE.sigma(seen.t)[:, None]
    torch.testing.assert_close(noise, torch.randn(groups * size, 2, generator=torch.Generator().manual_seed(0)))


def test_the_support_is_asked_for_the_first_contexts() -> None:
    asked: list[tuple[Context, int]] = []

    def support(c: Context, k: int) -> Tensor:
        asked.append((c, k))
        return torch.randn(len(c), k, 2)

    c, seen = torch.arange(70.0)[:, None], Recorder()
    x0, t = torch.randn(70, 2), torch.rand(70)
    cep(support=support).loss(seen, x0, x0, t, c, torch.Generator())
    assert torch.equal(asked[0][0], c[:4])
    assert asked[0][1] == 16
    assert torch.equal(seen.c[:, 0], torch.arange(4.0).repeat_interleave(16))
    assert torch.equal(seen.t, t[:4].repeat_interleave(16))


def test_each_wanted_sample_competes_with_itself_and_the_whole_batch() -> None:
    y0 = torch.randn(5, 2)
    x0, zero = torch.randn(5, 2), torch.zeros(5)
    objective = Ratio(SCHEDULE, lambda n, g: (y0[:n], None), "info_nce", clean=True)
    loss, _ = objective.loss(lambda x, t, c: -x.sum(1), x0, x0, zero, None, torch.Generator())
    logits = torch.cat([y0.sum(1)[:, None], x0.sum(1).expand(5, 5)], 1)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, torch.zeros(5, dtype=torch.long)))


def test_one_sample_has_nothing_to_be_compared_with() -> None:
    with pytest.raises(ValueError, match="samples must be 2 or more"):
        cep(samples=1)


@pytest.mark.parametrize("level", [-1e4, 0.0, 1e4])
@pytest.mark.parametrize("start", [-1e5, 0.0, 1e5])
@pytest.mark.parametrize("kind", [CEP, ExpMSE])
def test_large_energies_overflow_nothing(kind: type, level: float, start: float) -> None:
    energy = lambda x, c: 1e4 * x.sum(1) + level  # noqa: E731
    objective = CEP(energy, SCHEDULE) if kind is CEP else ExpMSE(energy)
    x0, t, shift = torch.randn(64, 2), torch.rand(64), torch.tensor(start, requires_grad=True)
    loss, _ = objective.loss(lambda x, t, c: 1e3 * x.sum(1) + shift, x0, x0, t, None, torch.Generator())
    (grad,) = torch.autograd.grad(loss, shift)
    assert bool(loss.isfinite())
    assert bool(grad.isfinite())


def test_a_loss_without_a_unit_is_descended_as_it_is(normal: Callable) -> None:
    class Seven:
        dimensionless = True

        def targets(self, x0: Tensor, x: Tensor, t: Tensor, c: Context) -> Tensor:
            return 1e3 * x0[:, 0]

        def loss(self, network: Callable, x0: Tensor, x: Tensor, t: Tensor, c: Context, generator: torch.Generator) -> tuple:
            return 0 * network(x, t, c).mean() + 7, {}

    network = EnergyMLP(1, width=8, layers=1, time=4)
    learner = EnergyLearner(Fit(network, lr=1e-3, steps=1), SCHEDULE, normal(torch.zeros(1), 1.0).sample, Seven(), batch=64)
    assert float(learner.update(torch.Generator().manual_seed(0))["loss"]) == 7
    assert float(network.scale) > 100
