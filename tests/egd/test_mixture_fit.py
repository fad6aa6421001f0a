"""The energies that know of several modes: exact, mixture_fit, and the blend of support samples with a local expansion."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from egd.energies import MonteCarlo, SupportSamples
from egd.energies.base import prepare
from egd.energies.ess_blend import EssBlend
from egd.energies.exact import ExactEnergy
from egd.energies.mixture_fit import MixtureFit, fit_mixture
from egd.errors import UserError
from egd.guidance import guide
from egd.metrics import sliced_wasserstein
from egd.mixtures import GaussianMixture, Quadratic
from egd.posteriors import ExactPosterior
from egd.rules import Additive
from egd.samplers import dpm_solver_pp_2m
from egd.samplers.watching import watching
from egd.schedules import VPLinear, time_grid
from egd.tensors import value_and_grad
from egd.types import Context, Energy, Schedule, Support, TimedEnergy

F64 = {"dtype": torch.float64}
BETA = 1.7
BOWL = Quadratic(torch.tensor([[0.8, 0.3], [0.3, 0.5]], **F64), torch.tensor([1.0, -0.5], **F64), 0.7)


def waves(x: Tensor, c: Context = None) -> Tensor:
    """Far from quadratic over a posterior at high noise."""
    return torch.sin(1.5 * x[:, 0]) + 0.02 * x.pow(4).sum(1)


def hill(x: Tensor, c: Context = None) -> Tensor:
    """High at the centre, low on a circle."""
    return (x.square().sum(1) / 4 - 1).square()


def support_of(m: GaussianMixture) -> Support:
    return lambda c, n: m.sample(n, torch.Generator().manual_seed(1))[None]


def points(m: GaussianMixture, schedule: Schedule, t: float, n: int = 200) -> tuple[Tensor, Tensor]:
    times = torch.full((n,), t)
    return m.noised(schedule, times, torch.Generator().manual_seed(3)), times


def slope_of(energy: TimedEnergy, x: Tensor, t: Tensor) -> Tensor:
    return value_and_grad(lambda x: energy(x, t, None), x)[1]


def quadrature(m: GaussianMixture, schedule: Schedule, energy: Energy, x: Tensor, t: Tensor, lattice: Callable) -> Tensor:
    """-log E[exp(-beta E(x_0)) | x_t] by a sum over x_0, for equal times."""
    nodes, _ = lattice(2, 12.0, 241)
    alpha, sigma = schedule.alpha(t[:1]), schedule.sigma(t[:1])
    log_w = (m.log_prob(nodes) - (x[:, None] - alpha * nodes).square().sum(2) / (2 * sigma**2)).log_softmax(1)
    return -torch.logsumexp(log_w - BETA * energy(nodes, None), 1)


@pytest.mark.parametrize("t", [0.3, 0.7])
def test_the_exact_energy_is_that_of_quadrature(
    mixture: GaussianMixture, schedule: Schedule, lattice: Callable, t: float
) -> None:
    x, times = points(mixture, schedule, t, 8)
    want = quadrature(mixture, schedule, BOWL, x, times, lattice)
    torch.testing.assert_close(ExactEnergy(BOWL, mixture, schedule, BETA)(x, times), want, rtol=1e-7, atol=1e-7)


def test_a_fitted_mixture_has_nearly_the_exact_gradient(mixture: GaussianMixture, schedule: Schedule) -> None:
    energy = MixtureFit(BOWL, support_of(mixture), schedule, BETA, samples=8000, components=(1, 2, 3, 4), points=16)
    for t in (0.05, 0.2, 0.5, 0.9):  # of one fit
        x, times = points(mixture, schedule, t)
        want = slope_of(ExactEnergy(BOWL, mixture, schedule, BETA), x, times)
        assert (slope_of(energy, x, times) - want).norm() / want.norm() < 0.04


def test_a_fitted_mixture_is_that_of_the_data_with_the_right_number_of_components(mixture: GaussianMixture) -> None:
    fitted = fit_mixture(mixture.sample(8000, torch.Generator().manual_seed(1)), (1, 2, 3, 4, 5, 9000))
    order, truth = fitted.means[:, 0].argsort(), mixture.means[:, 0].argsort()
    torch.testing.assert_close(fitted.means[order], mixture.means[truth], rtol=0, atol=0.1)
    torch.testing.assert_close(fitted.covs[order], mixture.covs[truth], rtol=0, atol=0.1)
    torch.testing.assert_close(fitted.log_weights[order].exp(), mixture.log_weights[truth].exp(), rtol=0, atol=0.03)


def test_data_of_one_dimension_are_fitted_too() -> None:
    """A uniform distribution under a wave: the gradient by quadrature over x_0."""
    data = 2 * torch.rand(1, 4000, 1, generator=torch.Generator().manual_seed(0)) - 1
    wave = lambda x, c=None: 2 * torch.cos(4 * x[:, 0]) + x[:, 0]  # noqa: E731
    schedule, nodes = VPLinear(), torch.linspace(-1, 1, 4001)[:, None]
    fit = prepare(MixtureFit(wave, lambda c, n: data[:, :n], schedule, BETA, samples=4000, components=(2, 4)), None)
    t = torch.full((30,), 0.5)
    x = schedule.alpha(t)[:, None] * data[0, :30] + schedule.sigma(t)[:, None] * torch.randn(30, 1)

    def exact(x: Tensor, t: Tensor, c: Context) -> Tensor:
        alpha, sigma = schedule.alpha(t[:1]), schedule.sigma(t[:1])
        log_w = (-(x - alpha * nodes[:, 0]).square() / (2 * sigma**2)).log_softmax(1)
        return -torch.logsumexp(log_w - BETA * wave(nodes), 1)

    want = slope_of(exact, x, t)
    assert (slope_of(fit, x, t) - want).norm() / want.norm() < 0.1


def test_the_chosen_fit_goes_on_with_all_samples(mixture: GaussianMixture) -> None:
    data = mixture.sample(20_000, torch.Generator().manual_seed(1))

    def distance(fitted: GaussianMixture) -> float:
        order, truth = fitted.means[:, 0].argsort(), mixture.means[:, 0].argsort()
        return float((fitted.means[order] - mixture.means[truth]).norm())

    few = fit_mixture(data[:400], (3,))
    assert distance(fit_mixture(data, (3,), choose_on=400)) < 0.5 * distance(few)


def test_of_a_quadratic_energy_the_correction_corrects_nothing(mixture: GaussianMixture) -> None:
    """Every importance weight is one: the closed form is exact already, so the fitted mixture's exact energy comes out."""
    energy = MixtureFit(BOWL, support_of(mixture), VPLinear(), BETA, samples=500, components=(3,), points=0)
    x, t = points(mixture, VPLinear(), 0.4, 20)
    fitted = fit_mixture(support_of(mixture)(None, 500)[0], (3,))
    want = fitted.energy(VPLinear(), BOWL, BETA, x, t)
    torch.testing.assert_close(energy(x, t), want)
    torch.testing.assert_close(replace(energy, points=5)(x, t), want)


