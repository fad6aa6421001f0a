"""Four predictions, one denoiser."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler, EulerDiscreteScheduler
from torch import Tensor

from egd.denoisers import (
    NetworkDenoiser,
    Prediction,
    at_unit_scale,
    convert,
    diffuse,
    prediction_loss,
    prediction_target,
    random_times,
    score,
)
from egd.mixtures import GaussianMixture
from egd.schedules import EDM, VE, Diffusers, FlowMatching, VPCosine, VPLinear
from egd.types import Schedule

KINDS = get_args(Prediction)
SCHEDULES = {"linear": VPLinear(), "cosine": VPCosine(), "ve": VE(), "edm": EDM(), "flow": FlowMatching()}
EVERY = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
KIND = pytest.mark.parametrize("kind", KINDS)


def noised(schedule: Schedule, generator: torch.Generator, n: int = 64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_0, noise, t and x_t of images."""
    x0, noise = torch.randn(2, n, 3, 4, 4, generator=generator)
    t = 0.01 + 0.98 * torch.rand(n, generator=generator)
    return x0, noise, t, diffuse(schedule, x0, t, noise)


@EVERY
@KIND
def test_the_true_target_makes_the_denoiser_exact(schedule: Schedule, kind: Prediction, generator: torch.Generator) -> None:
    x0, noise, t, x = noised(schedule, generator)
    target = prediction_target(schedule, x0, t, noise, kind)
    denoiser = NetworkDenoiser(lambda x, t, c: target, schedule, kind)
    torch.testing.assert_close(denoiser(x, t), x0, rtol=1e-9, atol=1e-9)
    assert prediction_loss(lambda x, t, c: target, schedule, x0, t, noise, prediction=kind) == 0


@EVERY
@pytest.mark.parametrize(("source", "to"), itertools.product(KINDS, KINDS))
def test_predictions_convert_exactly(
    schedule: Schedule, source: Prediction, to: Prediction, generator: torch.Generator
) -> None:
    x0, noise, t, x = noised(schedule, generator)
    got = convert(prediction_target(schedule, x0, t, noise, source), x, t, schedule, source, to)
    torch.testing.assert_close(got, prediction_target(schedule, x0, t, noise, to), rtol=1e-9, atol=1e-9)


@EVERY
def test_the_targets_are_what_they_are_called(schedule: Schedule, generator: torch.Generator) -> None:
    x0, noise, t, _ = noised(schedule, generator)
    alpha, sigma = (f(t)[:, None, None, None] for f in (schedule.alpha, schedule.sigma))
    assert torch.equal(prediction_target(schedule, x0, t, noise), noise)
    assert torch.equal(prediction_target(schedule, x0, t, noise, "sample"), x0)
    torch.testing.assert_close(prediction_target(schedule, x0, t, noise, "flow"), noise - x0)
    v = (alpha * noise - sigma * x0) / (alpha**2 + sigma**2).sqrt()
    torch.testing.assert_close(prediction_target(schedule, x0, t, noise, "v_prediction"), v)


def test_v_is_the_velocity_of_a_vp_schedule() -> None:
    x0, noise, t = torch.randn(5, 2), torch.randn(5, 2), torch.linspace(0.1, 0.9, 5)
    schedule = VPCosine(s=1.0)  # alpha = cos(angle), sigma = sin(angle): v is the derivative by the angle
    _, grad = torch.func.jvp(lambda t: diffuse(schedule, x0, t, noise), (t,), (torch.full((5,), 2 / torch.pi),))
    torch.testing.assert_close(prediction_target(schedule, x0, t, noise, "v_prediction"), grad)


def test_v_prediction_is_that_of_diffusers(generator: torch.Generator) -> None:
    scheduler = DDPMScheduler(prediction_type="v_prediction")
    schedule = Diffusers(scheduler)
    x0, v = torch.randn(2, 7, 5, generator=generator)
    n = torch.tensor([0, 1, 10, 300, 700, 998, 999])
    t = (n + 1) / 1000
    want = scheduler.get_velocity(x0, v, n)
    torch.testing.assert_close(prediction_target(schedule, x0, t, v, "v_prediction"), want, rtol=1e-5, atol=1e-5)
    euler = EulerDiscreteScheduler(prediction_type="v_prediction", timestep_type="continuous", sigma_min=0.01, sigma_max=50.0)
    euler.set_timesteps(7)
    edm = EDMEulerScheduler(prediction_type="v_prediction", sigma_data=1.0)
    denoised = NetworkDenoiser(lambda x, t, c: v, VE(0.01, 50.0), "v_prediction")
    for i, sigma in enumerate(euler.sigmas[:-1]):
        t = VE(0.01, 50.0).time(-sigma.log().double()).expand(7)
        torch.testing.assert_close(denoised(x0, t), edm.precondition_outputs(x0, v, sigma.double()), rtol=1e-5, atol=1e-5)
        got = euler.step(v, euler.timesteps[i], x0).pred_original_sample
        torch.testing.assert_close(denoised(x0, t), got, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "schedule", [FlowMatching(), VPCosine(s=1.0), Diffusers("DDIMScheduler", {"rescale_betas_zero_snr": True})]
)
@KIND
def test_pure_noise_never_divides_by_zero(schedule: Schedule, kind: Prediction, generator: torch.Generator) -> None:
    x, output = torch.randn(2, 4, 3, generator=generator)
    t = torch.ones(4)
    got = NetworkDenoiser(lambda x, t, c: output, schedule, kind)(x, t)
    assert got.isfinite().all()
    want = {"sample": output, "v_prediction": -output, "flow": x - output, "epsilon": x - output}
    if kind != "epsilon" or schedule.alpha(t)[0] == 0:  # cos(pi / 2) is not quite 0
        torch.testing.assert_close(got, want[kind])


