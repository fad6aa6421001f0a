"""What holds of every estimator, objective, rule and posterior, by the registries: a new one is held to it without a word here.

The data are a mixture in 2-D whose every quantity is known in closed form, E is no quadratic.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from egd.config.catalogue import ENERGIES, OBJECTIVES, POSTERIORS, RULES
from egd.config.components import Spec, build
from egd.contracts import ContractError, energy_values
from egd.energies.base import prepare
from egd.errors import UserError
from egd.mixtures import GaussianMixture, Quadratic
from egd.networks.mlp import EnergyMLP
from egd.posteriors import Moments, calibrate
from egd.schedules import VPLinear
from egd.tensors import value_and_grad
from egd.training.learners import EnergyLearner, Fit
from egd.types import Context, Energy, TimedEnergy

SCHEDULE = VPLinear()
DATA = GaussianMixture(
    torch.tensor([0.3, 0.7]).log().double(),
    torch.tensor([[-1.0, 0.5], [1.2, -0.3]]).double(),
    torch.tensor([[[0.4, 0.1], [0.1, 0.3]], [[0.2, 0.0], [0.0, 0.5]]]).double(),
)
BOWL = Quadratic(torch.eye(2).double(), torch.tensor([0.5, -0.2]).double())
SETTINGS: dict[str, dict[str, Any]] = {
    "sum": {"energies": ["dps", {"name": "monte_carlo", "samples": 4}]},
    "mixture_fit": {"samples": 100, "components": [1], "points": 8},
    "support_samples": {"samples": 64},
    "ess_blend": {"samples": 64},
}
"""Settings without which one cannot be made, or which make it quick."""
SPECS = {
    **{name: Spec(name, SETTINGS.get(name, {})) for name in ENERGIES.names()},
    "sum with support": Spec("sum", {"energies": [{"name": "support_samples", "samples": 8}, "second_order"]}),
    "ess_blend, local dps": Spec("ess_blend", {"samples": 64, "local": "dps"}),
    "first_order, no variance": Spec("first_order", {"variance": False}),
}
TAKES_A_CLOSED_FORM = {"exact"}
"""Of a mixture and a quadratic: no user's function is called."""
LOOKS_AT_VALUES = {"support_samples", "mse", "exp_mse", "cep"}
GIVEN_BY_SAMPLES = {"ratio"}
OBJECTIVE_SPECS = {
    **{name: Spec(name, {}) for name in OBJECTIVES.names()},
    "cep, batch labels": Spec("cep", {"labels": "batch"}),
    "analytic at the mean": Spec("analytic", {"expand_at": "mean"}),
    **{
        f"analytic of {name}": Spec("analytic", {"target": {"name": spec.name, **spec.settings}})
        for name, spec in SPECS.items()
    },
}
WRONG_SHAPES: dict[str, Energy] = {
    "column": lambda x, c=None: waves(x)[:, None],
    "scalar": lambda x, c=None: waves(x).sum(),
    "row": lambda x, c=None: waves(x)[None],
    "whole numbers": lambda x, c=None: (waves(x) > 0).long(),
    "flags": lambda x, c=None: waves(x) > 0,
    "number": lambda x, c=None: 1.0,  # type: ignore[dict-item,return-value]
    "array": lambda x, c=None: waves(x).detach().numpy(),
}
NO_GRADIENT: dict[str, Energy] = {
    "detached": lambda x, c=None: waves(x).detach(),
    "steps": lambda x, c=None: (waves(x) > 0).to(x),
    "numpy": lambda x, c=None: torch.as_tensor(np.sin(waves(x).numpy())),
    "numpy, detached": lambda x, c=None: torch.as_tensor(np.sin(waves(x).detach().numpy())),
}


def waves(x: Tensor, c: Context = None) -> Tensor:
    return torch.sin(1.5 * x[:, 0]) + 0.3 * x.square().sum(1)


def denoiser(x: Tensor, t: Tensor, c: Context = None) -> Tensor:
    return DATA.denoise(SCHEDULE, x.double(), t.double()).to(x.dtype)


def support(c: Context, k: int) -> Tensor:
    return DATA.sample(k, torch.Generator().manual_seed(1)).to(torch.get_default_dtype())[None]


def sample(n: int, generator: torch.Generator) -> tuple[Tensor, Context]:
    return DATA.sample(n, generator).to(torch.get_default_dtype()), None


@cache
def calibrated(dtype: torch.dtype) -> Moments:
    return calibrate(denoiser, SCHEDULE, sample, generator=torch.Generator().manual_seed(0), grid=4, samples=64)


