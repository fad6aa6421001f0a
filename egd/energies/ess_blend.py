"""Support samples where there are enough of them, a local expansion where there are not."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from egd.bounds import BetaOrZero, Positive, Samples
from egd.contracts import timed_values
from egd.energies.base import prepare
from egd.energies.monte_carlo import MonteCarlo
from egd.energies.support import DrawnSupport, SupportSamples
from egd.tensors import expand, transformed
from egd.types import Context, Energy, Posterior, Schedule, Support, TimedEnergy

__all__ = ["EssBlend"]


@dataclass(frozen=True)
class EssBlend:
    """w E_support + (1 - w) E_local,  w = n^4 / (n^4 + pivot^4), n the effective number of support samples.

    Support samples are consistent at high noise, where many of them count; the local form (``monte_carlo`` with the given
    posterior unless ``local`` says otherwise) is exact as the posterior narrows. Every row has a w of its own. Both estimate
    the same E_t, so their gradients are mixed: w is held constant under differentiation. n counts the weights of the
    posterior before the tilt: one sample at the right place says more than a local form that does not see it.
    """

    energy: Energy
    posterior: Posterior
    support: Support
    schedule: Schedule
    beta: BetaOrZero = 1.0
    samples: Samples = 1024
    pivot: Positive = 10.0
    local: TimedEnergy | None = None

    def prepare(self, c: Context) -> TimedEnergy:
        """The same energy with its support drawn."""
        local = MonteCarlo(self.energy, self.posterior, self.beta) if self.local is None else self.local
        support = SupportSamples(self.energy, self.support, self.schedule, self.beta, self.samples).prepare(c)
        return _Blend(prepare(local, c), support, self.pivot)

    def __call__(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        """(B, ...), (B,), c -> (B,)"""
        return self.prepare(c)(x, t, c)


@dataclass(frozen=True)
class _Blend:
    local: TimedEnergy
    support: DrawnSupport
    pivot: Positive

    def __call__(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        near = self.support(x, t, c)
        w = 1 / (1 + (self.pivot / self.support.ess(x.detach(), t)) ** 4)
        sure = w > 0.999  # high noise: nothing to expand, and a local form may be wild there
        if not transformed() and bool(sure.all()):
            return near
        # rows that are sure come in without a graph and go out unused: whatever the local form makes of them, nan or an
        # infinite gradient, reaches neither their own gradient nor another row's
        local = timed_values(self.local, torch.where(expand(sure, x), x.detach(), x), t, c)
        return torch.where(sure, near, w * near + (1 - w) * local)
