"""Samplers: plain functions that walk x from noise to data and ask only for a denoiser."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from egd.types import Context, Denoiser, Schedule


def check_times(times: Tensor) -> None:
    """Raise ValueError unless ``times`` (N + 1,) decreases from noise to data."""
    if times.ndim != 1 or len(times) < 2 or not bool((times.diff() < 0).all()):
        raise ValueError(f"times must decrease, noise first; got {times.tolist()} (flip them?)")


@torch.no_grad()
def dpm_solver_pp_2m(denoiser: Denoiser, schedule: Schedule, x: Tensor, times: Tensor, c: Context = None) -> Tensor:
    """DPM-Solver++(2M), arXiv:2211.01095 Algorithm 2: one denoiser call a step, deterministic given x.

    x (B, ...) is noise at times[0]; ``times`` (N + 1,) decreases. A last time of 0 ends on the denoised x_0 (a first-
    order step). Returns (B, ...).
    """
    check_times(times)
    times = times.to(x.device)
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    lam = (alpha / sigma).log()
    previous, h_previous = None, None
    for i, (t, _) in enumerate(pairwise(times)):
        x0 = denoiser(x, t.expand(len(x)), c)
        h = lam[i + 1] - lam[i]
        target = x0
        if previous is not None and h_previous is not None and sigma[i + 1] > 0:
            r = h_previous / h
            target = x0 + (x0 - previous) / (2 * r)
        shrink = sigma[i + 1] / sigma[i]
        x = shrink * x + (alpha[i + 1] - alpha[i] * shrink) * target
        previous, h_previous = x0, h
    return x


@torch.no_grad()
def ddim(denoiser: Denoiser, schedule: Schedule, x: Tensor, times: Tensor, c: Context = None) -> Tensor:
    """DDIM, arXiv:2010.02502 Eq. 12 with its sigma_t = 0; arguments as ``dpm_solver_pp_2m``."""
    check_times(times)
    for t, s in pairwise(times.to(x.device)):
        x0 = denoiser(x, t.expand(len(x)), c)
        eps = (x - schedule.alpha(t) * x0) / schedule.sigma(t)
        x = schedule.alpha(s) * x0 + schedule.sigma(s) * eps
    return x


SAMPLERS = {"dpm_solver_pp_2m": dpm_solver_pp_2m, "ddim": ddim}