def parts(energy: Energy = waves) -> dict[str, Any]:
    common = {"denoiser": denoiser, "schedule": SCHEDULE}
    moments = calibrated(torch.get_default_dtype())
    posterior = build(POSTERIORS, Spec("tweedie", {"covariance": "full"}), {**common, "moments": moments}, "posterior")
    given = {**common, "energy": energy, "posterior": posterior, "support": support, "moments": moments, "beta": 1.3}
    mixture = GaussianMixture(*(v.to(torch.get_default_dtype()) for v in (DATA.log_weights, DATA.means, DATA.covs)))
    return {**given, "mixture": mixture, "wanted": sample}


def made(name: str, energy: Energy = waves) -> TimedEnergy:
    spec = SPECS[name]
    if spec.name in TAKES_A_CLOSED_FORM:
        energy = Quadratic(BOWL.A.to(torch.get_default_dtype()), BOWL.b.to(torch.get_default_dtype()))
    timed: TimedEnergy = build(ENERGIES, spec, parts(energy), "energy")
    return prepare(timed, None)


def batch(n: int = 5) -> tuple[Tensor, Tensor]:
    t = torch.linspace(0.05, 0.95, n) if n > 1 else torch.tensor([0.4])
    return DATA.noised(SCHEDULE, t.double(), torch.Generator().manual_seed(2)).to(torch.get_default_dtype()), t


def grad(timed: TimedEnergy, x: Tensor, t: Tensor) -> Tensor:
    return value_and_grad(lambda x: timed(x, t, None), x)[1]


@pytest.mark.parametrize("wrong", WRONG_SHAPES)
@pytest.mark.parametrize("name", [name for name in SPECS if name not in TAKES_A_CLOSED_FORM])
def test_what_is_not_one_floating_number_a_row_is_refused(name: str, wrong: str) -> None:
    for rows in (1, 3):  # of one row a scalar, (1,) and (1, 1) would all broadcast
        with pytest.raises(ContractError):
            grad(made(name, WRONG_SHAPES[wrong]), *batch(rows))


@pytest.mark.parametrize("wrong", NO_GRADIENT)
@pytest.mark.parametrize("name", [name for name in SPECS if name not in TAKES_A_CLOSED_FORM])
def test_what_has_no_gradient_is_refused_where_it_is_differentiated(name: str, wrong: str) -> None:
    x, t = batch()
    if name in LOOKS_AT_VALUES:
        assert grad(made(name, NO_GRADIENT[wrong]), x, t).abs().max() > 1e-3
        return
    with pytest.raises(ContractError, match=r"no gradient.*support_samples"):
        grad(made(name, NO_GRADIENT[wrong]), x, 0.3 * t)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SPECS)
def test_a_row_is_its_own_whatever_is_beside_it(name: str, dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    timed = made(name)
    x, t = batch()
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 2e-3, "atol": 2e-3}
    values, grads = value_and_grad(lambda x: timed(x, t, None), x)
    assert values.dtype == grads.dtype == dtype and values.shape == (5,)
    assert torch.equal(grad(timed, x, t), grads)  # the same at every call
    for i in range(5):
        alone, push = value_and_grad(lambda x, i=i: timed(x, t[i : i + 1], None), x[i : i + 1])  # type: ignore[misc]
        torch.testing.assert_close(alone, values[i : i + 1], **tolerance)
        torch.testing.assert_close(push, grads[i : i + 1], **tolerance)
    for lost in (torch.nan, torch.inf, 1e30):
        spoilt = x.clone()
        spoilt[1] = lost
        keep = [0, 2, 3, 4]
        torch.testing.assert_close(grad(timed, spoilt, t)[keep], grads[keep], **tolerance)