def test_the_importance_correction_makes_other_energies_exact(mixture: GaussianMixture, lattice: Callable) -> None:
    schedule = VPLinear()
    data = support_of(mixture)
    fitted = fit_mixture(data(None, 500)[0], (3,))
    x, t = points(mixture, schedule, 0.5, 20)
    want = quadrature(fitted, schedule, waves, x, t, lattice)
    energy = MixtureFit(waves, data, schedule, BETA, samples=500, components=(3,))
    error = {n: float((replace(energy, points=n)(x, t) - want).square().mean().sqrt()) for n in (0, 64, 4096)}
    assert error[0] > 0.15
    assert error[4096] < 1e-3 < error[64] < 0.02


def test_a_hill_within_a_mode_is_no_harm(lattice: Callable) -> None:
    """Where E curves downwards the quadratic of a broad mode has no integral; the correction starts from a gradient instead."""
    broad = GaussianMixture(torch.zeros(1, **F64), torch.zeros(1, 2, **F64), 1.5 * torch.eye(2, **F64)[None])
    x, t = points(broad, VPLinear(), 0.5, 20)
    data = support_of(broad)
    energy = MixtureFit(hill, data, VPLinear(), BETA, samples=500, components=(1,))
    want = quadrature(fit_mixture(data(None, 500)[0], (1,)), VPLinear(), hill, x, t, lattice)
    assert (replace(energy, points=0)(x, t) - want).abs().mean() > 0.2
    torch.testing.assert_close(energy(x, t), want, rtol=0, atol=0.15)
    torch.testing.assert_close(replace(energy, points=4096)(x, t), want, rtol=0, atol=0.005)


