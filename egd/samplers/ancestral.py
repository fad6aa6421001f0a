"""DDPM's ancestral sampler."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from egd.samplers.base import differentiable
from egd.samplers.ddim import ddim
from egd.samplers.watching import watched
from egd.types import Context, Denoiser, Schedule

__all__ = ["ancestral"]


@watched
def ancestral(
    denoiser: Denoiser,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    c: Context = None,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draws x_s from q(x_s | x_t, x_0 = D(x_t, t)), DDPM (arXiv:2006.11239) Eq. 6 and 7, for any alpha and sigma.

    The same as DDIM with eta = 1 (arXiv:2010.02502 section 4.1), and so computed. Its samples tend to q_0 as the steps get
    finer; few steps suit it less than a deterministic sampler. Arguments, result and errors as ``ddim``.
    """
    walk = differentiable(partial(ddim, eta=1.0))  # whether there is a graph is decided above
    return walk(denoiser, schedule, x, times, c, generator=generator)
