"""Sequential Monte Carlo along the sampler: guided proposals with importance weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from egd.contracts import denoised, energy_values, timed_values
from egd.energies.base import prepare
from egd.guidance import apply_rule
from egd.rules.additive import Additive
from egd.samplers import check_times
from egd.samplers.watching import watched
from egd.tensors import inner, repeat_context, value_and_grad
from egd.types import Context, Denoiser, Energy, GuidanceRule, Schedule, TimedEnergy

__all__ = ["Particles", "smc", "transition"]


@dataclass(frozen=True)
class Particles:
    """Weighted samples of the target, K for each row, with diagnostics of the run."""

    samples: Tensor
    """Particles (B, K, ...)."""
    log_weights: Tensor
    """Log-weights (B, K); the weights of a row sum to 1."""
    log_evidence: Tensor
    """Log of an unbiased estimate of E_q[exp(-beta E(x_0))], q the distribution of unguided samples: (B,)."""
    ess: Tensor
    """Effective sample size as a share of the particles, 1 / (K sum w^2), at every time: (N + 1, B)."""
    resampled: Tensor
    """Whether a row was resampled at a time, before the step: (N, B)."""

    def draw(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw n particles for each row by their weights, with replacement: (B, n, ...)."""
        index = torch.multinomial(self.log_weights.exp(), n, replacement=True, generator=generator)
        return self.samples[torch.arange(len(index), device=index.device)[:, None], index]

    def mean(self) -> Tensor:
        """Compute the weighted mean of every row: (B, ...)."""
        return torch.einsum("bk,bk...->b...", self.log_weights.exp(), self.samples)