def test_the_fit_is_made_once_and_for_any_event_shape(mixture: GaussianMixture) -> None:
    calls = []

    def support(c: Context, n: int) -> Tensor:
        calls.append(n)
        return mixture.sample(n, torch.Generator().manual_seed(1)).reshape(1, n, 2, 1)

    flat = MixtureFit(waves, support_of(mixture), VPLinear(), BETA, samples=500, components=(3,))
    tall = replace(flat, energy=lambda x, c: waves(x[..., 0]), support=support)
    x, t = points(mixture, VPLinear(), 0.4, 5)
    for _ in range(2):
        torch.testing.assert_close(tall(x[..., None], t), flat(x, t))
    assert calls == [500]
    assert prepare(tall, None) is prepare(tall, None)


def test_a_fit_has_the_gradient_of_its_value(mixture: GaussianMixture) -> None:
    energy = MixtureFit(waves, support_of(mixture), VPLinear(), BETA, samples=500, components=(3,))
    x, t = points(mixture, VPLinear(), 0.4, 5)
    got = slope_of(energy, x, t)
    for i, h in enumerate(1e-5 * torch.eye(2)):
        torch.testing.assert_close((energy(x + h, t) - energy(x - h, t)) / 2e-5, got[:, i], rtol=1e-5, atol=1e-5)


def test_one_fit_serves_one_distribution_and_refuses_a_context(mixture: GaussianMixture) -> None:
    energy = MixtureFit(BOWL, support_of(mixture), VPLinear(), BETA)
    with pytest.raises(ValueError, match=r"takes no context; use support_samples or ess_blend"):
        prepare(energy, torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"takes no context"):
        energy(torch.zeros(3, 2), torch.ones(3), torch.zeros(3, 1))


def blended(m: GaussianMixture, schedule: Schedule, beta: float = BETA, samples: int = 1024) -> dict[str, TimedEnergy]:
    posterior, support = ExactPosterior(m, schedule), support_of(m)
    return {
        "local": MonteCarlo(BOWL, posterior, beta),
        "support": prepare(SupportSamples(BOWL, support, schedule, beta, samples), None),
        "blend": prepare(EssBlend(BOWL, posterior, support, schedule, beta, samples), None),
    }


def test_the_blend_is_local_at_low_noise_and_support_at_high_noise(mixture: GaussianMixture, schedule: Schedule) -> None:
    forms = blended(mixture, schedule)
    for t, name, tolerance in ((5e-4, "local", 0.1), (0.9, "support", 1e-3)):
        x, times = points(mixture, schedule, t)
        assert float(forms["support"].ess(x, times).median()) < 3 or t > 0.5
        got, want = slope_of(forms["blend"], x, times), slope_of(forms[name], x, times)
        assert (got - want).norm() / want.norm() < tolerance


def test_the_blend_mixes_gradients_with_the_weight_of_its_definition(mixture: GaussianMixture, schedule: Schedule) -> None:
    """w = n^4 / (n^4 + pivot^4), held constant under differentiation."""
    forms = blended(mixture, schedule)
    x, t = points(mixture, schedule, 0.02 if isinstance(schedule, VPLinear) else 0.05)
    power = forms["support"].ess(x, t) ** 4
    w = power / (power + 10**4)
    assert w.min() < 0.3 and w.max() > 0.7
    torch.testing.assert_close(
        forms["blend"](x, t, None), w * forms["support"](x, t, None) + (1 - w) * forms["local"](x, t, None)
    )
    parts = [slope_of(forms[name], x, t) for name in ("support", "local")]
    torch.testing.assert_close(slope_of(forms["blend"], x, t), w[:, None] * parts[0] + (1 - w)[:, None] * parts[1])


def test_the_blends_gradient_is_good_at_every_noise_level_as_neither_of_its_parts_is(
    mixture: GaussianMixture, schedule: Schedule
) -> None:
    forms, exact = blended(mixture, schedule), ExactEnergy(BOWL, mixture, schedule, BETA)
    worst = dict.fromkeys(forms, 0.0)
    for t in (0.003, 0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9):
        x, times = points(mixture, schedule, t, 300)
        want = slope_of(exact, x, times)
        for name, form in forms.items():
            error = float((slope_of(form, x, times) - want).norm() / want.norm())
            worst[name] = max(worst[name], error)
    assert worst["blend"] < 0.2
    assert worst["local"] > 0.25 and worst["support"] > 1


