"""What each loss is least for: its gradient vanishes there, to within the noise of its estimate, and not elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from egd.energies.clean import at_zero
from egd.mixtures import GaussianMixture, Quadratic
from egd.networks.mlp import EnergyMLP
from egd.objectives import CEP, MSE, Analytic, ExpMSE, Ratio
from egd.schedules import VPLinear
from egd.tensors import inner, norm, value_and_grad
from egd.training.learners import EnergyLearner, Fit
from egd.types import Context, Objective, Sample, TimedEnergy

F64 = torch.float64
BETA = 1.5
SCHEDULE = VPLinear()
MIXTURE = GaussianMixture(
    torch.tensor([0.4, 0.6], dtype=F64).log(), torch.tensor([[-1.5], [1.0]], dtype=F64), torch.full((2, 1, 1), 0.2, dtype=F64)
)
BOWL = Quadratic(torch.ones(1, 1, dtype=F64), torch.tensor([-0.5], dtype=F64), 3.0)
TARGET = MIXTURE.tilted(BOWL, BETA)


def from_mixture(n: int, generator: torch.Generator) -> tuple[Tensor, Context]:
    return MIXTURE.sample(n, generator), None


def wanted(n: int, generator: torch.Generator) -> tuple[Tensor, Context]:
    return TARGET.sample(n, generator), None


def exact(x: Tensor, t: Tensor, c: Context) -> Tensor:
    return MIXTURE.energy(SCHEDULE, BOWL, BETA, x, t)


def expected(x: Tensor, t: Tensor, c: Context) -> Tensor:
    """beta E[E(x_0) | x_t]"""
    log_w, mean, cov = MIXTURE.posterior(SCHEDULE, x, t)
    return BETA * (log_w.exp() * (BOWL(mean) + 0.5 * cov[..., 0, 0] * BOWL.A[0, 0])).sum(1)


def ratio(x: Tensor, t: Tensor, c: Context) -> Tensor:
    """-log p_t / q_t, from the densities"""
    a, s = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    return MIXTURE.log_prob(x, a, s) - TARGET.log_prob(x, a, s)


def clean_ratio(x: Tensor, t: Tensor, c: Context) -> Tensor:
    assert not t.any()
    return MIXTURE.log_prob(x) - TARGET.log_prob(x)


def plus(energy: TimedEnergy, more: Callable[[Tensor, Context], Tensor]) -> TimedEnergy:
    return lambda x, t, c: energy(x, t, c) + more(t, c)


def flatter(energy: TimedEnergy) -> TimedEnergy:
    return lambda x, t, c: 0.8 * energy(x, t, c)


def grad(objective: Objective, at: TimedEnergy, sample: Sample = from_mixture, batches: int = 150, size: int = 1024) -> float:
    """The loss's derivatives along three directions of function space, each in units of its standard error: the largest."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(batches):
        x0, c = sample(size, generator)
        t = 0.01 + 0.98 * torch.rand(size, generator=generator)
        x = SCHEDULE.alpha(t)[:, None] * x0 + SCHEDULE.sigma(t)[:, None] * torch.randn(x0.shape, generator=generator)
        step = torch.zeros(3, requires_grad=True)

        def network(x: Tensor, t: Tensor, c: Context, step: Tensor = step) -> Tensor:
            directions = torch.stack([torch.tanh(x[:, 0]), torch.cos(2 * x[:, 0]), x[:, 0] * (1 + t)], 1)
            return at(x, t, c) + directions @ step

        loss, _ = objective.loss(network, x0, x, t, c, generator)
        rows.append(torch.autograd.grad(loss, step)[0])
    gradient = torch.stack(rows)
    return float((gradient.mean(0) / (gradient.std(0) / batches**0.5)).abs().max())


WAVE = lambda t, c: torch.cos(5 * t)  # noqa: E731
THREE = lambda t, c: 3.0  # noqa: E731
OPTIMA = {
    "cep": (CEP(BOWL, SCHEDULE, None, BETA, 256), plus(exact, WAVE), flatter(exact)),
    "cep, labels of the batch": (CEP(BOWL, SCHEDULE, None, BETA, 4, "batch"), plus(exact, WAVE), flatter(exact)),
    "exp-mse": (ExpMSE(BOWL, BETA), exact, expected),
    "mse": (MSE(BOWL, BETA), expected, exact),
    "logistic": (Ratio(SCHEDULE, wanted), ratio, plus(ratio, THREE)),
    "info-nce": (Ratio(SCHEDULE, wanted, "info_nce"), plus(ratio, THREE), flatter(ratio)),
    "clean logistic": (Ratio(SCHEDULE, wanted, clean=True), clean_ratio, flatter(clean_ratio)),
    "clean info-nce": (Ratio(SCHEDULE, wanted, "info_nce", clean=True), plus(clean_ratio, THREE), flatter(clean_ratio)),
}


@pytest.mark.parametrize(("objective", "optimum", "wrong"), OPTIMA.values(), ids=OPTIMA.keys())
def test_the_loss_is_least_at_its_optimum(objective: Objective, optimum: TimedEnergy, wrong: TimedEnergy) -> None:
    assert grad(objective, optimum) < 4
    assert grad(objective, wrong) > 10


def test_the_ratio_of_a_tilted_density_is_its_exact_energy_up_to_a_constant(generator: torch.Generator) -> None:
    t = 0.01 + 0.98 * torch.rand(50, generator=generator)
    x = MIXTURE.noised(SCHEDULE, t, generator)
    torch.testing.assert_close((ratio(x, t, None) - exact(x, t, None)).diff(), torch.zeros(49), atol=1e-9, rtol=0)


