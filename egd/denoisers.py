"""Noise-prediction networks as denoisers, and the loss that trains them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from egd.tensors import expand
from egd.types import Context, Denoiser, Schedule

NoiseModel: TypeAlias = Callable[[Tensor, Tensor, Context], Tensor]
"""(x_t (B, ...), t (B,), c) -> the predicted noise eps, shaped like x_t."""


@dataclass(frozen=True)
class EpsDenoiser:
    """D(x_t, t) = (x_t - sigma_t eps(x_t, t)) / alpha_t. AEPO Eq. 18."""

    network: NoiseModel
    schedule: Schedule

    def __call__(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        """(B, ...), (B,), c -> (B, ...)"""
        alpha, sigma = expand(self.schedule.alpha(t), x), expand(self.schedule.sigma(t), x)
        return (x - sigma * self.network(x, t, c)) / alpha


@dataclass(frozen=True)
class Clip:
    """A denoiser whose x_0 stays within [low, high], the data's own range: what clipping of samples amounts to."""

    denoiser: Denoiser
    low: Tensor
    high: Tensor

    def __call__(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        """(B, ...), (B,), c -> (B, ...)"""
        return self.denoiser(x, t, c).clamp(self.low, self.high)


def score(denoiser: Denoiser, schedule: Schedule, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
    """grad log q_t(x_t) = (alpha_t D - x_t) / sigma_t^2, shaped like x. AEPO Eq. 14 with Eq. 18."""
    alpha, sigma = expand(schedule.alpha(t), x), expand(schedule.sigma(t), x)
    return (alpha * denoiser(x, t, c) - x) / sigma**2


def diffuse(schedule: Schedule, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """x_t = alpha_t x_0 + sigma_t noise, shaped like x_0."""
    return expand(schedule.alpha(t), x0) * x0 + expand(schedule.sigma(t), x0) * noise


def random_times(n: int, low: float, generator: torch.Generator) -> Tensor:
    """t ~ U[low, 1], (n,), on the generator's device."""
    return low + (1 - low) * torch.rand(n, generator=generator, device=generator.device)


def eps_loss(network: NoiseModel, schedule: Schedule, x0: Tensor, t: Tensor, noise: Tensor, c: Context = None) -> Tensor:
    """E ||noise - eps(x_t, t, c)||^2, summed over the event and averaged over the batch (DDPM; AEPO Eq. 7)."""
    error = network(diffuse(schedule, x0, t, noise), t, c) - noise
    return error.square().flatten(1).sum(1).mean()
