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
from egd.schedules import VPLinear, time_grid
from egd.types import Context
from egd.watching import SamplingWarning, watching
from egd.wrappers import Clip

SCHEDULE = VPLinear()
DATA = GaussianMixture(torch.zeros(1).double(), torch.zeros(1, 2).double(), torch.eye(2).double()[None])
BOWL = Quadratic(torch.eye(2).double(), torch.ones(2).double())


def denoiser(x: Tensor, t: Tensor, c: Context = None) -> Tensor:
    return DATA.denoise(SCHEDULE, x, t)


def flat(x: Tensor, c: Context = None) -> Tensor:
    """Steps with a graph, whose slope is zero everywhere."""
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
