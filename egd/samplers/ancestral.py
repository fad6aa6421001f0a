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
    """Sample by DDPM's ancestral steps x_s ~ q(x_s | x_t, x_0 = D(x_t, t)), arXiv:2006.11239 Eq. 6 and 7.

    Any alpha and sigma will do. The steps are computed as DDIM with eta = 1, which is the same (arXiv:2010.02502 section 4.1).
    The distribution of samples tends to q_0 as the steps get finer; with few steps a deterministic sampler is better.
    Arguments, result and errors are as in ``ddim``.
    """
    sampler = differentiable(partial(ddim, eta=1.0))  # ``watched`` above decides whether a graph is kept
    return sampler(denoiser, schedule, x, times, c, generator=generator)
