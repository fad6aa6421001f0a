"""DDIM, with a chosen share of fresh noise."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from egd.bounds import Share
from egd.samplers.base import check_times
from egd.samplers.watching import watched
from egd.types import Context, Denoiser, Schedule

__all__ = ["ddim"]


@watched
def ddim(
    denoiser: Denoiser,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    c: Context = None,
    *,
    eta: Share = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sample by DDIM, arXiv:2010.02502 Eq. 12 and 16, for any alpha and sigma.

        x_s = alpha_s x_0 + sqrt(sigma_s^2 - v) eps + sqrt(v) z
        v   = eta^2 (sigma_s / sigma_t)^2 (sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2)

    eta = 0 is deterministic given x, eta = 1 is ``ancestral``. x (B, ...) is noise at times[0]; ``times`` (N + 1,) decreases;
    fresh noise comes from ``generator``. Returns (B, ...). Raises ValueError for times that do not decrease, and unless 0 <=
    eta <= 1.
    """
    check_times(times)
    if not 0 <= eta <= 1:
        raise ValueError(f"need 0 <= eta <= 1, got {eta}")
    for t, s in pairwise(times.to(x.device)):
        x0 = denoiser(x, t.expand(len(x)), c)
        alpha, sigma = schedule.alpha(s), schedule.sigma(s)
        eps = (x - schedule.alpha(t) * x0) / schedule.sigma(t)
        if eta == 0:
            x = alpha * x0 + sigma * eps
            continue
        kept = (schedule.alpha(t) * sigma / (alpha * schedule.sigma(t))) ** 2  # SNR_t / SNR_s
        fresh = eta**2 * (1 - kept)
        z = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        x = alpha * x0 + sigma * ((1 - fresh).sqrt() * eps + fresh.sqrt() * z)
    return x
