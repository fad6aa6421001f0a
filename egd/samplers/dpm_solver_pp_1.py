"""DPM-Solver++ of first order."""

from __future__ import annotations

import torch
from torch import Tensor

from egd.samplers.base import check_times, levels, shrink
from egd.samplers.watching import watched
from egd.types import Context, Denoiser, Schedule

__all__ = ["dpm_solver_pp_1"]


@watched
def dpm_solver_pp_1(
    denoiser: Denoiser,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    c: Context = None,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sample by DPM-Solver++ of first order (arXiv:2211.01095), which equals DDIM with eta = 0; deterministic given x.

    x (B, ...) is noise at times[0]; ``times`` (N + 1,) decreases; a step takes one denoiser call. Returns (B, ...). Raises
    ValueError for times that do not decrease.
    """
    check_times(times)
    times = times.to(x.device)
    alpha, sigma, _ = levels(schedule, times)
    for i, t in enumerate(times[:-1]):
        x = shrink(x, denoiser(x, t.expand(len(x)), c), alpha, sigma, i)
    return x
