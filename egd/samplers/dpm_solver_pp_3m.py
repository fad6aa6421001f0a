"""DPM-Solver++ of third order, multistep."""

from __future__ import annotations

import torch
from torch import Tensor

from egd.bounds import Number
from egd.samplers.base import check_times, levels, shrink
from egd.samplers.watching import watched
from egd.types import Context, Denoiser, Schedule

__all__ = ["dpm_solver_pp_3m"]


@watched
def dpm_solver_pp_3m(
    denoiser: Denoiser,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    c: Context = None,
    *,
    curvature: Number = 0.5,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sample by DPM-Solver++(3M): arXiv:2211.01095 Eq. 8 with x_0 quadratic in lambda through the last three calls.

    ``curvature`` = 1 is that integral, of third order. The default 0.5 counts the second difference by half, as the authors'
    code and ``diffusers`` do: this is of second order, with smaller errors than 2M. A step takes one denoiser call, and samples
    are deterministic given x; the first two steps, and a step to sigma = 0, are of lower order. x (B, ...) is noise at
    times[0]; ``times`` (N + 1,) decreases. Returns (B, ...). Raises ValueError for times that do not decrease.
    """
    check_times(times)
    times = times.to(x.device)
    alpha, sigma, lam = levels(schedule, times)
    past: list[Tensor] = []
    for i, t in enumerate(times[:-1]):
        past = [denoiser(x, t.expand(len(x)), c), *past[:2]]
        x = shrink(x, past[0], alpha, sigma, i)
        if len(past) > 1 and sigma[i + 1] > 0:
            x = x + alpha[i + 1] * _correction(past, lam[max(0, i - 2) : i + 2].flip(0), curvature)
    return x


def _correction(past: list[Tensor], lam: Tensor, curvature: float) -> Tensor:
    """Return what slope and curvature of x_0 in lambda add to a step.

    It is int_0^h e^(s - h) [D1 s/h + D2 (s/h) (s/h + r0)] ds for differences D1, D2 in units of the step h. ``past`` holds the
    values of x_0, newest first; ``lam`` holds the log-SNR of the step's end, then those of ``past``.
    """
    h = lam[0] - lam[1]
    r0 = (lam[1] - lam[2]) / h
    grad = (past[0] - past[1]) / r0
    first = 1 + torch.expm1(-h) / h
    if len(past) < 3:
        return 0.5 * -torch.expm1(-h) * grad  # the step of 2M
    r1 = (lam[2] - lam[3]) / h
    bend = (grad - (past[1] - past[2]) / r1) / (r0 + r1)
    second = 1 - 2 * first / h
    return first * grad + (curvature * second + r0 * first) * bend
