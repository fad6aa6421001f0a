from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from egd.denoisers import score
from egd.guidance import guide
from egd.mixtures import GaussianMixture, Quadratic
from egd.rules import Additive, Rescaled
from egd.schedules import VPLinear
from egd.tensors import norm
from egd.types import Denoiser, Schedule, TimedEnergy

BOWL = Quadratic(torch.tensor([[0.8, 0.3], [0.3, 0.5]], dtype=torch.float64), torch.tensor([1.0, -0.5], dtype=torch.float64))
BETA = 1.5
RULES = pytest.mark.parametrize("rule", [Additive, Rescaled])


def oracle(m: GaussianMixture, schedule: Schedule) -> tuple[Denoiser, TimedEnergy]:
    return lambda x, t, c=None: m.denoise(schedule, x, t), lambda x, t, c: m.energy(schedule, BOWL, BETA, x, t)


def noised(m: GaussianMixture, schedule: Schedule) -> tuple[Tensor, Tensor]:
    t = torch.linspace(0.02, 0.98, 40)
    return m.noised(schedule, t, torch.Generator().manual_seed(3)), t


def test_the_additive_rule_with_the_exact_energy_gives_the_exact_denoiser_of_the_target(
    mixture: GaussianMixture, schedule: Schedule
) -> None:
    x, t = noised(mixture, schedule)
    got = guide(*oracle(mixture, schedule), Additive(), schedule)(x, t)
    torch.testing.assert_close(got, mixture.tilted(BOWL, BETA).denoise(schedule, x, t), rtol=1e-6, atol=1e-6)


@RULES
def test_omega_zero_leaves_the_denoiser_unchanged(mixture: GaussianMixture, schedule: Schedule, rule: type) -> None:
    x, t = noised(mixture, schedule)
    denoiser, energy = oracle(mixture, schedule)
    torch.testing.assert_close(guide(denoiser, energy, rule(0.0), schedule)(x, t), denoiser(x, t), rtol=1e-9, atol=1e-9)


@RULES
def test_one_omega_a_row_equals_separate_calls(mixture: GaussianMixture, rule: type) -> None:
    x, t = noised(mixture, VPLinear())
    omegas = torch.linspace(0, 3, len(x))
    together = guide(*oracle(mixture, VPLinear()), rule(omegas), VPLinear())(x, t)
    for i, omega in enumerate(omegas.tolist()):
        row = slice(i, i + 1)
        alone = guide(*oracle(mixture, VPLinear()), rule(omega), VPLinear())(x[row], t[row])
        torch.testing.assert_close(together[row], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(5,), (3, 4, 4)])
def test_the_rescaled_rule_keeps_the_norm_and_takes_the_direction_of_the_additive_one(
    generator: torch.Generator, shape: tuple[int, ...]
) -> None:
    s, e = torch.randn(2, 16, *shape, generator=generator)
    t = torch.rand(16, generator=generator)
    additive, rescaled = Additive(1.7)(s, e, t), Rescaled(1.7)(s, e, t)
    torch.testing.assert_close(norm(rescaled), norm(s))
    torch.testing.assert_close(
        rescaled / norm(s).view(-1, *[1] * len(shape)), torch.nn.functional.normalize(additive.flatten(1)).view_as(s)
    )


def test_the_rescaled_rule_is_finite_where_guidance_cancels_the_score() -> None:
    s = torch.ones(2, 3)
    assert Rescaled()(s, s, torch.ones(2)).isfinite().all()


def test_the_guided_score_keeps_its_norm_through_the_denoiser(mixture: GaussianMixture, schedule: Schedule) -> None:
    x, t = noised(mixture, schedule)
    denoiser, energy = oracle(mixture, schedule)
    guided = guide(denoiser, energy, Rescaled(2.0), schedule)
    torch.testing.assert_close(norm(score(guided, schedule, x, t)), norm(score(denoiser, schedule, x, t)), rtol=1e-6, atol=1e-8)


def test_images_are_guided_exactly_too(normal: Callable, schedule: Schedule, generator: torch.Generator) -> None:
    """N(m, v I) tilted by exp(-beta <b, x>) is N(m - beta v b, v I), and grad E_t = beta v alpha / (alpha^2 v + sigma^2) b."""
    m, b = torch.randn(2, 3, 4, 4, generator=generator)
    prior, target = normal(m, 0.6), normal(m - BETA * 0.6 * b, 0.6)
    t = torch.linspace(0.05, 0.95, 7)
    x = torch.randn(7, 3, 4, 4, generator=generator)

    def energy(x: Tensor, t: Tensor, c: None) -> Tensor:
        return BETA * (prior.denoiser(schedule)(x, t) * b).sum((1, 2, 3))

    guided = guide(prior.denoiser(schedule), energy, Additive(torch.ones(7)), schedule)
    torch.testing.assert_close(guided(x, t), target.denoiser(schedule)(x, t), rtol=1e-9, atol=1e-9)


def test_the_context_reaches_denoiser_and_energy(schedule: Schedule, generator: torch.Generator) -> None:
    x, c, t = *torch.randn(2, 4, 2, generator=generator), torch.full((4,), 0.5)
    guided = guide(lambda x, t, c: c, lambda x, t, c: (x * c).sum(1), Additive(), schedule)
    alpha, var = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None] ** 2
    torch.testing.assert_close(guided(x, t, c), c - var / alpha * c)


def test_guiding_works_where_the_sampler_has_switched_gradients_off(mixture: GaussianMixture) -> None:
    x, t = noised(mixture, VPLinear())
    guided = guide(*oracle(mixture, VPLinear()), Additive(), VPLinear())
    with torch.no_grad():
        off = guided(x, t)
    assert torch.equal(off, guided(x, t))
    assert not off.requires_grad
