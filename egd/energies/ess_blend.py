"""Support samples where enough of them count, a local expansion elsewhere."""

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
    """Blend w E_support + (1 - w) E_local, w = n^4 / (n^4 + pivot^4), n the effective number of support samples.

    Support samples are consistent at high noise, where many of them count. The local form (``monte_carlo`` with the given
    posterior unless ``local`` is given) is exact as the posterior narrows. Every row has a w of its own. Both forms estimate
    the same E_t, so w is held constant under differentiation, and their gradients are mixed. n counts the weights of the
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
        """Return the energy with its support samples drawn for the contexts."""
        local = MonteCarlo(self.energy, self.posterior, self.beta) if self.local is None else self.local
        support = SupportSamples(self.energy, self.support, self.schedule, self.beta, self.samples).prepare(c)
        return _Blend(prepare(local, c), support, self.pivot)

    def __call__(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        """Estimate E_t: (B, ...), (B,), c -> (B,)."""
        return self.prepare(c)(x, t, c)


@dataclass(frozen=True)
class _Blend:
    """Blend for contexts whose support samples are drawn."""

    local: TimedEnergy
    support: DrawnSupport
    pivot: Positive

    def __call__(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        """Estimate E_t: (B, ...), (B,), c -> (B,)."""
        near = self.support(x, t, c)
        w = 1 / (1 + (self.pivot / self.support.ess(x.detach(), t)) ** 4)
        sure = w > 0.999  # at high noise the local form counts for nothing, and its values may be extreme
        if not transformed() and bool(sure.all()):
            return near
        # sure rows enter the local form without a graph and their values are not used, so that a nan or an infinite gradient
        # there reaches neither their own gradient nor another row's
        local = timed_values(self.local, torch.where(expand(sure, x), x.detach(), x), t, c)
        return torch.where(sure, near, w * near + (1 - w) * local)
