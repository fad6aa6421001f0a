"""Events of steps: networks for them, and samples of which a part is known."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from egd.denoisers import NetworkDenoiser
from egd.guidance import guide
from egd.mixtures import GaussianMixture
from egd.networks.temporal import TemporalEnergy, TemporalUNet
from egd.objectives import MSE
from egd.rules import Rescaled
from egd.samplers import dpm_solver_pp_2m
from egd.schedules import VPLinear, time_grid
from egd.tensors import value_and_grad
from egd.training.learners import DenoiserLearner, EnergyLearner, Fit
from egd.types import Context
from egd.wrappers import Inpaint

H, RHO = 8, 0.8
SCHEDULE = VPLinear()
LAGS = torch.arange(H)
COV = RHO ** (LAGS[:, None] - LAGS).abs().double()  # s_k+1 = rho s_k + noise, stationary: the mean given s_0 is rho^k s_0
MASK = (LAGS == 0)[:, None]
CHAIN = GaussianMixture(torch.zeros(1).double(), torch.zeros(1, H).double(), COV[None])


def unconditional(x: Tensor, t: Tensor, c: Context = None) -> Tensor:
    """E[x_0 | x_t]: (B, H, 1) -> (B, H, 1)"""
    return CHAIN.denoise(SCHEDULE, x.flatten(1), t).reshape(x.shape)


def conditional(x: Tensor, t: Tensor, c: Context) -> Tensor:
    """E[x_0 | x_t, s_0 = c], where the first entry is anything."""
    assert isinstance(c, Tensor)
    mean = c @ COV[:1, 1:]
    rest = GaussianMixture(torch.zeros(1), torch.zeros(1, H - 1), (COV[1:, 1:] - COV[1:, :1] @ COV[:1, 1:])[None])
    centred = x[:, 1:, 0] - SCHEDULE.alpha(t)[:, None] * mean
    return torch.cat([torch.full_like(c, 7.0), mean + rest.denoise(SCHEDULE, centred, t)], 1)[..., None]


def sampled(denoiser: Callable[..., Tensor], first: Tensor, generator: torch.Generator, steps: int = 40) -> Tensor:
    """One sample for each first state (B, 1): (B, H)"""
    noise = torch.randn(len(first), H, 1, generator=generator)
    return dpm_solver_pp_2m(Inpaint(denoiser, MASK), SCHEDULE, noise, times(steps), first)[..., 0]


def times(steps: int) -> Tensor:
    """Even in log-SNR, and all the way to the data."""
    return torch.cat([time_grid(SCHEDULE, steps, spacing="log_snr"), torch.zeros(1)])


def test_in_painting_is_exact_with_the_denoiser_given_what_is_known(generator: torch.Generator) -> None:
    first = torch.full((20_000, 1), 1.5)
    samples = sampled(conditional, first, generator)
    assert torch.equal(samples[:, :1], first)
    torch.testing.assert_close(samples.mean(0), 1.5 * COV[0], atol=0.03, rtol=0)
    torch.testing.assert_close(samples[:, 1:].mT.cov(), COV[1:, 1:] - COV[1:, :1] @ COV[:1, 1:], atol=0.05, rtol=0)


def test_in_painting_with_an_unconditional_denoiser_understates_what_is_known() -> None:
    """All is linear, so the mean over the noise is the sample of noise 0. Its neighbours get 0.30, 0.15, 0.08 of s_0, where
    0.8, 0.64, 0.51 are right: replacement is not conditioning.
    """
    (mean,) = dpm_solver_pp_2m(Inpaint(unconditional, MASK), SCHEDULE, torch.zeros(1, H, 1), times(200), torch.ones(1, 1))[
        ..., 0
    ]
    torch.testing.assert_close(mean[:4], torch.tensor([1.0, 0.295, 0.145, 0.083]), atol=2e-3, rtol=0)
    assert (mean[1:] < 0.4 * COV[0, 1:]).all()


def test_in_painting_is_exact_where_the_parts_are_independent(generator: torch.Generator) -> None:
    alone = GaussianMixture(torch.zeros(1), torch.tensor([[0.0, 2.0]]), torch.diag(torch.tensor([1.0, 0.25]))[None])
    painted = Inpaint(lambda x, t, c: alone.denoise(SCHEDULE, x, t), torch.tensor([True, False]), torch.tensor([-3.0]))
    samples = dpm_solver_pp_2m(painted, SCHEDULE, torch.randn(20_000, 2, generator=generator), times(40))
    assert (samples[:, 0] == -3).all()
    assert samples[:, 1].mean().item() == pytest.approx(2, abs=0.02)
    assert samples[:, 1].std().item() == pytest.approx(0.5, abs=0.02)


def test_what_is_known_holds_whatever_guidance_does(generator: torch.Generator) -> None:
    energy = lambda x, t, c: 5 * x.sum((1, 2))  # noqa: E731
    guided = guide(unconditional, energy, Rescaled(3.0), SCHEDULE)
    first = torch.randn(10, 1, generator=generator)
    assert torch.equal(sampled(guided, first, torch.Generator().manual_seed(1))[:, :1], first)
    plain = sampled(unconditional, first, torch.Generator().manual_seed(1))
    assert (sampled(guided, first, torch.Generator().manual_seed(1)) - plain)[:, 1:].mean() < -0.1


def test_known_values_come_from_where_they_are_said_to() -> None:
    mask, x, t = torch.tensor([[True, False], [False, True]]), torch.zeros(2, 2, 2), torch.ones(2)
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    want = torch.tensor([[[1.0, 9.0], [9.0, 2.0]], [[3.0, 9.0], [9.0, 4.0]]])
    nines = lambda x, t, c: torch.full_like(x, 9)  # noqa: E731
    assert torch.equal(Inpaint(nines, mask)(x, t, values), want)
    assert torch.equal(Inpaint(nines, mask, values)(x, t), want)
    assert torch.equal(Inpaint(nines, mask, lambda c: c["plan"])(x, t, {"plan": values, "other": x}), want)
    assert torch.equal(Inpaint(nines, mask, values[1])(x, t)[0], want[1])
    with pytest.raises(ValueError, match="marks 2 entries as known, and there are 1"):
        Inpaint(nines, mask)(x, t, values[:, :1])
    with pytest.raises(ValueError, match="give 'known'"):
        Inpaint(nines, mask)(x, t)


NETWORKS = {"unet": TemporalUNet, "energy": partial(TemporalEnergy, 7)}


def awake(network: torch.nn.Module, generator: torch.Generator) -> torch.nn.Module:
    """With no weight at zero."""
    for p in network.parameters():
        torch.nn.init.normal_(p, 0, 0.3, generator=generator)
    return network


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())
@pytest.mark.parametrize("levels", [1, 3])
def test_given_entries_are_seen_in_the_context_and_not_in_the_event(
    make: Callable[..., torch.nn.Module], levels: int, generator: torch.Generator
) -> None:
    given = torch.zeros(7, 3, dtype=torch.bool)
    given[0, :2], given[4, 2] = True, True
    network = awake(make(3, width=4, levels=levels, given=given), generator)
    x, t, c = torch.randn(2, 7, 3, generator=generator), torch.rand(2, generator=generator), torch.randn(2, 3)
    out = network(x, t, c)
    assert out.shape == ((2, 7, 3) if make is TemporalUNet else (2,))
    assert torch.equal(network(torch.where(given, 5.0, x), t, c), out)
    for i in range(3):  # of the context
        assert not torch.equal(network(x, t, c + torch.eye(3)[i]), out)
    _, grad = value_and_grad(lambda x: network(x, t, c).flatten(1).sum(1) if out.ndim > 1 else network(x, t, c), x)
    assert torch.equal(grad != 0, (~given).expand(2, 7, 3))


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())
def test_a_context_can_be_embedded_with_the_time(make: Callable[..., torch.nn.Module], generator: torch.Generator) -> None:
    network = awake(make(3, 2, width=4, levels=2), generator)
    x, t, c = torch.randn(2, 7, 3, generator=generator), torch.rand(2, generator=generator), torch.randn(2, 2)
    out = network(x, t, c)
    assert not torch.equal(network(x, t, c + 1), out)
    assert not torch.equal(network(x, t / 2, c), out)


def test_steps_are_as_many_as_one_likes_and_a_kernel_has_a_middle() -> None:
    network = TemporalUNet(3, width=4, levels=3)
    assert [network(torch.zeros(2, h, 3), torch.ones(2)).shape[1] for h in (1, 5, 8)] == [1, 5, 8]
    assert not network(torch.randn(2, 5, 3), torch.ones(2)).any()  # at first it predicts no noise
    with pytest.raises(ValueError, match="kernel of 4"):
        TemporalUNet(3, kernel=4)


def windows(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = CHAIN.sample(n, generator)
    return x[..., None], x[:, :1]


def learned(learner: DenoiserLearner | EnergyLearner, steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        learner.update(generator)


@pytest.mark.slow
def test_a_trained_unet_samples_what_follows_from_the_first_state(generator: torch.Generator) -> None:
    network = TemporalUNet(1, width=16, levels=2, kernel=3, time=16, given=MASK)
    fit = Fit(network, lr=5e-3, steps=300, decay=True, ema=0.98)
    learned(DenoiserLearner(fit, SCHEDULE, windows, batch=64, prediction="v_prediction"), 300)
    denoiser = NetworkDenoiser(fit.model, SCHEDULE, "v_prediction")
    first = torch.tensor([-1.5, 1.5]).repeat_interleave(400)[:, None]
    with torch.no_grad():
        samples = sampled(denoiser, first, generator, steps=10).reshape(2, 400, H)
    grad = (samples[1] - samples[0]).mean(0) / 3
    torch.testing.assert_close(grad, COV[0], atol=0.12, rtol=0)
    torch.testing.assert_close(samples.var(1).mean(0), 1 - COV[0] ** 2, atol=0.2, rtol=0)


def test_a_trained_energy_is_the_mean_of_the_energy_at_its_scale(generator: torch.Generator) -> None:
    """Of a sum over steps: E[sum x_0 | x_t, s_0] is the sum of the denoiser, times a hundred."""
    network = TemporalEnergy(H, 1, width=8, levels=2, kernel=3, time=16, given=MASK)
    objective = MSE(lambda x, c: 100 * x.sum((1, 2)))
    learner = EnergyLearner(Fit(network, lr=5e-3, steps=250, decay=True), SCHEDULE, windows, objective, batch=128)
    learned(learner, 250)
    assert float(network.scale) == pytest.approx(100 * COV.sum().sqrt().item(), rel=0.3)
    x0, c = windows(1000, generator)
    t = torch.full((1000,), 0.4)
    x = SCHEDULE.alpha(t)[:, None, None] * x0 + SCHEDULE.sigma(t)[:, None, None] * torch.randn(x0.shape, generator=generator)
    want = 100 * (conditional(x, t, c).sum((1, 2)) - 7 + c[:, 0])
    error = (network(x, t, c) - want).detach().square().mean().sqrt()
    assert error < 0.3 * want.std()
