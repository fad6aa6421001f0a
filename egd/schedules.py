"""Noise schedules: alpha(t), sigma(t) and the map back from log-SNR. Data at t = 0, noise at t = 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from egd.types import Schedule

__all__ = ["VPCosine", "VPLinear"]


@dataclass(frozen=True)
class VPLinear:
    """log alpha_t = -t^2 (beta_max - beta_min)/4 - t beta_min/2, sigma_t^2 = 1 - alpha_t^2: the VP-SDE of
    Song et al. (arXiv:2011.13456), as QGPO and AEPO use it."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def log_alpha(self, t: Tensor) -> Tensor:
        """(B,) -> (B,)"""
        return -(t**2) * (self.beta_max - self.beta_min) / 4 - t * self.beta_min / 2

    def alpha(self, t: Tensor) -> Tensor:
        """(B,) -> (B,)"""
        return self.log_alpha(t).exp()

    def sigma(self, t: Tensor) -> Tensor:
        """(B,) -> (B,); expm1 keeps it accurate as t -> 0."""
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def time(self, lam: Tensor) -> Tensor:
        """The t at which log(alpha_t / sigma_t) = lam: the inverse in closed form (DPM-Solver, appendix D.4)."""
        y = torch.nn.functional.softplus(-2 * lam)  # = -2 log alpha
        span = self.beta_max - self.beta_min
        return 2 * y / ((self.beta_min**2 + 2 * span * y).sqrt() + self.beta_min)


@dataclass(frozen=True)
class VPCosine:
    """alpha_t = cos(pi s t / 2), sigma_t = sin(pi s t / 2) (arXiv:2102.09672 without its offset, arXiv:2202.00512).

    ``s`` < 1 ends it short of alpha = 0, by which a noise-predicting denoiser would divide: alpha_1 = 0.008 is VP-linear's.
    """

    s: float = 0.995

    def alpha(self, t: Tensor) -> Tensor:
        """(B,) -> (B,)"""
        return torch.cos(t * (self.s * torch.pi / 2))

    def sigma(self, t: Tensor) -> Tensor:
        """(B,) -> (B,)"""
        return torch.sin(t * (self.s * torch.pi / 2))

    def time(self, lam: Tensor) -> Tensor:
        """The t at which log(alpha_t / sigma_t) = lam."""
        return 2 / (self.s * torch.pi) * torch.atan(torch.exp(-lam))


Spacing = Literal["time", "log_snr"]


def log_snr(schedule: Schedule, t: Tensor) -> Tensor:
    """lambda_t = log(alpha_t / sigma_t): (B,) -> (B,)"""
    return (schedule.alpha(t) / schedule.sigma(t)).log()


def time_grid(schedule: Schedule, steps: int, *, start: float = 1.0, end: float = 1e-3, spacing: Spacing = "time") -> Tensor:
    """``steps + 1`` decreasing times from ``start`` to ``end``, uniform in t (QGPO's choice) or in log-SNR.

    Raises ValueError unless 1 >= start > end >= 0, or when log-SNR spacing is asked of a schedule without ``time``.
    """
    if not 1.0 >= start > end >= 0.0:
        raise ValueError(f"need 1 >= start > end >= 0, got start = {start}, end = {end}")
    if spacing not in get_args(Spacing):
        raise ValueError(f"spacing is '{spacing}'; use one of {', '.join(get_args(Spacing))}")
    t = torch.linspace(start, end, steps + 1)
    if spacing == "time":
        return t
    inverse = getattr(schedule, "time", None)
    if inverse is None or end == 0.0 or not schedule.alpha(torch.tensor(start)) > 1e-6:
        raise ValueError(
            f"log-SNR spacing needs {type(schedule).__name__}.time(lam), end > 0 and alpha(start) > 0; use spacing='time'"
        )
    lam = log_snr(schedule, torch.tensor([start, end]))
    times: Tensor = inverse(torch.linspace(float(lam[0]), float(lam[1]), steps + 1))
    times[0], times[-1] = start, end
    return times
