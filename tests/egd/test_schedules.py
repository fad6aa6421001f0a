from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from egd.config.components import Registry, Spec, build
from egd.errors import UserError
from egd.schedules import EDM, VE, Diffusers, FlowMatching, VPCosine, VPLinear, from_diffusers, log_snr, time_grid
from egd.types import Schedule

SPACINGS = pytest.mark.parametrize("spacing", ["time", "log_snr", "karras"])
ZERO_SNR = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
VP = {
    "linear": VPLinear(),
    "cosine": VPCosine(),
    "ddpm": Diffusers("DDPMScheduler"),
    "ddpm-cosine": Diffusers("DDPMScheduler", {"beta_schedule": "squaredcos_cap_v2"}),
    "zero-snr": Diffusers("DDIMScheduler", ZERO_SNR),
    "zero-snr-raised": Diffusers("EulerDiscreteScheduler", ZERO_SNR),
}
FLOWS = {"flow": FlowMatching(), "flow-shift": FlowMatching(3.0), "sd3": Diffusers("FlowMatchEulerDiscreteScheduler")}
LOUD = {"ve": VE(), "edm": EDM(), "edm-euler": Diffusers("EDMEulerScheduler")}
SCHEDULES = {**VP, **FLOWS, **LOUD}
EVERY = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


@pytest.mark.parametrize("schedule", VP.values(), ids=VP)
def test_a_vp_schedule_preserves_variance(schedule: Schedule) -> None:
    t = torch.linspace(0, 1, 3001)
    torch.testing.assert_close(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones(3001), rtol=0, atol=1e-14)


@pytest.mark.parametrize("schedule", FLOWS.values(), ids=FLOWS)
def test_a_flow_is_a_straight_line(schedule: Schedule) -> None:
    t = torch.linspace(0, 1, 101)
    torch.testing.assert_close(schedule.alpha(t) + schedule.sigma(t), torch.ones(101), rtol=0, atol=1e-14)
    assert schedule.alpha(torch.ones(1)) == 0


@EVERY
def test_data_is_at_zero(schedule: Schedule) -> None:
    zero = torch.zeros(1)
    assert schedule.alpha(zero) == 1
    assert schedule.sigma(zero) == 0


@EVERY
def test_log_snr_decreases_with_time(schedule: Schedule) -> None:
    assert (log_snr(schedule, torch.linspace(1e-4, 0.9999, 5000)).diff() < 0).all()
    ends = log_snr(schedule, torch.tensor([0.0, 1.0]))
    assert not ends.isnan().any() and ends[0] == math.inf


@EVERY
def test_time_inverts_log_snr(schedule: Schedule) -> None:
    t = torch.linspace(1e-4, 0.9999, 5000)
    torch.testing.assert_close(schedule.time(log_snr(schedule, t)), t, rtol=1e-9, atol=0)


@EVERY
def test_a_schedule_keeps_shape_and_dtype(schedule: Schedule) -> None:
    for t in (torch.tensor(0.5), torch.rand(3, dtype=torch.float32)):
        for value in (schedule.alpha(t), schedule.sigma(t), schedule.time(t)):
            assert (value.shape, value.dtype) == (t.shape, t.dtype)
        torch.testing.assert_close(schedule.alpha(t).double(), schedule.alpha(t.double()), rtol=1e-4, atol=1e-6)


def test_ve_is_geometric_in_time() -> None:
    t = torch.linspace(0.01, 1, 100)
    steps = VE(0.1, 20).sigma(t).log().diff()
    torch.testing.assert_close(steps, steps.mean().expand(99))
    torch.testing.assert_close(VE(0.1, 20).sigma(torch.tensor([1e-12, 1.0])), torch.tensor([0.1, 20.0]))


def test_uniform_times_are_karras_noise_levels() -> None:
    scheduler = EDMEulerScheduler()
    scheduler.set_timesteps(12)
    t = torch.linspace(1, 0, 12).clamp(min=1e-12)  # at exactly 0 sigma is 0
    torch.testing.assert_close(EDM().sigma(t), scheduler.sigmas[:-1].double(), rtol=1e-5, atol=0)


