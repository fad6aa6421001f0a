"""Sums of energies, intermediate and clean."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from egd.config.components import Registry, Spec, build, validate
from egd.energies import DPS, FirstOrder
from egd.energies.clean import at_zero, combine
from egd.energies.sum import Sum
from egd.errors import UserError
from egd.mixtures import GaussianMixture, Quadratic
from egd.schedules import VPLinear
from egd.types import Context, TimedEnergy

SCHEDULE = VPLinear()
F64 = torch.float64


def rising(x: Tensor, t: Tensor, c: Context = None) -> Tensor:
    return t * x.sum(1)


def square(x: Tensor, t: Tensor, c: Context = None) -> Tensor:
    return x.square().sum(1)


def test_a_sum_is_weighted(generator: torch.Generator) -> None:
    x, t = torch.randn(5, 2, generator=generator), torch.rand(5, generator=generator)
    torch.testing.assert_close(Sum([rising, square])(x, t), rising(x, t) + square(x, t))
    torch.testing.assert_close(Sum([rising, square], [2, -0.5])(x, t), 2 * rising(x, t) - 0.5 * square(x, t))


@pytest.mark.parametrize(("energies", "weights"), [([], None), ([rising], [1.0, 2.0]), ([rising, square], [])])
def test_weights_must_match(energies: list, weights: list | None) -> None:
    for make in (Sum, combine):
        with pytest.raises(ValueError, match="a weight for each"):
            make(energies, weights)


@dataclass
class Prepared:
    asked: list[Context] = field(default_factory=list)

    def prepare(self, c: Context) -> TimedEnergy:
        self.asked.append(c)
        return square

    def __call__(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        raise AssertionError("it was not prepared")


def test_members_are_prepared_once() -> None:
    member, c = Prepared(), torch.zeros(3, 1)
    bound = Sum([member, rising], [1, 2]).prepare(c)
    x, t = torch.ones(3, 2), torch.full((3,), 0.5)
    for _ in range(2):
        torch.testing.assert_close(bound(x, t, c), torch.full((3,), 4.0))
    assert len(member.asked) == 1
    assert member.asked[0] is c


def correlated(rho: float) -> GaussianMixture:
    return GaussianMixture(
        torch.zeros(1, dtype=F64), torch.zeros(1, 2, dtype=F64), torch.tensor([[[1, rho], [rho, 1]]], dtype=F64)
    )


def timed(data: GaussianMixture, energy: Quadratic) -> TimedEnergy:
    return lambda x, t, c: data.energy(SCHEDULE, energy, 1.5, x, t)


@pytest.mark.parametrize(("rho", "exact"), [(0.0, True), (0.8, False)])
def test_the_sum_is_exact_where_the_members_are_independent(rho: float, exact: bool, generator: torch.Generator) -> None:
    data = correlated(rho)
    first = Quadratic(torch.diag(torch.tensor([1.0, 0.0])), torch.tensor([0.5, 0.0]))  # each acts on a coordinate of its own
    second = Quadratic(torch.diag(torch.tensor([0.0, 2.0])), torch.tensor([0.0, -1.0]))
    both = Quadratic(first.A + second.A, first.b + second.b)
    t = 0.2 + 0.6 * torch.rand(50, generator=generator)
    x = data.noised(SCHEDULE, t, generator)
    added = Sum([timed(data, first), timed(data, second)])(x, t)
    error = (added - data.energy(SCHEDULE, both, 1.5, x, t)).abs().max()
    assert (error < 1e-9) if exact else (error > 0.05)


def test_clean_energies_add_up_exactly(generator: torch.Generator) -> None:
    x = torch.randn(6, 2, generator=generator)
    one, two = Quadratic(torch.eye(2), torch.ones(2)), Quadratic(torch.zeros(2, 2), torch.tensor([1.0, -1.0]), 2.0)
    torch.testing.assert_close(combine([one, two])(x, None), one(x) + two(x))
    torch.testing.assert_close(combine([one, two], [0.5, 3])(x, None), 0.5 * one(x) + 3 * two(x))


def test_an_intermediate_energy_at_zero_is_a_clean_one() -> None:
    seen = []

    def network(x: Tensor, t: Tensor, c: Context) -> Tensor:
        seen.append((t, c))
        return x.sum(1)

    c = torch.ones(4, 1)
    torch.testing.assert_close(at_zero(network)(torch.ones(4, 3), c), torch.full((4,), 3.0))
    assert torch.equal(seen[0][0], torch.zeros(4))
    assert seen[0][1] is c


ENERGIES = Registry("energy", "egd.energies")
PARTS = {"energy": square, "denoiser": rising, "posterior": square, "beta": 2.0}


def test_a_recipe_adds_energies() -> None:
    spec = Spec("sum", {"energies": ["first_order", {"name": "dps"}], "weights": [1, 0.5]})
    made = build(ENERGIES, spec, PARTS, "guidance.energy")
    assert isinstance(made, Sum)
    assert list(made.energies) == [FirstOrder(square, square, 2.0), DPS(square, rising, 2.0)]
    assert list(made.weights or []) == [1.0, 0.5]


def test_a_recipe_names_the_member_that_is_wrong() -> None:
    with pytest.raises(UserError, match="no energy is called 'dsp'") as info:
        validate(ENERGIES, Spec("sum", {"energies": ["dps", "dsp"]}), set(PARTS), "guidance.energy")
    assert info.value.key == "guidance.energy.energies.1"
