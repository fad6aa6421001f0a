from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from egd.schedules import VPCosine, VPLinear, log_snr, time_grid
from egd.types import Schedule

BOTH = pytest.mark.parametrize("spacing", ["time", "log_snr"])


def test_a_schedule_preserves_variance(schedule: Schedule) -> None:
    t = torch.linspace(0, 1, 101)
    torch.testing.assert_close(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones(101), rtol=0, atol=1e-14)


def test_data_is_at_zero(schedule: Schedule) -> None:
    zero = torch.zeros(1)
    assert schedule.alpha(zero) == 1
    assert schedule.sigma(zero) == 0


def test_log_snr_decreases_with_time(schedule: Schedule) -> None:
    assert (log_snr(schedule, torch.linspace(1e-4, 0.9999, 1000)).diff() < 0).all()


def test_time_inverts_log_snr(schedule: Schedule) -> None:
    t = torch.linspace(1e-4, 0.9999, 1000)
    torch.testing.assert_close(schedule.time(log_snr(schedule, t)), t, rtol=1e-9, atol=0)


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


@BOTH
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
    alpha = VPLinear().alpha
    sigma = VPLinear().sigma


@pytest.mark.parametrize(
    ("schedule", "end"),
    [(WithoutInverse(), 0.1), (VPLinear(), 0.0), (VPCosine(s=1.0), 0.1)],
    ids=["no-time", "ends-at-0", "alpha-0"],
)
def test_log_snr_spacing_is_refused_where_it_has_no_end(schedule: Schedule, end: float) -> None:
    with pytest.raises(ValueError, match="use spacing='time'"):
        time_grid(schedule, 5, end=end, spacing="log_snr")
