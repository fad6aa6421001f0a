"""Distributions of the times at which networks are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from egd.denoisers import random_times
from egd.schedules.grid import inverse_log_snr
from egd.types import Schedule


class Times(Protocol):
    """Distribution of the times of a batch."""

    def __call__(self, n: int, generator: torch.Generator, /) -> Tensor:
        """Draw n times: (n,), on the generator's device."""
        ...


@dataclass(frozen=True)
class UniformTimes:
    """Uniform distribution of times, t ~ U[low, 1]."""

    low: float = 1e-3

    def __call__(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n times: (n,)."""
        return random_times(n, self.low, generator)


@dataclass(frozen=True)
class LogNormalTimes:
    """Log-normal distribution of noise levels, log(sigma_t / alpha_t) ~ N(mean, std^2), with no time below ``low``.

    EDM (arXiv:2206.00364, section 5) has mean -1.2 and standard deviation 1.2. Raises ValueError for a schedule without
    ``time``.
    """

    schedule: Schedule
    mean: float = -1.2
    std: float = 1.2
    low: float = 1e-3

    def __post_init__(self) -> None:
        if inverse_log_snr(self.schedule) is None:
            raise ValueError(f"log-normal times need {type(self.schedule).__name__}.time(lam)")

    def __call__(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n times: (n,)."""
        log_ratio = self.mean + self.std * torch.randn(n, generator=generator, device=generator.device)
        inverse = inverse_log_snr(self.schedule)
        assert inverse is not None
        return inverse(-log_ratio).clamp(self.low, 1.0)


UNIFORM = UniformTimes()
