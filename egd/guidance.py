"""Guided denoisers: a denoiser, an intermediate energy and a guidance rule in one."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from egd.contracts import denoised, guided_score, timed_values
from egd.samplers.watching import Lookout, note_grad
from egd.tensors import expand, value_and_grad
from egd.types import Context, Denoiser, GuidanceRule, Schedule, TimedEnergy


def guide(denoiser: Denoiser, energy: TimedEnergy, rule: GuidanceRule, schedule: Schedule) -> GuidedDenoiser:
    """Make the denoiser whose score is rule(s, grad E_t, t); samplers need not know of guidance.

    The score is s = (alpha D - x) / sigma^2, and a score s is turned back into D = (x + sigma^2 s) / alpha. The result is exact
    (AEPO Eq. 31) for the exact E_t and the additive rule at omega = 1. Where alpha_1 = 0 (flow matching), x_1 holds nothing
    about x_0 and grad E_1 = 0, although the guided x_0 differs from the unguided one: the limit is taken at t = 0.999. Outside
    the library's samplers the denoiser warns once (``SamplingWarning``) when x_0 leaves the data's scale or is not finite.
    """
    last = 1.0 if float(schedule.alpha(torch.ones(()))) > 0 else 0.999
    return GuidedDenoiser(denoiser, energy, rule, schedule, last)


@dataclass(frozen=True)
class GuidedDenoiser:
    """Denoiser that ``guide`` makes; ``last`` is the greatest time at which the energy is evaluated."""

    denoiser: Denoiser
    energy: TimedEnergy
    rule: GuidanceRule
    schedule: Schedule
    last: float = 1.0
    lookout: Lookout = field(default_factory=Lookout, compare=False, repr=False)

    def __call__(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        """Return the guided x_0: (B, ...), (B,), c -> (B, ...)."""
        return self._x0(x, t, c, bounded=False)

    def bounded(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        """Return the guided x_0 for a wrapper that bounds it, without a warning of its size."""
        return self._x0(x, t, c, bounded=True)

    def _x0(self, x: Tensor, t: Tensor, c: Context, *, bounded: bool) -> Tensor:
        t = t.clamp(max=self.last)
        _, grad = value_and_grad(lambda x: timed_values(self.energy, x, t, c), x)
        note_grad(self.energy, grad)
        x0 = apply_rule(denoised(self.denoiser, x, t, c), grad, self.rule, self.schedule, x, t)
        if self.lookout.wanted(x0):
            self.lookout.look(x, x0, expand(self.schedule.alpha(t), x), bounded=bounded)
        return x0


def apply_rule(denoised: Tensor, grad: Tensor, rule: GuidanceRule, schedule: Schedule, x: Tensor, t: Tensor) -> Tensor:
    """Compute the guided x_0, D + sigma^2 / alpha (rule(s) - s), from the unguided D and grad E_t at x (B, ...), t (B,).

    Where alpha_t = 0, the guided x_0 is the unguided one: x_t holds nothing about x_0 there, and the gradient is 0.
    """
    alpha, var = expand(schedule.alpha(t), x), expand(schedule.sigma(t), x) ** 2
    score = (alpha * denoised - x) / var
    gain = torch.where(alpha > 0, var / alpha, 0.0)
    return denoised + gain * (guided_score(rule, score, grad, t) - score)