@pytest.mark.parametrize("name", SPECS)
def test_single_precision_estimates_what_double_precision_does(name: str) -> None:
    x, t = batch()
    double = grad(made(name), x, t)
    torch.set_default_dtype(torch.float32)
    single = grad(made(name), x.float(), t.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("name", [name for name in SPECS if "ess_blend" not in name])
def test_the_gradient_is_that_of_the_value(name: str) -> None:
    """But of a blend, whose weights are held constant on purpose; so are directions that second_order clips: a convex E."""
    timed = made(name, lambda x, c=None: 0.3 * x.square().sum(1) + 0.05 * x.pow(4).sum(1))
    x, t = batch()
    for i, h in enumerate(1e-5 * torch.eye(2)):
        difference = (timed(x + h, t, None) - timed(x - h, t, None)) / 2e-5
        torch.testing.assert_close(grad(timed, x, t)[:, i], difference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wrong", WRONG_SHAPES)
@pytest.mark.parametrize("name", [name for name in OBJECTIVE_SPECS if name not in GIVEN_BY_SAMPLES and "exact" not in name])
def test_every_objective_refuses_what_is_not_one_floating_number_a_row(name: str, wrong: str) -> None:
    for rows in (1, 3):
        with pytest.raises(UserError if rows == 1 and "cep" in name else ContractError):
            loss(name, WRONG_SHAPES[wrong], rows)


@pytest.mark.parametrize("name", OBJECTIVE_SPECS)
def test_every_objective_refuses_a_network_of_another_shape_and_has_a_finite_loss(name: str) -> None:
    for rows in (1, 5):
        if rows == 1 and "cep" in name:
            with pytest.raises(UserError, match="a batch of one"):
                loss(name, waves, rows)
            continue
        found, metrics = loss(name, BOWL if "exact" in name else waves, rows)
        assert found.shape == () and found.isfinite() and found.requires_grad
        assert all(v.isfinite() for v in metrics.values())
        with pytest.raises(ContractError):
            loss(name, BOWL if "exact" in name else waves, rows, lambda x, t, c: x.sum(1, keepdim=True))


@pytest.mark.parametrize("name", [name for name in OBJECTIVE_SPECS if "cep" not in name])
def test_every_objective_trains_on_batches_of_one(name: str) -> None:
    torch.manual_seed(0)
    given = parts(BOWL if "exact" in name else waves)
    network, objective = EnergyMLP(2, width=8, layers=1, time=4), build(OBJECTIVES, OBJECTIVE_SPECS[name], given, "energy")
    learner = EnergyLearner(Fit(network, lr=1e-3, steps=2), SCHEDULE, given["wanted"], objective, batch=1)
    for _ in range(2):
        assert all(torch.as_tensor(value).isfinite() for value in learner.update(torch.Generator().manual_seed(0)).values())
    assert all(p.isfinite().all() for p in network.parameters()) and network.scale.isfinite()


def loss(name: str, energy: Energy, rows: int, network: Callable[..., Tensor] | None = None) -> Any:
    objective = build(OBJECTIVES, OBJECTIVE_SPECS[name], parts(energy), "energy")
    x, t = batch(rows)
    network = network or EnergyMLP(2, width=8, layers=1, time=4)
    return objective.loss(network, 0.9 * x, x, t, None, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", RULES.names())
def test_a_rule_treats_every_row_alone(name: str) -> None:
    rule = build(RULES, Spec(name, {"limit": 0.5} if name == "gradient_clip" else {}), {"omega": torch.full((4,), 1.5)}, "rule")
    score, push, t = torch.randn(4, 2), torch.randn(4, 2), torch.linspace(0.1, 0.9, 4)
    whole = rule(score, push, t)
    assert whole.shape == score.shape and not torch.equal(whole, score)
    spoilt = push.clone()
    spoilt[1] = torch.nan
    assert torch.equal(rule(score, spoilt, t)[[0, 2, 3]], whole[[0, 2, 3]])
    single = build(RULES, Spec(name, {"limit": 0.5} if name == "gradient_clip" else {}), {"omega": 1.5}, "rule")
    torch.testing.assert_close(single(score[2:3], push[2:3], t[2:3]), whole[2:3])


@pytest.mark.parametrize("name", POSTERIORS.names())
def test_a_posterior_refuses_a_denoiser_of_another_shape_and_treats_every_row_alone(name: str) -> None:
    given = parts()
    posterior = build(POSTERIORS, Spec(name, {}), given, "posterior")
    x, t = batch()
    whole = posterior(x, t, None)
    g = torch.ones_like(x)
    assert whole.mean.shape == x.shape and (whole.quadratic(g) > 0).all()
    torch.testing.assert_close(whole.root() @ whole.root().mT @ torch.ones(2, 1), _product(whole), rtol=1e-6, atol=1e-8)
    alone = posterior(x[2:3], t[2:3], None)
    torch.testing.assert_close(alone.quadratic(g[:1]), whole.quadratic(g)[2:3])
    spoilt = x.clone()
    spoilt[1] = torch.nan
    torch.testing.assert_close(posterior(spoilt, t, None).quadratic(g)[[0, 2, 3, 4]], whole.quadratic(g)[[0, 2, 3, 4]])


def _product(q: Any) -> Tensor:
    """Sigma (1, 1)^T, by differences of the quadratic form: (B, 2, 1)."""
    one, e = torch.ones(len(q.mean), 2), torch.eye(2)
    columns = [(q.quadratic(one + e[i]) - q.quadratic(one - e[i])) / 4 for i in range(2)]
    return torch.stack(columns, 1)[..., None]


def test_shapes_are_told_apart_for_one_row_too() -> None:
    for wrong in WRONG_SHAPES.values():
        with pytest.raises(ContractError):
            energy_values(wrong, torch.randn(1, 2), None)
