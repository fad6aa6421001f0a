"""The one place where a denoiser, an intermediate energy and a rule meet."""

from __future__ import annotations

from torch import Tensor

from egd.tensors import expand, value_and_grad
from egd.types import Context, Denoiser, GuidanceRule, Schedule, TimedEnergy


def guide(denoiser: Denoiser, energy: TimedEnergy, rule: GuidanceRule, schedule: Schedule) -> Denoiser:
    """The denoiser whose score is rule(s, grad E_t, t): a sampler never hears of guidance.

    s = (alpha D - x) / sigma^2, and back D = (x + sigma^2 s) / alpha. Exact (AEPO Eq. 31) for the exact E_t and the
    additive rule at omega = 1.
    """

    def guided(x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        alpha, var = expand(schedule.alpha(t), x), expand(schedule.sigma(t), x) ** 2
        score = (alpha * denoiser(x, t, c) - x) / var
        _, slope = value_and_grad(lambda x: energy(x, t, c), x)
        return (x + var * rule(score, slope, t)) / alpha

    return guided