def test_samples_guided_by_the_blend_are_as_good_as_those_of_its_better_part(mixture: GaussianMixture) -> None:
    schedule, beta = VPLinear(), 3.0
    target = mixture.tilted(BOWL, beta).sample(2000, torch.Generator().manual_seed(5))
    noise = torch.randn(800, 2, generator=torch.Generator().manual_seed(2))
    times = time_grid(schedule, 20, spacing="log_snr")

    def denoiser(x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        return mixture.denoise(schedule, x, t)

    distance = {}
    for name, form in blended(mixture, schedule, beta).items():
        samples = dpm_solver_pp_2m(guide(denoiser, form, Additive(1.0), schedule), schedule, noise, times)
        distance[name] = float(sliced_wasserstein(samples, target, 64, torch.Generator().manual_seed(0)))
    assert distance["blend"] < 1.05 * min(distance["local"], distance["support"])


def test_the_local_form_of_a_blend_may_be_any_energy_and_is_prepared_with_it(mixture: GaussianMixture) -> None:
    schedule, support = VPLinear(), support_of(mixture)
    stream = torch.Generator().manual_seed(0)
    local = SupportSamples(BOWL, lambda c, n: mixture.sample(n, stream)[None], schedule, BETA, 4)  # others at every call
    blend = EssBlend(BOWL, ExactPosterior(mixture, schedule), support, schedule, BETA, pivot=1e9, local=local)
    x, t = points(mixture, schedule, 0.4, 20)
    bound = prepare(blend, None)
    assert torch.equal(bound(x, t, None), bound(x, t, None))
    plain = EssBlend(BOWL, ExactPosterior(mixture, schedule), support, schedule, BETA, pivot=1e9)
    torch.testing.assert_close(plain(x, t), MonteCarlo(BOWL, ExactPosterior(mixture, schedule), BETA)(x, t))
    assert (bound(x, t, None) - plain(x, t)).abs().max() > 0.1


def test_where_support_samples_have_all_the_weight_the_local_form_is_not_asked(mixture: GaussianMixture) -> None:
    def wild(x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        raise AssertionError("asked")

    schedule, support = VPLinear(), support_of(mixture)
    blend = EssBlend(BOWL, ExactPosterior(mixture, schedule), support, schedule, BETA, local=wild)
    x, t = points(mixture, schedule, 0.9)
    plain = SupportSamples(BOWL, support, schedule, BETA, 1024)
    assert torch.equal(blend(x, t), plain(x, t))
    with pytest.raises(AssertionError, match="asked"):
        blend(*points(mixture, schedule, 0.01))


def test_too_few_samples_are_named() -> None:
    with pytest.raises(ValueError, match="2 samples of 3 dimensions are too few"):
        fit_mixture(torch.randn(2, 3), (1, 2))
    for data in (torch.ones(100, 2), torch.randn(100, 2).log()):
        with pytest.raises(ValueError, match="all the same, or not finite"):
            fit_mixture(data, (1, 2))


def test_a_rows_gradient_of_a_blend_is_its_own(mixture: GaussianMixture) -> None:
    """Alone or in a batch, and beside a row that has diverged; a local form that is infinite where support samples have all
    the weight does not reach the gradient there."""

    def infinite_far_out(x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        return (1.0 - t - 0.2).sqrt() + x.square().sum(1)  # an infinite or undefined gradient for t >= 0.8

    def wild(x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        return (x.square().sum(1) * (t < 0.8)).sqrt()  # 0 * inf, no number, is its gradient at t = 0.9

    schedule = VPLinear()
    x = torch.cat([points(mixture, schedule, t, 4)[0] for t in (0.02, 0.1, 0.3, 0.9)])
    t = torch.tensor([0.02, 0.1, 0.3, 0.9]).repeat_interleave(4)
    for local in (None, wild):
        blend = EssBlend(BOWL, ExactPosterior(mixture, schedule), support_of(mixture), schedule, BETA, samples=256, local=local)
        bound = prepare(blend, None)
        together = slope_of(bound, x, t)
        alone = torch.cat([slope_of(bound, x[i : i + 1], t[i : i + 1]) for i in range(len(x))])
        torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)
        assert together.isfinite().all()
        spoilt = x.clone()
        spoilt[0] = torch.nan
        torch.testing.assert_close(slope_of(bound, spoilt, t)[1:], together[1:], rtol=1e-9, atol=1e-9)


def test_data_of_low_rank_in_many_dimensions_keep_their_modes(generator: torch.Generator) -> None:
    """Five modes in three of twenty dimensions, of which BIC finds one: a component has 230 parameters and 1500 samples pay."""
    basis, _ = torch.linalg.qr(torch.randn(20, 3, generator=generator))
    centres = 2.5 * torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1]])
    place = centres.repeat(300, 1) + 0.4 * torch.randn(1500, 3, generator=generator)
    place = place[torch.randperm(1500, generator=generator)]
    data = place @ basis.mT + 0.05 * torch.randn(1500, 20, generator=generator)
    fitted = fit_mixture(data, (3, 4, 5, 6))
    assert len(fitted.means) == 5
    assert torch.cdist(centres @ basis.mT, fitted.means).amin(1).max() < 0.15
    torch.testing.assert_close(fitted.log_weights.exp(), torch.full((5,), 0.2), rtol=0, atol=0.03)
    spread = 0.4**2 * basis @ basis.mT + 0.05**2 * torch.eye(20)
    assert (fitted.covs - spread).flatten(1).norm(dim=1).max() < 0.25 * spread.norm()


