"""The definition of E_t over samples of the data distribution: what a CEP network converges to, without training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from egd.tensors import expand, repeat_context
from egd.types import Context, Energy, Schedule, Support, TimedEnergy

__all__ = ["SupportSamples"]


@dataclass(frozen=True)
class SupportSamples:
    """E_t ~ -log sum_i w_i exp(-beta E(x^i)),  w_i = softmax_i(-||x_t - alpha_t x^i||^2 / (2 sigma_t^2)),  x^i ~ q(. | c).

    Consistent in the number K of ``samples``; best at high noise, where many w_i count. ``prepare`` draws the x^i once
    for a whole sampling
    run; called directly the class draws them anew each time.
    """

    energy: Energy
    support: Support
    schedule: Schedule
    beta: float = 1.0
    samples: int = 32

    def prepare(self, c: Context) -> TimedEnergy:
        """The same energy with K samples drawn for every row of c and their energies computed."""
        with torch.no_grad():
            points = self.support(c, self.samples)
            flat = self.energy(points.flatten(0, 1), repeat_context(c, self.samples))
        return _Drawn(points, self.beta * flat.reshape(points.shape[:2]), self.schedule)

    def __call__(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        """(B, ...), (B,), c -> (B,)"""
        return self.prepare(c)(x, t, c)


@dataclass(frozen=True)
class _Drawn:
    points: Tensor  # (B, K, ...), or (1, K, ...) for all rows
    energies: Tensor  # (B, K) times beta
    schedule: Schedule

    def __call__(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        centre = rearrange(expand(self.schedule.alpha(t), x), "b ... -> b 1 ...") * self.points
        distance = (rearrange(x, "b ... -> b 1 ...") - centre).flatten(2).square().sum(2)  # (B, K)
        log_w = torch.log_softmax(-distance / (2 * self.schedule.sigma(t)[:, None] ** 2), 1)
        return -torch.logsumexp(log_w - self.energies, 1)
