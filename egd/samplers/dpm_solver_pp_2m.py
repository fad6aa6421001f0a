"""DPM-Solver++ of second order, multistep."""

from __future__ import annotations

import torch
from torch import Tensor

from egd.samplers.base import check_times, levels, shrink
from egd.samplers.watching import watched
from egd.types import Context, Denoiser, Schedule

__all__ = ["dpm_solver_pp_2m"]


@watched
def dpm_solver_pp_2m(
    denoiser: Denoiser,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    c: Context = None,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sample by DPM-Solver++(2M), arXiv:2211.01095 Algorithm 2; deterministic given x.

    A step takes one denoiser call. x (B, ...) is noise at times[0]; ``times`` (N + 1,) decreases. A last time of 0 ends on the
    denoised x_0 (a first-order step). Returns (B, ...). Raises ValueError for times that do not decrease.
    """
    check_times(times)
    times = times.to(x.device)
    alpha, sigma, lam = levels(schedule, times)
    previous, h_previous = None, None
    for i, t in enumerate(times[:-1]):
        x0 = denoiser(x, t.expand(len(x)), c)
        h = lam[i + 1] - lam[i]
        target = x0
        if previous is not None and h_previous is not None and sigma[i + 1] > 0:
            r = h_previous / h
            target = x0 + (x0 - previous) / (2 * r)
        x = shrink(x, target, alpha, sigma, i)
        previous, h_previous = x0, h
    return x