def test_at_the_data_every_prediction_but_noise_and_sample_is_x(generator: torch.Generator) -> None:
    x, output = torch.randn(2, 4, 3, generator=generator)
    t = torch.zeros(4)
    for kind in ("epsilon", "v_prediction", "flow"):
        torch.testing.assert_close(NetworkDenoiser(lambda x, t, c: output, VPLinear(), kind)(x, t), x)
    assert torch.equal(NetworkDenoiser(lambda x, t, c: output, VPLinear(), "sample")(x, t), output)


@pytest.mark.parametrize("schedule", [VE(), EDM()])
def test_a_network_sees_its_input_at_unit_scale(schedule: Schedule, generator: torch.Generator) -> None:
    x0, noise, t, x = noised(schedule, generator)
    seen = []

    def network(x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        seen.append((x, t, c))
        return torch.zeros_like(x)

    c = torch.randn(64, 2)
    NetworkDenoiser(network, schedule)(x, t, c)
    prediction_loss(network, schedule, x0, t, noise, c)
    at_unit_scale(network, schedule)(x, t, c)
    for got, times, context in seen:
        torch.testing.assert_close(got, x / (1 + schedule.sigma(t) ** 2).sqrt()[:, None, None, None])
        assert torch.equal(times, t) and torch.equal(context, c)
    assert at_unit_scale(network, VPLinear()) is network


def test_the_loss_is_a_mean_of_squares_with_weights(schedule: Schedule, generator: torch.Generator) -> None:
    x0, noise, t, _ = noised(schedule, generator, 5)
    errors = noise.square().flatten(1).sum(1)
    zero = lambda x, t, c: torch.zeros_like(x)  # noqa: E731
    torch.testing.assert_close(prediction_loss(zero, schedule, x0, t, noise), errors.mean())
    weight = torch.rand(5, generator=generator)
    torch.testing.assert_close(prediction_loss(zero, schedule, x0, t, noise, weight=weight), (weight * errors).mean())


@EVERY
@KIND
def test_the_loss_is_least_at_the_exact_denoiser(
    schedule: Schedule, kind: Prediction, mixture: GaussianMixture, generator: torch.Generator
) -> None:
    n = 20_000
    x0, noise = mixture.sample(n, generator), torch.randn(n, 2, generator=generator)
    t = torch.full((n,), 0.4)

    def network(shift: float) -> Tensor:
        def predict(scaled: Tensor, t: Tensor, c: None) -> Tensor:
            x = scaled / (1 if not hasattr(schedule, "input_scale") else schedule.input_scale(t)[:, None])
            exact = convert(mixture.denoise(schedule, x, t), x, t, schedule, "sample", kind)
            return exact + shift

        return prediction_loss(predict, schedule, x0, t, noise, prediction=kind)

    spread = prediction_target(schedule, x0, t, noise, kind).std()
    losses = [float(network(float(shift * spread))) for shift in (-0.2, 0.0, 0.2)]
    assert losses[1] == min(losses)


def test_an_unknown_prediction_is_refused() -> None:
    with pytest.raises(ValueError, match="no prediction is called 'noise'; known: epsilon"):
        NetworkDenoiser(lambda x, t, c: x, VPLinear(), "noise")
    with pytest.raises(ValueError, match="did you mean 'v_prediction'"):
        convert(torch.zeros(1), torch.zeros(1), torch.ones(1), VPLinear(), "epsilon", "v_predictio")


@EVERY
def test_the_score_is_the_gradient_of_the_log_density(
    schedule: Schedule, mixture: GaussianMixture, generator: torch.Generator
) -> None:
    t = 0.05 + 0.9 * torch.rand(50, generator=generator)
    x = mixture.noised(schedule, t, generator).requires_grad_()
    (want,) = torch.autograd.grad(mixture.log_prob(x, schedule.alpha(t), schedule.sigma(t)).sum(), x)
    got = score(lambda x, t, c: mixture.denoise(schedule, x, t), schedule, x, t)
    torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-7)


def test_random_times_stay_above_the_lowest(generator: torch.Generator) -> None:
    t = random_times(10_000, 0.3, generator)
    assert 0.3 <= t.min() < 0.301 and 0.999 < t.max() <= 1
