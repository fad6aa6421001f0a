"""What users' functions give back is held against the contracts: shapes and graphs, in every place where they are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from egd.contracts import energy_values
from egd.energies import DPS, EssBlend, FirstOrder, MixtureFit, MonteCarlo, SecondOrder, SigmaPoints, Sum, SupportSamples
from egd.energies.clean import at_zero, combine
from egd.guidance import guide
from egd.mixtures import GaussianMixture
from egd.objectives import CEP, MSE, Analytic, ExpMSE, Ratio
from egd.particles import smc
from egd.posteriors import ExactPosterior, IsotropicGaussian
from egd.rules import Additive
from egd.samplers import dpm_solver_pp_2m
from egd.schedules import VPLinear, time_grid
from egd.selection import best_of, energy_weights
from egd.tensors import value_and_grad
from egd.training.learners import DenoiserLearner, EnergyLearner, Fit
from egd.types import Context, Energy

SCHEDULE = VPLinear()
DATA = GaussianMixture(torch.zeros(1).double(), torch.zeros(1, 2).double(), 0.5 * torch.eye(2).double()[None])
POSTERIOR = ExactPosterior(DATA, SCHEDULE)


def denoiser(x: Tensor, t: Tensor, c: Context = None) -> Tensor:
    return DATA.denoise(SCHEDULE, x, t)


def support(c: Context, k: int) -> Tensor:
    return DATA.sample(k, torch.Generator().manual_seed(0))[None]


def sample(n: int, generator: torch.Generator) -> tuple[Tensor, Context]:
    return DATA.sample(n, generator), None


def column(x: Tensor, c: Context = None) -> Tensor:
    """(B, 1), as ``nn.Linear(d, 1)`` gives it."""
    return x.square().sum(1, keepdim=True)


def scalar(x: Tensor, c: Context = None) -> Tensor:
    return x.square().sum()


def sound(x: Tensor, c: Context = None) -> Tensor:
    return x.square().sum(1)


def step(x: Tensor, c: Context = None) -> Tensor:
    return (x.sum(1) > 0).to(x)


def batch(n: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(1)), torch.full((n,), 0.4)


ESTIMATORS: dict[str, Callable[[Energy], Any]] = {
    "dps": lambda e: DPS(e, denoiser),
    "first_order": lambda e: FirstOrder(e, POSTERIOR),
    "second_order": lambda e: SecondOrder(e, POSTERIOR),
    "sigma_points": lambda e: SigmaPoints(e, POSTERIOR),
    "monte_carlo": lambda e: MonteCarlo(e, POSTERIOR),
    "support_samples": lambda e: SupportSamples(e, support, SCHEDULE),
    "ess_blend": lambda e: EssBlend(e, POSTERIOR, support, SCHEDULE, samples=8),
    "mixture_fit": lambda e: MixtureFit(e, support, SCHEDULE, samples=50, components=(1,)),
    "sum": lambda e: Sum([DPS(combine([e, e]), denoiser)]),
}
OBJECTIVES: dict[str, Callable[[Energy], Any]] = {
    "mse": MSE,
    "exp_mse": ExpMSE,
    "cep": lambda e: CEP(e, SCHEDULE),
    "analytic": lambda e: Analytic(e, POSTERIOR),
    "analytic at the mean": lambda e: Analytic(e, POSTERIOR, expand_at="mean"),
}
NEED_NO_GRADIENT = {"support_samples", "mse", "exp_mse", "cep"}


@pytest.mark.parametrize("wrong", [column, scalar])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_energy_of_another_shape_is_refused_by_every_closed_form(name: str, wrong: Energy) -> None:
    x, t = batch()
    noise, times = torch.randn(4, 2), time_grid(SCHEDULE, 4)
    with pytest.raises(ValueError, match=rf"{wrong.__name__} \(test_contracts.py, line \d+\) gave .*one number a row"):
        ESTIMATORS[name](wrong)(x, t)
    with pytest.raises(ValueError, match="one number a row"):
        dpm_solver_pp_2m(guide(denoiser, ESTIMATORS[name](wrong), Additive(), SCHEDULE), SCHEDULE, noise, times)


@pytest.mark.parametrize("wrong", [column, scalar])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_energy_of_another_shape_is_refused_by_every_objective(name: str, wrong: Energy) -> None:
    fit = Fit(Network(), lr=1e-3, steps=1)
    before = fit.module.layer.weight.clone()
    with pytest.raises(ValueError, match="one number a row"):
        EnergyLearner(fit, SCHEDULE, sample, OBJECTIVES[name](wrong), batch=8).update(torch.Generator())
    assert torch.equal(fit.module.layer.weight, before)  # before anything was trained


class Network(nn.Module):
    """A user's energy network that forgets to drop its last axis."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize("name", [*OBJECTIVES, "ratio"])