def test_small_groups_lie_between_the_exact_energy_and_the_expected_one() -> None:
    pairs = CEP(BOWL, SCHEDULE, None, BETA, 2)
    assert grad(pairs, exact) > 8
    assert grad(CEP(BOWL, SCHEDULE, None, BETA, 2, "batch"), exact) < 4
    assert grad(pairs, lambda x, t, c: 0.5 * (exact(x, t, c) + expected(x, t, c))) < grad(pairs, expected)


def of_context(n: int, generator: torch.Generator) -> tuple[Tensor, Context]:
    """x_0 ~ N(c, 0.3), c = -1 or 1"""
    c = 2.0 * torch.randint(2, (n, 1), generator=generator) - 1
    return c + 0.3**0.5 * torch.randn(n, 1, generator=generator), c


def exact_of_context(x: Tensor, t: Tensor, c: Context) -> Tensor:
    assert isinstance(c, Tensor)
    one = GaussianMixture(torch.zeros(1), torch.zeros(1, 1), torch.full((1, 1, 1), 0.3))
    moved = Quadratic(BOWL.A, BOWL.b + BOWL.A[0])  # E(y + 1) less a constant, for c = 1
    other = Quadratic(BOWL.A, BOWL.b - BOWL.A[0])
    shifted, up, down = x - SCHEDULE.alpha(t)[:, None] * c, BOWL(torch.ones(1)), BOWL(-torch.ones(1))
    right = one.energy(SCHEDULE, moved, BETA, shifted, t) + BETA * up
    left = one.energy(SCHEDULE, other, BETA, shifted, t) + BETA * down
    return torch.where(c[:, 0] > 0, right, left)


@pytest.mark.parametrize("labels", ["group", "batch"])
def test_with_contexts_the_support_is_that_of_each(labels: str) -> None:
    own = torch.Generator().manual_seed(1)
    draw = lambda c, k: c[:, None] + 0.3**0.5 * torch.randn(len(c), k, 1, generator=own)  # noqa: E731
    objective = CEP(BOWL, SCHEDULE, draw, BETA, 64 if labels == "group" else 8, labels)  # type: ignore[arg-type]
    by_context = plus(exact_of_context, lambda t, c: t * c[:, 0])  # type: ignore[index]
    assert grad(objective, by_context, of_context) < 4
    assert grad(objective, flatter(by_context), of_context) > 10


def test_groups_of_many_contexts_fix_the_differences_between_them() -> None:
    objective = CEP(BOWL, SCHEDULE, None, BETA, 256)
    assert grad(objective, plus(exact_of_context, WAVE), of_context) < 4
    assert grad(objective, plus(exact_of_context, lambda t, c: c[:, 0]), of_context) > 10  # type: ignore[index]


def test_the_analytic_objective_takes_any_closed_form(generator: torch.Generator) -> None:
    x0, t = MIXTURE.sample(20, generator), torch.linspace(0.1, 0.9, 20)
    objective = Analytic(target=exact)
    loss, _ = objective.loss(exact, x0, x0 + 1, t, None, generator)
    assert float(loss) == 0
    loss, _ = objective.loss(expected, x0, x0 + 1, t, None, generator)
    torch.testing.assert_close(loss, (exact(x0 + 1, t, None) - expected(x0 + 1, t, None)).square().mean())


RING = GaussianMixture(
    torch.zeros(3, dtype=F64).log_softmax(0),
    torch.tensor([[1.0, 0.0], [-0.5, 0.9], [-0.5, -0.9]], dtype=F64),
    0.1 * torch.eye(2, dtype=F64).expand(3, 2, 2),
)
PULL = Quadratic(torch.eye(2, dtype=F64), torch.tensor([1.0, -0.5], dtype=F64))


@pytest.mark.parametrize("kind", ["cep", "ratio"])
def test_a_small_network_learns_the_exact_gradient(kind: str, generator: torch.Generator) -> None:
    goal = RING.tilted(PULL, 2.0)
    objective: Objective = CEP(PULL, SCHEDULE, beta=2.0, samples=32)
    if kind == "ratio":
        objective = Ratio(SCHEDULE, lambda n, g: (goal.sample(n, g), None))
    steps = 500
    network = EnergyMLP(2, width=48, layers=2, time=8)
    fit = Fit(network, lr=5e-3, steps=steps, decay=True)
    learner = EnergyLearner(fit, SCHEDULE, lambda n, g: (RING.sample(n, g), None), objective, batch=512)
    for _ in range(steps):
        learner.update(generator)
    t = 0.05 + 0.7 * torch.rand(2000, generator=generator)  # later the gradient is all but zero
    x = RING.noised(SCHEDULE, t, generator)
    _, got = value_and_grad(lambda x: network(x, t), x)
    _, want = value_and_grad(lambda x: RING.energy(SCHEDULE, PULL, 2.0, x, t), x)
    assert float((inner(got, want) / (norm(got) * norm(want))).mean()) > 0.9


def test_a_ratio_learned_at_zero_is_a_clean_energy(generator: torch.Generator) -> None:
    network = EnergyMLP(1, width=32, layers=2, time=8)
    fit = Fit(network, lr=5e-3, steps=400, decay=True)
    learner = EnergyLearner(fit, SCHEDULE, from_mixture, Ratio(SCHEDULE, wanted, clean=True), batch=512)
    for _ in range(400):
        learner.update(generator)
    x = MIXTURE.sample(1000, generator)
    got, want = at_zero(network)(x, None).detach(), clean_ratio(x, torch.zeros(1000), None)
    assert float((got - want).square().mean().sqrt()) < 0.25 * float(want.std())
