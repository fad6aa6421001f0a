"""Euler steps of the probability-flow ODE."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from egd.samplers.base import check_times
from egd.samplers.watching import watched
from egd.types import Context, Denoiser, Schedule

__all__ = ["euler"]


@watched
def euler(
    denoiser: Denoiser,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    c: Context = None,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sample by Euler steps of the probability-flow ODE dx = D dalpha + eps dsigma, eps = (x - alpha D) / sigma.

    For flow matching a step is x_s = x_t + (s - t) u with the velocity u = eps - x_0 (arXiv:2209.03003); for alpha = 1 it is
    Euler in sigma (EDM); in exact arithmetic it is DDIM with eta = 0 for every schedule. alpha_t may be 0. x (B, ...) is noise
    at times[0]; ``times`` (N + 1,) decreases; a step takes one denoiser call. Returns (B, ...). Raises ValueError for times
    that do not decrease.
    """
    check_times(times)
    for t, s in pairwise(times.to(x.device)):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        x0 = denoiser(x, t.expand(len(x)), c)
        eps = (x - alpha * x0) / sigma
        x = x + (schedule.alpha(s) - alpha) * x0 + (schedule.sigma(s) - sigma) * eps
    return x
