"""Posterior variances that depend on t alone, estimated once per denoiser on a grid of times.

The three kinds are averages over x_t ~ q_t and agree for an exact denoiser. mu = D(x_t, t), and m is the data mean. Each square
is an outer product (full), a square per coordinate (diagonal) or the mean over the d coordinates (isotropic):

    posterior1   (sigma^2/alpha^2) [1 - E eps^2]      AEPO Eq. 22, full: Eq. 21
    posterior2   Var(x_0) - E(mu - m)^2               AEPO Eq. 24, full: Eq. 41
    residual     E(x_0 - mu)^2                        AEPO Eq. 42, 43

With a trained denoiser the first two leave the valid range [0, Var(x_0)]: at t = 1 sigma^2/alpha^2 is 2e4 for VP-linear, so
that a 1 % error in E||eps||^2 / d is an error of 200. The residual form is a mean square and cannot be negative.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from egd.checkpoint import group, prefixed
from egd.denoisers import diffuse
from egd.posteriors.base import cholesky
from egd.types import Context, Denoiser, Sample, Schedule

MomentKind = Literal["posterior1", "posterior2", "residual"]
KINDS: tuple[MomentKind, ...] = get_args(MomentKind)


@dataclass(frozen=True)
class Moments:
    """Raw (unclamped) estimates of the variances on a grid of times ``t`` (T,).

    ``raw`` holds the isotropic variances (T,) of each kind, and ``data_var`` is Var(x_0), (). ``matrices`` holds the
    covariances (T, d, d), or the variances (T, d) where d is large, and ``data_cov`` those of the data, (d, d) or (d,).
    ``schedule`` is the schedule of the estimates; no checkpoint keeps it.
    """

    t: Tensor
    raw: dict[str, Tensor]
    data_var: Tensor
    matrices: dict[str, Tensor] = field(default_factory=dict)
    data_cov: Tensor | None = None
    schedule: Schedule | None = field(default=None, compare=False, repr=False)

    @property
    def top(self) -> Tensor:
        """Variance of the data in each coordinate, (d,). Raises ValueError where only isotropic variances were estimated."""
        if self.data_cov is None:
            raise ValueError("these moments hold isotropic variances only; make them with calibrate()")
        return self.data_cov.diagonal() if self.data_cov.ndim == 2 else self.data_cov

    def clamped(self, kind: str) -> Tensor:
        """Return the isotropic variances clamped to [0, Var(x_0)]: (T,)."""
        return self.raw[kind].clamp(min=0).minimum(self.data_var)

    def clamped_diagonal(self, kind: str) -> Tensor:
        """Return each coordinate's variances clamped to [0, its variance in the data]: (T, d)."""
        top, values = self.top, self.matrices[kind]
        values = values.diagonal(dim1=1, dim2=2) if values.ndim == 3 else values
        return values.clamp(min=0).minimum(top)

    def clamped_full(self, kind: str) -> Tensor:
        """Return the covariances clamped to 0 <= Sigma <= Cov(x_0): (T, d, d).

        They are clamped in coordinates in which the data's covariance is I. Raises ValueError where only the diagonal was
        estimated (d above ``calibrate(full_up_to=)``).
        """
        if self.data_cov is None or self.data_cov.ndim == 1:
            raise ValueError("no full covariances here; raise calibrate(full_up_to=) or use covariance='diagonal'")
        (root,) = cholesky(self.data_cov.double()[None])  # repaired: data with a constant coordinate have a singular covariance
        white = torch.linalg.solve_triangular(root, self.matrices[kind].to(root), upper=False)
        white = torch.linalg.solve_triangular(root, white.mT, upper=False)
        values, vectors = torch.linalg.eigh(0.5 * (white + white.mT))
        half = root @ vectors
        clamped: Tensor = (half * values.clamp(0, 1)[:, None, :]) @ half.mT
        return clamped.to(self.data_cov)

    def clamp_share(self, kind: str) -> float:
        """Return the share of grid times at which the isotropic clamp acts."""
        return float((self.raw[kind] != self.clamped(kind)).double().mean())

    def state(self) -> dict[str, Tensor]:
        """Return the moments as flat tensors, for a checkpoint."""
        data = {"data_var": self.data_var, **({} if self.data_cov is None else {"data_cov": self.data_cov})}
        return {"t": self.t, **data, **prefixed("raw", self.raw), **prefixed("matrices", self.matrices)}

    @staticmethod
    def load(state: dict[str, Tensor]) -> Moments:
        """Make moments from the tensors returned by ``state``, without a schedule."""
        return Moments(state["t"], group("raw", state), state["data_var"], group("matrices", state), state.get("data_cov"))

    def checked(self) -> Moments:
        """Return the moments. Raises ValueError unless all tensors are float32 and shaped as ``calibrate`` makes them."""
        times, cov = tuple(self.t.shape), () if self.data_cov is None else tuple(self.data_cov.shape)
        shapes = {"t": times, "data_var": (), "data_cov": cov}
        shapes |= {f"raw.{kind}": times for kind in self.raw} | {f"matrices.{kind}": times + cov for kind in self.matrices}
        square = len(cov) < 2 or (len(cov) == 2 and cov[0] == cov[1])
        if len(times) != 1 or not square or {*self.raw} != {*KINDS} or {*self.matrices} != {*(KINDS if cov else ())}:
            raise ValueError(f"moments on times {times} with kinds {sorted(self.raw)} are not those of a calibration")
        for name, tensor in self.state().items():
            if tensor.dtype != torch.float32 or tuple(tensor.shape) != shapes[name]:
                raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)} where it is float32 {shapes[name]}")
        return self


