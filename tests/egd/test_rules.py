from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from egd.config.components import Registry, Spec, build, validate
from egd.errors import UserError
from egd.guidance import guide
from egd.mixtures import GaussianMixture, Quadratic
from egd.rules import Additive, GradientClip, Interval, Rescaled, Scheduled
from egd.schedules import VPLinear
from egd.tensors import norm

RULES = Registry("guidance rule", "egd.rules")
WRAPPERS = {"gradient_clip": {"limit": 0.3}, "interval": {"low": 0.2, "high": 0.7}, "scheduled": {"shape": "linear"}}
Triple = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(params=[(5,), (3, 4, 4)], ids=["vector", "image"])
def inputs(request: pytest.FixtureRequest, generator: torch.Generator) -> Triple:
    score, grad = torch.randn(2, 16, *request.param, generator=generator)
    return score, grad, torch.linspace(0.01, 1, 16)


def column(v: Tensor, like: Tensor) -> Tensor:
    return v.view(-1, *[1] * (like.ndim - 1))


def test_a_clipped_gradient_keeps_its_direction_and_is_never_longer_than_the_limit(inputs: Triple) -> None:
    score, grad, t = inputs
    limit = float(norm(grad).median())
    push = score - GradientClip(limit)(score, grad, t)
    unit = grad / column(norm(grad), grad)
    torch.testing.assert_close(push, column(norm(grad).clamp(max=limit), grad) * unit)


def test_a_relative_limit_is_in_units_of_the_score(inputs: Triple) -> None:
    score, grad, t = inputs
    push = score - GradientClip(0.5, relative=True)(score, 100 * grad, t)
    torch.testing.assert_close(norm(push), 0.5 * norm(score))


def test_the_scale_multiplies_the_clipped_gradient(inputs: Triple) -> None:
    score, grad, t = inputs
    torch.testing.assert_close(norm(score - GradientClip(0.2, omega=3.0)(score, grad, t)), torch.full((16,), 0.6))


def test_a_vanishing_gradient_is_no_trouble() -> None:
    score, grad = torch.ones(2, 3), torch.zeros(2, 3)
    assert torch.equal(GradientClip(1.0)(score, grad, torch.ones(2)), score)


def test_an_interval_guides_inside_it_alone(inputs: Triple) -> None:
    score, grad, t = inputs
    got, inside = Interval(0.3, 0.6, omega=2.0)(score, grad, t), (t >= 0.3) & (t <= 0.6)
    assert inside.any() and not inside.all()
    assert torch.equal(got[inside], Additive(2.0)(score, grad, t)[inside])
    assert torch.equal(got[~inside], score[~inside])


def test_an_interval_keeps_out_an_energy_that_is_not_finite_elsewhere() -> None:
    score, t = torch.ones(2, 3), torch.tensor([0.5, 1.0])
    grad = torch.stack([torch.ones(3), torch.full((3,), torch.nan)])
    assert torch.equal(Interval(high=0.8)(score, grad, t), torch.tensor([[0.0] * 3, [1.0] * 3]))


@pytest.mark.parametrize(
    ("shape", "weight"),
    [
        ("linear", lambda u: u),
        ("cosine", lambda u: torch.sin(torch.pi * u / 2) ** 2),
        ("power", lambda u: u**3),
        (torch.exp, torch.exp),
    ],
)
def test_a_scheduled_scale_is_additive_with_a_scale_a_row(inputs: Triple, shape: str, weight: Callable) -> None:
    score, grad, t = inputs
    w = 0.5 + 1.5 * weight(1 - t)
    got = Scheduled(shape, at_noise=0.5, at_data=2.0, power=3.0, omega=1.7)(score, grad, t)
    torch.testing.assert_close(got, Additive(1.7 * w)(score, grad, t))