def transition(schedule: Schedule, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute a, b, v of q(x_s | x_t, x_0) = N(a x_t + b x_0, v I) for s < t, each shaped like t.

    DDPM (arXiv:2006.11239) Eq. 6 and 7. With r = SNR_t / SNR_s: a = (alpha_t / alpha_s) (sigma_s / sigma_t)^2, b = alpha_s (1 -
    r), v = sigma_s^2 (1 - r).
    """
    alpha_t, alpha_s, sigma_t, sigma_s = schedule.alpha(t), schedule.alpha(s), schedule.sigma(t), schedule.sigma(s)
    root = alpha_t * sigma_s / (alpha_s * sigma_t)  # sqrt(r)
    fresh = 1 - root**2
    return root * sigma_s / sigma_t, alpha_s * fresh, sigma_s**2 * fresh


@watched
def smc(
    denoiser: Denoiser,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    c: Context = None,
    *,
    energy: Energy,
    beta: float,
    timed_energy: TimedEnergy,
    rule: GuidanceRule | None = None,
    variance: Callable[[Tensor], Tensor] | None = None,
    ess_threshold: float = 0.5,
    generator: torch.Generator | None = None,
) -> Particles:
    """Sample by the twisted diffusion sampler (arXiv:2306.17775): guided ancestral steps with importance weights.

        x_s ~ N(a x_t + b D'(x_t), v),   D' the denoiser guided by ``timed_energy`` and ``rule`` (default: additive)
        w  *= exp(E_t(x_t) - E_s(x_s)) N(x_s; a x_t + b D, v) / N(x_s; a x_t + b D', v)

    At the last step beta E(x_0) takes the place of E_s. As K -> infinity the particles are exact samples of q(x_0) exp(-beta
    E(x_0)), where q is the distribution of unguided ancestral samples, *whatever* the timed energy and the rule: these decide
    only how many particles are needed. A row is resampled (systematically) when its effective sample size falls below the share
    ``ess_threshold`` of the particles. At 0 it is never resampled, which is plain importance sampling.

    ``variance`` (B,) -> (B,) is the variance of x_0 given x_t, such as ``MomentPosterior.variance``. b^2 times it is added to
    v, which gives the step of Analytic-DPM (arXiv:2201.06503). Without ``variance``, v is the smaller one of DDPM's two, and
    with few steps q is too narrow.

    x (B, K, ...) is the noise of K particles for each row, of standard deviation sigma at times[0]; c has B rows. A rule or an
    energy with a value for each row sees B * K rows. A step takes one denoiser call and one gradient of the timed energy for
    each particle. A last step without noise, to time 0, is unguided. Raises ValueError unless times decrease and c has B rows.
    """
    check_times(times)
    _check_rows(x, c)
    rule = rule or Additive()
    rows, k = x.shape[:2]
    x, c, times = x.flatten(0, 1), repeat_context(c, k), times.to(x.device)
    timed = prepare(timed_energy, c)

    def look(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return E_t(x_t) and its gradient, and at the last time beta E and 0."""
        if t == times[-1]:
            return beta * energy_values(energy, x, c), torch.zeros_like(x)
        return value_and_grad(lambda x: timed_values(timed, x, t.expand(len(x)), c), x)

    value, grad = look(x, times[0])
    cloud = _Cloud(x, value, grad, -value.reshape(rows, k))
    log_evidence = torch.zeros(rows, dtype=x.dtype, device=x.device)
    shares, resampled = [cloud.ess()], []
    a, b, v = transition(schedule, times[:-1], times[1:])
    if variance is not None:
        v = v + b**2 * variance(times[:-1])
    for (t, s), step in zip(pairwise(times), zip(a, b, v, strict=True), strict=True):
        poor = shares[-1] < ess_threshold
        log_evidence = log_evidence + torch.where(poor, cloud.log_mean_weight(), 0.0)
        cloud = cloud.resampled(poor, generator)
        x0 = denoised(denoiser, cloud.x, t.expand(len(x)), c)
        guided = apply_rule(x0, cloud.grad, rule, schedule, cloud.x, t.expand(len(x)))
        x, log_ratio = _propose(cloud.x, x0, guided, step, generator)
        value, grad = look(x, s)
        cloud = _Cloud(x, value, grad, cloud.log_w + (log_ratio + cloud.value - value).reshape(rows, k))
        shares.append(cloud.ess())
        resampled.append(poor)
    return Particles(
        samples=cloud.x.reshape(rows, k, *x.shape[1:]),
        log_weights=cloud.log_w.log_softmax(1),
        log_evidence=log_evidence + cloud.log_mean_weight(),
        ess=torch.stack(shares),
        resampled=torch.stack(resampled),
    )


def _check_rows(x: Tensor, c: Context) -> None:
    """Raise ValueError unless the context has as many rows as x."""
    values = {} if c is None else {"c": c} if isinstance(c, Tensor) else {f"c['{name}']": value for name, value in c.items()}
    for name, value in values.items():
        if len(value) != len(x):
            raise ValueError(f"{name} has {len(value)} rows and x {len(x)}: one for each row of particles (B, K, ...)")


def _propose(
    x: Tensor, x0: Tensor, guided: Tensor, step: tuple[Tensor, ...], generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Draw x_s from the guided transition, and return it with log N(x_s; unguided) - log N(x_s; guided), (B,)."""
    a, b, v = step
    if v == 0:  # a step without noise has no density: it is unguided, with a ratio of 1
        return a * x + b * x0, torch.zeros(len(x), dtype=x.dtype, device=x.device)
    push = b * (guided - x0)
    jitter = v.sqrt() * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    return a * x + b * x0 + push + jitter, -(inner(push, push) / 2 + inner(push, jitter)) / v


@dataclass(frozen=True)
class _Cloud:
    """K particles in each of B rows at one time, with their energies, gradients and weights."""

    x: Tensor  # (B K, ...)
    value: Tensor  # E_t(x_t), (B K,)
    grad: Tensor  # its gradient, (B K, ...)
    log_w: Tensor  # (B, K), since the row's last resampling

    def ess(self) -> Tensor:
        """Return the effective sample size of every row as a share of its particles: (B,)."""
        return 1 / (self.log_w.shape[1] * self.log_w.softmax(1).square().sum(1))

    def log_mean_weight(self) -> Tensor:
        """Return the logarithm of every row's mean weight: (B,)."""
        return torch.logsumexp(self.log_w, 1) - math.log(self.log_w.shape[1])

    def resampled(self, rows: Tensor, generator: torch.Generator | None) -> _Cloud:
        """Resample the ``rows`` (B,) systematically, with one uniform number for each, to equal weights; keep the others."""
        n, k = self.log_w.shape
        ladder = torch.arange(k, device=rows.device)
        u = torch.rand(n, 1, generator=generator, dtype=self.x.dtype, device=rows.device)
        drawn = torch.searchsorted(self.log_w.softmax(1).cumsum(1), (ladder + u) / k).clamp(max=k - 1)
        index = torch.where(rows[:, None], drawn, ladder) + k * torch.arange(n, device=rows.device)[:, None]
        x, value, grad = (v[index.flatten()] for v in (self.x, self.value, self.grad))
        return _Cloud(x, value, grad, torch.where(rows[:, None], 0.0, self.log_w))