@torch.no_grad()
def calibrate(
    denoiser: Denoiser,
    schedule: Schedule,
    sample: Sample,
    *,
    generator: torch.Generator,
    grid: int = 50,
    samples: int = 8192,
    batch: int = 2048,
    t_min: float = 1e-3,
    t_max: float = 1.0,
    full_up_to: int = 128,
) -> Moments:
    """Estimate the three kinds of variances at ``grid`` times from ``samples`` data points each.

    The covariances are full for events of at most ``full_up_to`` entries, and variances per coordinate above. ``sample(n,
    generator)`` draws n data points (n, ...) and their contexts. The averages accumulate in float64, because the first two
    forms are small differences of large numbers. At low noise the sampling error would dominate posterior2, and a control
    variate removes most of it: the covariance of the denoiser of N(m, v I), the linear gain (x_t - alpha m), is known exactly,
    and its error on the same noise is subtracted.
    """
    data = [sample(min(batch, samples - i), generator) for i in range(0, samples, batch)]
    everything = torch.cat([x0.flatten(1) for x0, _ in data]).double()
    mean = everything.mean(0)
    full = len(mean) <= full_up_to
    data_cov = _second([everything - mean], full)
    times = torch.linspace(t_min, t_max, grid, device=mean.device)
    one = torch.eye(len(mean)).to(data_cov) if full else torch.ones_like(data_cov)
    var = _trace_mean(data_cov, full)
    rows: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
    for t in times:
        alpha, sigma = schedule.alpha(t).double(), schedule.sigma(t).double()
        eps, spread, linear, residual = _deviations(denoiser, schedule, data, t, mean, generator)
        # at alpha = 0 sigma^2/alpha^2 has no value, but x_t holds nothing about x_0: the posterior is the data distribution
        rows["posterior1"].append((sigma / alpha) ** 2 * (one - _second(eps, full)) if alpha > 0 else data_cov)
        gain = alpha * var / (alpha**2 * var + sigma**2)
        luck = gain**2 * (_second(linear, full) - alpha**2 * data_cov - sigma**2 * one)
        rows["posterior2"].append(data_cov - _second(spread, full) + luck)
        rows["residual"].append(_second(residual, full))
    matrices = {kind: torch.stack(values) for kind, values in rows.items()}
    flat = {kind: _mean_variance(values, full) for kind, values in matrices.items()}
    matrices = {kind: values.float() for kind, values in matrices.items()}
    return Moments(times.float(), flat, _mean_variance(data_cov, full), matrices, data_cov.float(), schedule)


def _mean_variance(second: Tensor, full: bool) -> Tensor:
    """Compute ``_trace_mean`` in single precision."""
    return _trace_mean(second, full).float()


def _trace_mean(second: Tensor, full: bool) -> Tensor:
    """Average over the coordinates of (..., d, d) if ``full``, else of (..., d)."""
    return (second.diagonal(dim1=-2, dim2=-1) if full else second).mean(-1)


def _second(rows: list[Tensor], full: bool) -> Tensor:
    """Compute E[v v^T] (d, d), or E[v^2] (d,), over all rows (N, d)."""
    count = sum(len(v) for v in rows)
    sums = [v.mT @ v if full else v.square().sum(0) for v in rows]
    return torch.stack(sums).sum(0) / count


def _deviations(
    denoiser: Denoiser,
    schedule: Schedule,
    data: list[tuple[Tensor, Context]],
    t: Tensor,
    mean: Tensor,
    generator: torch.Generator,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Compute eps, mu - m, x_t - alpha m and x_0 - mu at one time, batch by batch, each (N, d) in float64."""
    eps, spread, linear, residual = [], [], [], []
    for x0, c in data:
        times = t.expand(len(x0))
        noise = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        x = diffuse(schedule, x0, times, noise)
        mu = denoiser(x, times, c).flatten(1).double()
        eps.append((x.flatten(1).double() - schedule.alpha(t).double() * mu) / schedule.sigma(t).double())
        spread.append(mu - mean)
        linear.append(x.flatten(1).double() - schedule.alpha(t).double() * mean)
        residual.append(x0.flatten(1).double() - mu)
    return eps, spread, linear, residual