def test_a_network_of_another_shape_is_refused_by_every_objective(name: str) -> None:
    objective = Ratio(SCHEDULE, sample) if name == "ratio" else OBJECTIVES[name](sound)
    learner = EnergyLearner(Fit(Network(), lr=1e-3, steps=1), SCHEDULE, sample, objective, batch=8)
    with pytest.raises(ValueError, match=r"Network \(test_contracts.py, line \d+\) gave the shape \(8, 1\) for 8 rows"):
        learner.update(torch.Generator())


def test_smc_selection_and_weights_refuse_another_shape() -> None:
    x, t = torch.randn(2, 3, 2), time_grid(SCHEDULE, 2)
    with pytest.raises(ValueError, match="one number a row"):
        smc(denoiser, SCHEDULE, x, t, energy=column, beta=1.0, timed_energy=DPS(sound, denoiser))
    with pytest.raises(ValueError, match="one number a row"):
        smc(denoiser, SCHEDULE, x, t, energy=sound, beta=1.0, timed_energy=lambda x, t, c: column(x))
    with pytest.raises(ValueError, match="one number a row"):
        best_of(x, column)
    with pytest.raises(ValueError, match="one number a row"):
        energy_weights(column, 1.0)(x[0])
    with pytest.raises(ValueError, match="one number a row"):
        at_zero(lambda x, t, c: column(x))(x[0], None)
    learner = DenoiserLearner(Fit(nn.Linear(2, 2), lr=1e-3, steps=1), SCHEDULE, sample, batch=4, weights=column)
    with pytest.raises(ValueError, match="one number a row"):
        learner.update(torch.Generator())


def test_guiding_refuses_a_denoiser_an_energy_and_a_rule_of_another_shape() -> None:
    x, t = batch()
    with pytest.raises(ValueError, match="gave the shape"):
        guide(lambda x, t, c: x.sum(1), DPS(sound, denoiser), Additive(), SCHEDULE)(x, t, None)
    with pytest.raises(ValueError, match="one number a row"):
        guide(denoiser, lambda x, t, c: column(x), Additive(), SCHEDULE)(x, t, None)
    with pytest.raises(ValueError, match="gave the shape"):
        guide(denoiser, DPS(sound, denoiser), lambda score, grad, t: grad.sum(1), SCHEDULE)(x, t, None)
    with pytest.raises(ValueError, match="gave the shape"):
        FirstOrder(sound, lambda x, t, c: IsotropicGaussian(x.sum(1), t))(x, t)


def test_what_is_no_tensor_and_whole_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="gave float, not a tensor"):
        energy_values(lambda x, c: 1.0, torch.zeros(2, 2), None)
    with pytest.raises(ValueError, match="whole numbers"):
        energy_values(lambda x, c: (x.sum(1) > 0).long(), torch.zeros(2, 2), None)


@pytest.mark.parametrize("name", sorted(ESTIMATORS.keys() | OBJECTIVES.keys()))
def test_an_energy_without_a_gradient_is_refused_by_those_that_need_it_alone(name: str) -> None:
    """A step function guides nowhere; support samples and most objectives look at its values only."""

    def run() -> Tensor:
        x, t = batch(8)
        if name in ESTIMATORS:
            return value_and_grad(lambda x: ESTIMATORS[name](step)(x, 1.4 * t, None), x)[1]
        return OBJECTIVES[name](step).targets(x, x, t, None)

    if name in NEED_NO_GRADIENT:
        assert run().abs().max() > 0.01
        return
    with pytest.raises(ValueError, match=r"step \(test_contracts.py, line \d+\) has no gradient by x_0.*support_samples"):
        run()


@pytest.mark.parametrize("name", sorted(ESTIMATORS.keys() - {"support_samples", "mixture_fit"}))
def test_a_denoiser_without_a_graph_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, t = batch()
    detached = lambda x, t, c=None: denoiser(x, t).detach()  # noqa: E731
    monkeypatch.setitem(globals(), "denoiser", detached)
    monkeypatch.setitem(globals(), "POSTERIOR", lambda x, t, c=None: IsotropicGaussian(detached(x, t), t))
    energy = ESTIMATORS[name](sound)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="has no gradient by x_t"):
        guide(denoiser, energy, Additive(), SCHEDULE)(x, t, None)