def test_karras_spacing_is_uniform_in_the_root_of_sigma_over_alpha() -> None:
    schedule = VPLinear()
    roots = torch.exp(-log_snr(schedule, time_grid(schedule, 10, start=0.99, spacing="karras")) / 7)
    torch.testing.assert_close(roots.diff(), roots.diff().mean().expand(10), rtol=1e-9, atol=0)
    torch.testing.assert_close(time_grid(EDM(), 10, spacing="karras"), time_grid(EDM(), 10))


@pytest.mark.parametrize("schedule", LOUD.values(), ids=LOUD)
def test_the_input_of_a_network_has_unit_scale(schedule: Schedule, generator: torch.Generator) -> None:
    t = torch.tensor([1e-3, 0.3, 1.0])[:, None]
    x = torch.randn(3, 100_000, generator=generator) + schedule.sigma(t) * torch.randn(3, 100_000, generator=generator)
    torch.testing.assert_close((schedule.input_scale(t) * x).std(1), torch.ones(3), rtol=0.01, atol=0)


@pytest.mark.parametrize("schedule", [*VP.values(), *FLOWS.values()], ids=[*VP, *FLOWS])
def test_a_schedule_of_unit_scale_scales_no_input(schedule: Schedule) -> None:
    assert not hasattr(schedule, "input_scale")


