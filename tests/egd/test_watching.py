"""Sampling runs that end where no data are, or that were never guided, say so once; what is sound says nothing."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from egd.energies import DPS, SecondOrder, SupportSamples
from egd.guidance import guide
from egd.mixtures import GaussianMixture, Quadratic
from egd.particles import smc
from egd.posteriors import IsotropicGaussian
from egd.rules import Additive
from egd.samplers import dpm_solver_pp_2m, euler, heun
from egd.samplers.base import levels, shrink
from egd.samplers.watching import Lookout, SamplingWarning, watching
from egd.schedules import EDM, VPLinear, time_grid
from egd.types import Context, Denoiser
from egd.wrappers import Clip, DynamicThreshold

SCHEDULE = VPLinear()
DATA = GaussianMixture(torch.zeros(1).double(), torch.zeros(1, 2).double(), torch.eye(2).double()[None])
BOWL = Quadratic(torch.eye(2).double(), torch.ones(2).double())


def denoiser(x: Tensor, t: Tensor, c: Context = None) -> Tensor:
    return DATA.denoise(SCHEDULE, x, t)


def flat(x: Tensor, c: Context = None) -> Tensor:
    """Steps with a graph, whose gradient is zero everywhere."""
    return x.round().sum(1)


def start(n: int = 16) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0)), time_grid(SCHEDULE, 10)


@pytest.mark.parametrize("sampler", [dpm_solver_pp_2m, euler, heun])
def test_a_sound_run_says_nothing(sampler) -> None:
    x, times = start()
    with warnings.catch_warnings(), watching() as watch:
        warnings.simplefilter("error")
        sampler(denoiser, SCHEDULE, x, times)
        sampler(guide(denoiser, DPS(BOWL, denoiser), Additive(), SCHEDULE), SCHEDULE, x, times)
        sampler(denoiser, SCHEDULE, x=x, times=times)
    assert watch.metrics() == {"off_scale": 0.0} and watch.rows == 48


@pytest.mark.parametrize("sampler", [dpm_solver_pp_2m, euler, heun])
def test_samples_that_leave_the_scale_are_warned_of_and_counted_and_a_clip_around_the_guidance_helps(sampler) -> None:
    x, times = start()
    steep = guide(denoiser, DPS(BOWL, denoiser, beta=1e4), Additive(), SCHEDULE)
    with pytest.warns(SamplingWarning, match=r"samples have left.*Clip\(guide"), watching() as watch:
        end = sampler(steep, SCHEDULE, x, times)
    assert end.abs().amax() > 1e3 and watch.metrics()["off_scale"] == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sampler(Clip(steep, -4, 4), SCHEDULE, x, times).abs().amax() < 100


def test_what_is_no_number_is_off_the_scale() -> None:
    x, times = start()
    x[3] = torch.nan
    with pytest.warns(SamplingWarning, match="or are not finite"), watching() as watch:
        euler(denoiser, SCHEDULE, x, times)
    assert watch.metrics()["off_scale"] == 1 / 16


def test_a_warning_is_shown_once_however_many_runs_there_are() -> None:
    x, times = start()
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        warnings.simplefilter("default")
        for beta in (1e4, 2e4, 3e4):  # as an evaluation does, at every step of its episodes
            steep = guide(denoiser, DPS(BOWL, denoiser, beta=beta), Additive(), SCHEDULE)
            euler(steep, SCHEDULE, x[: int(beta // 1e3)], times)
    assert len(caught) == 1


def by_hand(guided: Denoiser, x: Tensor, times: Tensor) -> Tensor:
    """A loop of one's own: DDIM."""
    alpha, sigma, _ = levels(SCHEDULE, times)
    for i, t in enumerate(times[:-1]):
        x = shrink(x, guided(x, t.expand(len(x)), None), alpha, sigma, i)
    return x


@pytest.mark.parametrize("how", ["steep", "nan"])
def test_a_loop_of_ones_own_is_warned_of_x0_that_leaves_the_scale_once(how: str) -> None:
    x, times = start()
    broken = lambda x, t, c=None: torch.where(t[:, None] < 0.5, torch.nan, denoiser(x, t))  # noqa: E731
    steep = guide(denoiser, DPS(BOWL, denoiser, beta=1e4), Additive(), SCHEDULE)
    guided = steep if how == "steep" else guide(broken, DPS(BOWL, denoiser), Additive(), SCHEDULE)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            by_hand(guided, x, times)
    assert [str(w.message)[:35] for w in caught] == ["the guided x_0 has left the data's "]
    assert caught[0].filename == __file__ and "Clip(guide(...), low, high)" in str(caught[0].message)
    with warnings.catch_warnings(record=True) as caught, watching() as watch:  # with a watch of one's own too, and no other
        warnings.simplefilter("always")
        again = guide(denoiser, DPS(BOWL, denoiser, beta=1e4), Additive(), SCHEDULE)
        euler(again, SCHEDULE, x, times)
        assert [str(w.message)[:12] for w in caught] == ["samples have"]  # a sampler says it, and says it once
        by_hand(again, x, times)
        assert len(caught) == 2
    assert watch.metrics()["off_scale"] == 1