def test_a_schedule_goes_from_its_value_at_noise_to_its_value_at_data() -> None:
    for shape in ("linear", "cosine", "power"):
        torch.testing.assert_close(
            Scheduled(shape, 0.3, 2.0).weight(torch.tensor([1.0, 0.0])), torch.tensor([0.3, 2.0]), rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("name", WRAPPERS)
def test_omega_reaches_the_inner_rule_given_or_not(inputs: Triple, name: str) -> None:
    score, grad, t = inputs
    omega = torch.linspace(0.1, 3, 16)
    for inner in ({}, {"rule": "rescaled"}):
        rows = build(RULES, Spec(name, WRAPPERS[name] | inner), {"omega": omega}, "rule")(score, grad, t)
        for i in range(16):
            one = build(RULES, Spec(name, WRAPPERS[name] | inner), {"omega": float(omega[i])}, "rule")
            torch.testing.assert_close(rows[i : i + 1], one(score[i : i + 1], grad[i : i + 1], t[i : i + 1]))


def test_a_recipe_nests_rules(inputs: Triple) -> None:
    score, grad, t = inputs
    nested = {"high": 0.8, "rule": {"name": "gradient_clip", "limit": 0.5, "rule": "rescaled"}}
    got = build(RULES, Spec("interval", nested), {"omega": 2.0}, "rule")
    by_hand = Interval(high=0.8, rule=GradientClip(0.5, rule=Rescaled(2.0)))
    assert torch.equal(got(score, grad, t), by_hand(score, grad, t))
    outside, inside = score[t > 0.8], score[t <= 0.8]
    clipped = grad * column((0.5 / norm(grad)).clamp(max=1), grad)
    torch.testing.assert_close(got(score, grad, t)[t <= 0.8], Rescaled(2.0)(inside, clipped[t <= 0.8], t[t <= 0.8]))
    assert torch.equal(got(score, grad, t)[t > 0.8], outside)


def test_the_order_of_nesting_counts(inputs: Triple) -> None:
    score, grad, t = inputs
    weighted_then_clipped = Scheduled("linear", rule=GradientClip(0.5))(score, grad, t)
    clipped_then_weighted = GradientClip(0.5, rule=Scheduled("linear"))(score, grad, t)
    assert (norm(score - clipped_then_weighted) <= 0.5 * (1 - t) + 1e-12).all()
    assert (norm(score - weighted_then_clipped) > 0.5 * (1 - t) + 1e-3).any()


@pytest.mark.parametrize(
    ("name", "settings", "key"),
    [
        ("gradient_clip", {"limit": -1}, "rule.limit"),
        ("gradient_clip", {}, "rule.limit"),
        ("scheduled", {"shape": "cosin"}, "rule.shape"),
        ("interval", {"rule": {"name": "gradient_clip", "limt": 1}}, "rule.rule.limt"),
    ],
)
def test_wrong_settings_are_refused_by_their_key(name: str, settings: dict, key: str) -> None:
    with pytest.raises(UserError) as error:
        validate(RULES, Spec(name, settings), {"omega"}, "rule")
    assert error.value.key == key


def test_bounds_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="low < high"):
        Interval(0.8, 0.2)
    with pytest.raises(ValueError, match="positive"):
        GradientClip(0.0)


@pytest.mark.parametrize("rule", [GradientClip(1e6), Interval(), Scheduled(at_noise=1.0)], ids=lambda r: type(r).__name__)
def test_a_rule_that_never_acts_leaves_guidance_exact(mixture: GaussianMixture, rule: Callable) -> None:
    schedule, t = VPLinear(), torch.linspace(0.02, 0.98, 40)
    x = mixture.noised(schedule, t, torch.Generator().manual_seed(3))
    bowl = Quadratic(torch.eye(2), torch.zeros(2))
    energy = lambda x, t, c: mixture.energy(schedule, bowl, 1.0, x, t)  # noqa: E731
    got = guide(lambda x, t, c: mixture.denoise(schedule, x, t), energy, rule, schedule)(x, t)
    torch.testing.assert_close(got, mixture.tilted(bowl, 1.0).denoise(schedule, x, t), rtol=1e-6, atol=1e-6)
