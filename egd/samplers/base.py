"""Parts that samplers share: the check of their times, their initial noise, and the first-order step."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from egd.types import Sampler, Schedule


def check_times(times: Tensor) -> None:
    """Raise ValueError unless ``times`` (N + 1,) decreases from noise to data."""
    if times.ndim != 1 or len(times) < 2 or not bool((times.diff() < 0).all()):
        raise ValueError(f"times must decrease, noise first; got {times.tolist()} (flip them?)")


def differentiable(sampler: Sampler) -> Sampler:
    """Return a sampler that keeps its graph: samples are differentiable by the denoiser's inputs and by the initial noise.

    The library's samplers keep no graph by themselves, since a graph holds the activations of every step.
    """
    if isinstance(sampler, partial):  # a sampler with settings
        return partial(differentiable(sampler.func), *sampler.args, **sampler.keywords)
    bare: Sampler = inspect.unwrap(sampler)
    return bare


def initial_noise(
    schedule: Schedule,
    shape: Sequence[int],
    t: Tensor | float,
    generator: torch.Generator,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Draw sigma_t times standard normal noise, from which a sampler starts at t = times[0].

    It is on the generator's device by default. N(0, sigma_t^2) is q_t up to alpha_t x_0, so start where alpha_t / sigma_t is
    small.
    """
    noise = torch.randn(tuple(shape), generator=generator, device=device or generator.device, dtype=dtype)
    return schedule.sigma(torch.as_tensor(t, device=noise.device, dtype=noise.dtype)) * noise


def levels(schedule: Schedule, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return alpha, sigma and log(alpha / sigma) at ``times``, each (N + 1,)."""
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    return alpha, sigma, (alpha / sigma).log()


def shrink(x: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor, i: int) -> Tensor:
    """Compute x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) x_0 from t = times[i] to s = times[i + 1].

    This is DPM-Solver++ (arXiv:2211.01095) Eq. 14 at first order; alpha_t and sigma_s may be 0.
    """
    ratio = sigma[i + 1] / sigma[i]
    return ratio * x + (alpha[i + 1] - alpha[i] * ratio) * x0