def test_a_sound_or_clipped_loop_of_ones_own_says_nothing() -> None:
    x, times = start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sound = guide(denoiser, DPS(BOWL, denoiser), Additive(), SCHEDULE)
        assert by_hand(sound, x, times).abs().amax() < 10
        steep = guide(denoiser, DPS(BOWL, denoiser, beta=1e4), Additive(), SCHEDULE)
        assert by_hand(Clip(steep, -4, 4), x, times).abs().amax() < 10
        by_hand(DynamicThreshold(steep, bound=4.0), x, times)
        guide(denoiser, DPS(BOWL, denoiser), Additive(), EDM())(80 * x, torch.ones(len(x)), None)  # of the noise's own scale
    with pytest.warns(SamplingWarning, match="the guided x_0 has left"):
        steep(x, times[5].expand(len(x)), None)


def test_a_device_is_waited_for_at_every_eighth_call_only(monkeypatch: pytest.MonkeyPatch) -> None:
    x, times = start()
    x, times = x.to("meta"), times[:1].expand(len(x)).to("meta")  # whose values cannot be asked for
    asked: list[int] = []
    monkeypatch.setattr(Tensor, "__bool__", lambda self: asked.append(len(calls)) or False)  # type: ignore[method-assign]
    calls: list[int] = []
    lookout = Lookout()
    for i in range(20):
        calls.append(i)
        assert lookout.wanted(x)
        lookout.look(x, x, times[:, None], bounded=False)
    assert asked == [8, 16]


def test_a_denoiser_that_leaves_the_scale_unguided_is_not_put_down_to_guidance() -> None:
    def far(x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        return 1e4 * x

    x, times = start()
    for unguided in (far, guide(far, DPS(flat, far), Additive(), SCHEDULE)):  # the second by an energy without a slope
        with pytest.warns(SamplingWarning, match=r"no energy was seen to guide.*Clip\(denoiser") as caught:
            euler(unguided, SCHEDULE, x, times)
        assert "too strong" not in str(caught[0].message)


def test_an_energy_that_never_pushes_is_named() -> None:
    x, times = start()
    unguided = euler(denoiser, SCHEDULE, x, times)
    with pytest.warns(SamplingWarning, match="DPS .* never pushed"):
        end = euler(guide(denoiser, DPS(flat, denoiser), Additive(), SCHEDULE), SCHEDULE, x, times)
    torch.testing.assert_close(end, unguided)
    support = SupportSamples(flat, lambda c, k: DATA.sample(k, torch.Generator().manual_seed(1))[None], SCHEDULE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        euler(guide(denoiser, support.prepare(None), Additive(), SCHEDULE), SCHEDULE, x, times)


def test_sequential_monte_carlo_is_watched_too() -> None:
    x, times = start()
    x = x.reshape(2, 8, 2)
    common = {"energy": BOWL, "beta": 1.0, "generator": torch.Generator().manual_seed(0)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        smc(denoiser, SCHEDULE, x, times, timed_energy=DPS(flat, denoiser), **common)  # exact unguided, too
    x[0, 0] = torch.inf
    with pytest.warns(SamplingWarning, match="samples have left"):
        smc(denoiser, SCHEDULE, x, times, timed_energy=DPS(BOWL, denoiser), ess_threshold=0.0, **common)


def test_the_share_of_clipped_curvatures_is_reported() -> None:
    """Under a posterior of variance 1 the hill's curvature is -2, which has no integral; it is where x_1 > 0."""

    def hill(x: Tensor, c: Context = None) -> Tensor:
        return torch.where(x[:, 0] > 0, -1.0, 0.5) * x.square().sum(1)

    estimate = SecondOrder(hill, lambda x, t, c=None: IsotropicGaussian(x, torch.ones(len(x))))
    with watching() as watch:
        estimate(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [-2.0, 1.0], [-1.0, 1.0]]), torch.ones(4))
    assert watch.metrics() == {"clipped": 0.25}