STANDARD = GaussianMixture(torch.zeros(1, **F64), torch.zeros(1, 8, **F64), torch.eye(8, **F64)[None])


def bowl(x: Tensor, c: Context = None) -> Tensor:
    return x.square().sum(1)


def needles(x: Tensor, c: Context = None) -> Tensor:
    return 3 * (6 * x).cos().sum(1)


def far_needles(x: Tensor, c: Context = None) -> Tensor:
    """Needles where no data are."""
    return bowl(x) + torch.where(x.abs().amax(1) > 6, 1.0, 0.0) * 30 * (60 * x).cos().sum(1)


def fit_of(energy: Energy, **settings: Any) -> MixtureFit:
    return MixtureFit(energy, support_of(STANDARD), VPLinear(), 1.0, samples=400, components=(1,), **settings)


@pytest.mark.parametrize(("settings", "count"), [({}, "64"), ({"points": 16}, "16"), ({"points": 400}, "400")])
def test_a_correction_that_collapses_is_refused_with_its_remedy(settings: dict[str, Any], count: str) -> None:
    """Of a quadratic energy half the draws count at least; of needles in eight dimensions hardly one does, however many."""
    fit_of(bowl, **settings).prepare(None)
    said = rf"of the {count} draws .* needles \(test_mixture_fit.py.* count at t = .* Raise points, .* least_effective: 0"
    with pytest.raises(ValueError, match=said) as refused:
        fit_of(needles, **settings).prepare(None)
    assert isinstance(refused.value, UserError)
    with pytest.raises(UserError, match="collapsed"):
        guide(lambda x, t, c=None: x, fit_of(needles, **settings), Additive(), VPLinear())(torch.zeros(2, 8), torch.ones(2) / 2)
    fit_of(needles, **settings, least_effective=0).prepare(None)
    fit_of(needles, points=0).prepare(None)


@pytest.mark.parametrize("energy", [bowl, needles, far_needles])
def test_a_correction_that_collapses_on_the_way_is_warned_of_unless_that_is_meant(energy: Energy) -> None:
    schedule, times = VPLinear(), time_grid(VPLinear(), 4)
    denoiser = lambda x, t, c=None: STANDARD.denoise(schedule, x, t)  # noqa: E731
    noise = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    start = noise + (3e5 if energy is far_needles else 0)
    for least in (0.05, 0.0) if energy is not needles else (0.0,):
        timed = prepare(fit_of(energy, least_effective=least), None)
        with warnings.catch_warnings(record=True) as caught, watching() as watch:
            warnings.simplefilter("always")
            dpm_solver_pp_2m(guide(denoiser, timed, Additive(), schedule), schedule, start, times)
        told = any("Raise points, or use ess_blend" in str(w.message) for w in caught)
        assert told == (energy is far_needles and least > 0)
        assert (watch.metrics()["effective"] > 0.35) == (energy is bowl)
