"""Posterior variances that depend on t alone, estimated once per denoiser on a grid of times.

All three are averages over x_t ~ q_t and agree for an exact denoiser (v = posterior variance per dimension, d dimensions):

    posterior1   (sigma^2/alpha^2) [1 - E||eps||^2 / d]                 AEPO Eq. 22
    posterior2   Var(x_0) - E||mu - m||^2 / d,  m the data mean         AEPO Eq. 24
    residual     E||x_0 - mu||^2 / d                                    AEPO Eq. 42, 43

A trained denoiser leaves the valid range [0, Var(x_0)] with the first two: at t = 1 sigma^2/alpha^2 is 2e4 for VP-linear, so a
1 % error in E||eps||^2 / d is an error of 200. The residual form is a mean square and cannot be negative.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from egd.denoisers import diffuse
from egd.posteriors.base import IsotropicGaussian
from egd.types import Context, Denoiser, Schedule

MomentKind = Literal["posterior1", "posterior2", "residual"]
DESCRIPTIONS: dict[str, str] = {
    "posterior1": "(sigma^2/alpha^2) [1 - E||eps||^2 / d], from the predicted noise. AEPO Eq. 22.",
    "posterior2": "Var(x_0) - E||mu - m||^2 / d, from the data's variance. AEPO Eq. 24.",
    "residual": "E||x_0 - mu||^2 / d, from the denoiser's error: cannot be negative. AEPO Eq. 42.",
}
KINDS: tuple[MomentKind, ...] = get_args(MomentKind)


@dataclass(frozen=True)
class Moments:
    """Raw (unclamped) variances on a grid of times: ``t`` (T,), each of ``raw`` (T,); ``data_var`` = Var(x_0), ()."""

    t: Tensor
    raw: dict[str, Tensor]
    data_var: Tensor

    def clamped(self, kind: str) -> Tensor:
        """Clamped to [0, Var(x_0)], (T,)."""
        return self.raw[kind].clamp(min=0).minimum(self.data_var)

    def clamp_share(self, kind: str) -> float:
        """The share of grid times at which the clamp acts."""
        return float((self.raw[kind] != self.clamped(kind)).double().mean())

    def state(self) -> dict[str, Tensor]:
        """As flat tensors, for a checkpoint."""
        return {"t": self.t, "data_var": self.data_var, **{f"raw.{k}": v for k, v in self.raw.items()}}

    @staticmethod
    def load(state: dict[str, Tensor]) -> Moments:
        """The inverse of ``state``."""
        raw = {k.removeprefix("raw."): v for k, v in state.items() if k.startswith("raw.")}
        return Moments(state["t"], raw, state["data_var"])


@torch.no_grad()
def calibrate(
    denoiser: Denoiser,
    schedule: Schedule,
    sample: Callable[[int, torch.Generator], tuple[Tensor, Context]],
    *,
    generator: torch.Generator,
    grid: int = 50,
    samples: int = 8192,
    batch: int = 2048,
    t_min: float = 1e-3,
) -> Moments:
    """Estimate all three variances at ``grid`` times from ``samples`` data points each.

    ``sample(n, generator)`` draws n data points (n, ...) and their contexts. The averages accumulate in float64: the
    first two forms are small differences of large numbers.
    """
    rounds = [min(batch, samples - i) for i in range(0, samples, batch)]
    data = [sample(n, generator) for n in rounds]
    everything = torch.cat([x0 for x0, _ in data]).double()
    mean = everything.mean(0)
    data_var = (everything - mean).square().mean()
    t_grid = torch.linspace(t_min, 1.0, grid, device=everything.device)
    rows: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
    for t in t_grid:
        eps2, spread2, residual2 = _averages(denoiser, schedule, data, t, mean, generator)
        ratio = (schedule.sigma(t) / schedule.alpha(t)).double() ** 2
        rows["posterior1"].append(ratio * (1 - eps2))
        rows["posterior2"].append(data_var - spread2)
        rows["residual"].append(residual2)
    raw = {kind: torch.stack(values).float() for kind, values in rows.items()}
    return Moments(t_grid, raw, data_var.float())


def _averages(
    denoiser: Denoiser,
    schedule: Schedule,
    data: list[tuple[Tensor, Context]],
    t: Tensor,
    mean: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """E||eps||^2/d, E||mu - m||^2/d and E||x_0 - mu||^2/d at one time, each ()."""
    total = torch.zeros(3, dtype=torch.float64, device=mean.device)
    count = 0
    for x0, c in data:
        times = t.expand(len(x0))
        noise = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        x = diffuse(schedule, x0, times, noise)
        mu = denoiser(x, times, c).double()
        eps = (x.double() - schedule.alpha(t).double() * mu) / schedule.sigma(t).double()
        total += torch.stack([eps.square().sum(), (mu - mean).square().sum(), (x0.double() - mu).square().sum()])
        count += x0.numel()
    eps2, spread2, residual2 = (total / count).unbind()
    return eps2, spread2, residual2


@dataclass(frozen=True)
class MomentPosterior:
    """N(D(x_t, t), v(t) I) with v interpolated on the calibrated grid and clamped to [0, Var(x_0)]."""

    denoiser: Denoiser
    moments: Moments
    kind: MomentKind = "posterior1"

    def variance(self, t: Tensor) -> Tensor:
        """v(t): (B,) -> (B,), linear between grid times."""
        grid, values = self.moments.t, self.moments.clamped(self.kind)
        place = ((t - grid[0]) / (grid[1] - grid[0])).clamp(0, len(grid) - 1)
        left = place.floor().long().clamp(max=len(grid) - 2)
        return torch.lerp(values[left], values[left + 1], (place - left).to(values.dtype)).to(t.dtype)

    def __call__(self, x: Tensor, t: Tensor, c: Context = None) -> IsotropicGaussian:
        """(B, ...), (B,), c -> N(mean (B, ...), var (B,))"""
        return IsotropicGaussian(self.denoiser(x, t, c), self.variance(t))
