"""A variance-preserving schedule from values at discrete steps, made continuous."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tabulated:
    """VP schedule with the log-SNRs ``lam`` (N,), decreasing, at the times 1/N, 2/N, ..., 1; linear in log-SNR between them.

    Below the first time sigma/alpha goes to 0 in proportion to t. Where the last log-SNR is -inf (zero terminal SNR,
    arXiv:2305.08891), alpha/sigma goes to 0 linearly over the last interval.
    """

    lam: Tensor

    def log_snr(self, t: Tensor) -> Tensor:
        """Return log(alpha_t / sigma_t), inf at t = 0: (B,) -> (B,)."""
        lam = self.lam.to(t)
        place = t * len(lam) - 1
        left = place.floor().long().clamp(0, len(lam) - 2)
        share = place - left
        inside = lam[left] + share * (lam[left + 1] - lam[left])
        to_data = lam[0] - (1 + place).clamp(min=0).log()
        to_noise = lam[left] + (1 - share).clamp(min=0).log()
        inside = torch.where(lam[left + 1].isinf(), to_noise, inside)
        return torch.where(place < 0, to_data, inside)

    def alpha(self, t: Tensor) -> Tensor:
        """Return alpha_t: (B,) -> (B,)."""
        return torch.sigmoid(2 * self.log_snr(t)).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        """Return sigma_t: (B,) -> (B,)."""
        return torch.sigmoid(-2 * self.log_snr(t)).sqrt()

    def time(self, lam: Tensor) -> Tensor:
        """Return the t at which log(alpha_t / sigma_t) = lam: (B,) -> (B,)."""
        table = self.lam.to(lam)
        left = (torch.searchsorted(-table, -lam.contiguous()) - 1).clamp(0, len(table) - 2)
        inside = (lam - table[left]) / (table[left + 1] - table[left])
        to_noise = 1 - torch.exp(lam - table[left])
        place = left + torch.where(table[left + 1].isinf(), to_noise, inside)
        place = torch.where(lam > table[0], torch.exp(table[0] - lam) - 1, place)
        return (place + 1) / len(table)