@pytest.mark.parametrize("beta", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
@pytest.mark.parametrize("zero", [False, True])
def test_a_discrete_scheduler_is_met_at_its_steps(beta: str, zero: bool) -> None:
    scheduler = DDPMScheduler(beta_schedule=beta, rescale_betas_zero_snr=zero, num_train_timesteps=500)
    schedule, n = from_diffusers(scheduler), torch.arange(500)
    t = (n + 1) / 500
    torch.testing.assert_close(schedule.alpha(t) ** 2, scheduler.alphas_cumprod.double(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(schedule.timestep(t), n.double())
    between = log_snr(schedule, t[100] + torch.tensor([0.0, 0.5, 1.0]) / 500)
    torch.testing.assert_close(between[1], between[[0, 2]].mean())


def test_sigma_falls_to_zero_in_proportion_below_the_first_step() -> None:
    schedule = Diffusers("DDPMScheduler")
    t = torch.tensor([0.25, 0.5, 1.0]) / 1000
    ratio = schedule.sigma(t) / schedule.alpha(t)
    torch.testing.assert_close(ratio / ratio[2], torch.tensor([0.25, 0.5, 1.0]))
    assert (schedule.timestep(t) == 0).all()


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flow_scheduler_is_met_at_its_steps(shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    schedule, t = from_diffusers(scheduler), torch.arange(1000, 0, -1) / 1000
    torch.testing.assert_close(schedule.sigma(t), scheduler.sigmas.double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(schedule.timestep(t), scheduler.timesteps.double(), rtol=1e-6, atol=0)
    assert schedule.prediction == "flow"


@pytest.mark.parametrize("spacing", ["karras", "exponential"])
def test_an_edm_scheduler_is_met_at_its_steps(spacing: str) -> None:
    scheduler = EDMEulerScheduler(sigma_schedule=spacing, sigma_data=1.0, prediction_type="v_prediction")
    scheduler.set_timesteps(50)
    schedule, t = from_diffusers(scheduler), torch.linspace(1, 0, 50).clamp(min=1e-12)
    torch.testing.assert_close(schedule.sigma(t), scheduler.sigmas[:-1].double(), rtol=1e-5, atol=0)
    torch.testing.assert_close(schedule.timestep(t), scheduler.timesteps.double(), rtol=1e-5, atol=1e-5)
    assert schedule.prediction == "v_prediction"


@pytest.mark.parametrize(
    ("scheduler", "family", "prediction"),
    [
        (DDIMScheduler(prediction_type="sample"), "vp", "sample"),
        (DDIMScheduler(**ZERO_SNR), "vp", "v_prediction"),
        (DPMSolverMultistepScheduler(), "vp", "epsilon"),
        (DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=2.0), "flow", "flow"),
        (EulerDiscreteScheduler(timestep_type="continuous", sigma_min=0.002, sigma_max=700.0), "edm", "epsilon"),
    ],
    ids=["ddim", "zero-snr", "dpm", "dpm-flow", "euler-continuous"],
)
def test_a_scheduler_is_known_by_its_configuration(scheduler: object, family: str, prediction: str) -> None:
    schedule = Diffusers(scheduler)
    assert (schedule.family, schedule.prediction) == (family, prediction)


def test_a_scheduler_is_named_in_a_recipe() -> None:
    settings = {"scheduler": "DDPMScheduler", "config": {"beta_schedule": "squaredcos_cap_v2"}}
    made = build(Registry("schedule", "egd.schedules"), Spec("diffusers", settings), {}, "schedule")
    t = torch.linspace(0, 1, 100)
    torch.testing.assert_close(made.alpha(t), VP["ddpm-cosine"].alpha(t))


@pytest.mark.parametrize(
    ("scheduler", "config", "words"),
    [
        ("DDPMSheduler", {}, "did you mean 'DDPMScheduler'"),
        ("DDPMScheduler", {"beta_shedule": "linear"}, "unexpected keyword argument 'beta_shedule'"),
        ("DDPMScheduler", {"beta_schedule": "none such"}, "none such"),
        ("IPNDMScheduler", {}, "neither alphas_cumprod, nor"),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "data at t = 1"),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "sigma_min and sigma_max"),
        ("EDMEulerScheduler", {"sigma_min": 5.0, "sigma_max": 1.0}, "need 0 < sigma_min < sigma_max"),
        ("FlowMatchEulerDiscreteScheduler", {"shift": -1.0}, "need shift > 0"),
        ("DDPMScheduler", {"trained_betas": [0.1] * 50}, "50 betas and num_train_timesteps = 1000"),
        ("DDPMScheduler", {"trained_betas": [0.1, -0.1, 0.1], "num_train_timesteps": 3}, "must fall from below 1"),
        ("DDPMScheduler", {"beta_start": 0.0, "beta_end": 0.0}, "must fall from below 1"),
    ],
)
def test_a_scheduler_that_will_not_do_is_refused(scheduler: str, config: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Diffusers(scheduler, config)


def test_a_prediction_that_is_none_of_ours_is_refused() -> None:
    with pytest.raises(UserError, match="precondition_outputs"):
        _ = from_diffusers(EDMEulerScheduler()).prediction
    scheduler = SimpleNamespace(config=DDPMScheduler().config.__class__(prediction_type="eps", num_train_timesteps=1000))
    scheduler.alphas_cumprod = DDPMScheduler().alphas_cumprod
    with pytest.raises(UserError, match="predicts 'eps'; did you mean 'epsilon'"):
        _ = from_diffusers(scheduler).prediction


@pytest.mark.parametrize("make", [lambda: VE(1, 1), lambda: VE(0), lambda: EDM(rho=0), lambda: FlowMatching(0)])
def test_impossible_settings_are_refused(make: object) -> None:
    with pytest.raises(ValueError, match="need "):
        make()


def test_a_grid_starts_slightly_below_noise_where_alpha_ends_at_zero() -> None:
    for schedule in (FlowMatching(), FlowMatching(3), VP["zero-snr"], VPCosine(s=1.0)):
        times = time_grid(schedule, 5)
        assert 0.9 < times[0] < 1
        ratio = schedule.alpha(times[0]) / schedule.sigma(times[0])
        assert float(ratio) == pytest.approx(5e-3, rel=1e-4)
        assert time_grid(schedule, 5, start=1.0)[0] == 1  # if told so
    assert time_grid(WithoutInverse(FlowMatching()), 5)[0] == 0.995
    assert all(time_grid(schedule, 5)[0] == 1 for schedule in (VPLinear(), VPCosine(), VE(), EDM()))


def test_time_inverts_log_snr_for_other_betas() -> None:
    schedule, t = VPLinear(beta_min=0.5, beta_max=7.0), torch.linspace(1e-4, 1, 1000)
    torch.testing.assert_close(schedule.time(log_snr(schedule, t)), t, rtol=1e-9, atol=0)


def test_sigma_is_accurate_near_data_in_float32(schedule: Schedule) -> None:
    t = torch.logspace(-5, 0, 50)
    torch.testing.assert_close(schedule.sigma(t.float()).double(), schedule.sigma(t), rtol=1e-6, atol=0)


def log_alpha2_error(steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """log(alphas_cumprod) of diffusers less log alpha^2 at t = (n + 1)/N, and its bound.

    With b_i = (beta_min + i/(N-1) D)/N, D = beta_max - beta_min: sum_{i<=n} b_i = int_0^t beta - D t (1-t)/(2 (N-1)), and
    |log(1 - b) + b| <= b^2 / (2 (1 - b)). The rest is the rounding of diffusers' float32: half an ulp of 1 for each
    factor and for each product.
    """
    scheduler = DDPMScheduler(beta_schedule="linear", beta_start=0.1 / steps, beta_end=20 / steps, num_train_timesteps=steps)
    t = torch.arange(1, steps + 1) / steps
    beta = scheduler.betas.double()
    riemann = 19.9 * t * (1 - t) / (2 * (steps - 1))
    rounding = torch.arange(1, steps + 1) * 2**-23
    bound = riemann + (beta**2 / (2 * (1 - beta))).cumsum(0) + rounding
    return scheduler.alphas_cumprod.double().log() - 2 * VPLinear().log_alpha(t), bound


def test_vp_linear_is_the_limit_of_diffusers_linear_betas() -> None:
    error, bound = log_alpha2_error(1000)
    assert (error.abs() <= bound).all()
    assert bound.max() < 0.07  # so alpha^2 itself agrees to 7 % of what is left of it at t = 1, 2 % at t = 0.66
    later, _ = log_alpha2_error(4000)
    assert float(error[-1] / later[-1]) == pytest.approx(4, rel=0.02)  # first order in 1/N


@SPACINGS
@EVERY
def test_a_grid_of_n_steps_has_n_plus_one_decreasing_times(schedule: Schedule, spacing: str) -> None:
    times = time_grid(schedule, 15, start=0.99, end=0.01, spacing=spacing)
    assert times.shape == (16,)
    assert (times.diff() < 0).all()
    assert (times[0], times[-1]) == (0.99, 0.01)


def test_time_spacing_is_uniform_in_time(schedule: Schedule) -> None:
    steps = time_grid(schedule, 10).diff()
    torch.testing.assert_close(steps, steps.mean().expand(10))


def test_log_snr_spacing_is_uniform_in_log_snr(schedule: Schedule) -> None:
    steps = log_snr(schedule, time_grid(schedule, 10, start=0.99, spacing="log_snr")).diff()
    torch.testing.assert_close(steps, steps.mean().expand(10), rtol=1e-9, atol=0)


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.5), (0.1, 0.2), (1.1, 0.0), (1.0, -0.1)])
def test_a_grid_that_does_not_fall_within_unit_time_is_refused(start: float, end: float) -> None:
    with pytest.raises(ValueError, match=f"start = {start}, end = {end}"):
        time_grid(VPLinear(), 5, start=start, end=end)


class WithoutInverse:
    def __init__(self, schedule: Schedule) -> None:
        self.alpha, self.sigma = schedule.alpha, schedule.sigma


@pytest.mark.parametrize("spacing", ["log_snr", "karras"])
@pytest.mark.parametrize(
    ("schedule", "end"),
    [(WithoutInverse(VPLinear()), 0.1), (VPLinear(), 0.0), (VPCosine(s=1.0), 0.1), (FlowMatching(), 0.1)],
    ids=["no-time", "ends-at-0", "alpha-0", "flow"],
)
def test_a_spacing_is_refused_where_it_has_no_end(schedule: Schedule, end: float, spacing: str) -> None:
    with pytest.raises(ValueError, match="use spacing='time'"):
        time_grid(schedule, 5, start=1.0, end=end, spacing=spacing)
