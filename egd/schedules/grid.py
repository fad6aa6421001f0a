"""Grids of times at which a sampler calls its denoiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from egd.types import HasTime, Schedule

Spacing = Literal["time", "log_snr", "karras"]
RHO = 7.0
"""Exponent of Karras' spacing, which is uniform in (sigma/alpha)^(1/RHO): arXiv:2206.00364, Eq. 5."""


def log_snr(schedule: Schedule, t: Tensor) -> Tensor:
    """Return lambda_t = log(alpha_t / sigma_t): (B,) -> (B,)."""
    return (schedule.alpha(t) / schedule.sigma(t)).log()


def first_time(schedule: Schedule) -> float:
    """Return 1, or where alpha_1 = 0 the time of alpha/sigma = 0.005 (0.995 for a schedule without ``time``)."""
    if schedule.alpha(torch.tensor(1.0)) > 1e-6:
        return 1.0
    inverse = inverse_log_snr(schedule)
    return 0.995 if inverse is None else float(inverse(torch.tensor(5e-3).log()))


def inverse_log_snr(schedule: object) -> Callable[[Tensor], Tensor] | None:
    """Return the schedule's ``time``, or None where it has none."""
    return schedule.time if isinstance(schedule, HasTime) else None


def time_grid(
    schedule: Schedule, steps: int, *, start: float | None = None, end: float = 1e-3, spacing: Spacing = "time"
) -> Tensor:
    """Return ``steps + 1`` times that decrease from ``start`` to ``end``.

    They are uniform in t (QGPO's choice), in log-SNR, or in (sigma/alpha)^(1/7) (``karras``). ``start`` is 1 unless given, or
    slightly less where alpha_1 = 0, so that a noise prediction gives an x_0, and an x_0 a score. Raises ValueError unless 1 >=
    start > end >= 0, and for a spacing other than ``time`` where the schedule has no ``time``.
    """
    start = first_time(schedule) if start is None else start
    if not 1.0 >= start > end >= 0.0:
        raise ValueError(f"need 1 >= start > end >= 0, got start = {start}, end = {end}")
    if spacing not in get_args(Spacing):
        raise ValueError(f"spacing is '{spacing}'; use one of {', '.join(get_args(Spacing))}")
    if spacing == "time":
        return torch.linspace(start, end, steps + 1)
    inverse = inverse_log_snr(schedule)
    if inverse is None or end == 0.0 or not schedule.alpha(torch.tensor(start)) > 1e-6:
        raise ValueError(
            f"{spacing} spacing needs {type(schedule).__name__}.time(lam), end > 0 and alpha(start) > 0; use spacing='time'"
        )
    times: Tensor = inverse(_levels(log_snr(schedule, torch.tensor([start, end])), steps, spacing))
    times[0], times[-1] = start, end
    return times


def _levels(lam: Tensor, steps: int, spacing: Spacing) -> Tensor:
    """Return ``steps + 1`` log-SNRs from lam[0] to lam[1]."""
    if spacing == "log_snr":
        return torch.linspace(float(lam[0]), float(lam[1]), steps + 1)
    roots = torch.exp(-lam / RHO)
    return -RHO * torch.linspace(float(roots[0]), float(roots[1]), steps + 1).log()
