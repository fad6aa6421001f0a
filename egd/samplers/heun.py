"""EDM's second-order sampler."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from egd.bounds import NotNegative
from egd.samplers.base import check_times
from egd.samplers.watching import watched
from egd.schedules.grid import inverse_log_snr
from egd.types import Context, Denoiser, Schedule

__all__ = ["heun"]


@watched
def heun(
    denoiser: Denoiser,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    c: Context = None,
    *,
    rescaled: bool = False,
    s_churn: NotNegative = 0.0,
    s_min: NotNegative = 0.0,
    s_max: NotNegative = math.inf,
    s_noise: NotNegative = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sample by Heun's method for dx = D dalpha + eps dsigma.

    A step takes two denoiser calls, and a step to sigma = 0 one. For alpha = 1 this is EDM (arXiv:2206.00364) Algorithm 2, for
    flow matching Heun on the velocity. ``rescaled`` takes EDM's steps in x/alpha over sigma/alpha for any alpha, as
    ``diffusers`` does for VP: less accurate there, and the first step is Euler's where alpha = 0. With ``s_churn`` > 0 each
    step starts with fresh noise from ``generator`` (EDM's S_churn, S_min, S_max and S_noise, in sigma/alpha), which needs the
    schedule's ``time`` and never goes beyond t = 1. x (B, ...) is noise at times[0]; ``times`` (N + 1,) decreases. Returns (B,
    ...). Raises ValueError for times that do not decrease, and for churn without ``time``.
    """
    check_times(times)
    gamma = min(s_churn / (len(times) - 1), math.sqrt(2) - 1)
    for now, s in pairwise(times.to(x.device)):
        t = now
        if gamma > 0 and schedule.alpha(t) > 0 and s_min <= schedule.sigma(t) / schedule.alpha(t) <= s_max:
            x, t = _churn(schedule, x, t, gamma, s_noise, generator)
        x0 = denoiser(x, t.expand(len(x)), c)
        eps = (x - schedule.alpha(t) * x0) / schedule.sigma(t)
        end = schedule.alpha(s) * x0 + schedule.sigma(s) * eps
        if schedule.sigma(s) > 0 and not (rescaled and schedule.alpha(t) == 0):
            x0_end = denoiser(end, s.expand(len(x)), c)
            eps_end = (end - schedule.alpha(s) * x0_end) / schedule.sigma(s)
            end = _step(schedule, x, t, s, (x0 + x0_end) / 2, (eps + eps_end) / 2, rescaled)
        x = end
    return x


def _step(schedule: Schedule, x: Tensor, t: Tensor, s: Tensor, x0: Tensor, eps: Tensor, rescaled: bool) -> Tensor:
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if rescaled:
        ratio = schedule.alpha(s) / alpha
        return ratio * x + (schedule.sigma(s) - ratio * sigma) * eps
    return x + (schedule.alpha(s) - alpha) * x0 + (schedule.sigma(s) - sigma) * eps


def _churn(
    schedule: Schedule, x: Tensor, t: Tensor, gamma: float, s_noise: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Raise sigma/alpha to (1 + gamma) times itself by fresh noise, and return x and t there."""
    inverse = inverse_log_snr(schedule)
    if inverse is None:
        raise ValueError(f"churn needs {type(schedule).__name__}.time(lam); use s_churn=0")
    before = schedule.sigma(t) / schedule.alpha(t)
    t_hat = inverse(-(before * (1 + gamma)).log()).clamp(max=1).maximum(t)
    alpha = schedule.alpha(t_hat)
    after = schedule.sigma(t_hat) / alpha
    noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    added = (after**2 - before**2).clamp(min=0).sqrt()
    return alpha * (x / schedule.alpha(t) + s_noise * added * noise), t_hat
