"""Choosing among unguided samples by their energies, and weighting the data before training: what needs no guidance."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from egd.bounds import Batch, BetaOrZero, Candidates, Positive
from egd.contracts import energy_values
from egd.tensors import repeat_context
from egd.types import Context, Energy

__all__ = ["best_of", "energy_weights", "softmax_resample"]

Weights: TypeAlias = Callable[[Tensor, Context], Tensor]
"""(x_0 (B, ...), c) -> (B,): weights of the rows in a training loss."""


def best_of(samples: Tensor, energy: Energy | Tensor, c: Context = None) -> Tensor:
    """The sample of lowest energy in every row: (B, K, ...) -> (B, ...).

    ``energy`` is a function (evaluated without gradients, c repeated K times) or its values (B, K). The larger K, the
    greedier: no inverse temperature enters, and the samples' spread goes. An energy that is not a number is never the lowest.
    """
    energies = energies_of(samples, energy, c)
    return _take(samples, energies.where(~energies.isnan(), torch.inf).argmin(1, keepdim=True))[:, 0]


def softmax_resample(
    samples: Tensor,
    energy: Energy | Tensor,
    beta: BetaOrZero,
    n: Candidates,
    *,
    c: Context = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """n draws a row, with replacement, by softmax(-beta E) over its K samples: (B, K, ...) -> (B, n, ...).

    Importance resampling: as K -> infinity, and for n << K, exact samples of p(x_0) ~ q(x_0) exp(-beta E(x_0)), if the K
    are samples of q. SfBC (arXiv:2209.14548) acts so. Where few of the K weights count, the draws repeat.
    """
    weights = torch.softmax(-beta * energies_of(samples, energy, c), 1)
    return _take(samples, torch.multinomial(weights, n, replacement=True, generator=generator))


def energies_of(samples: Tensor, energy: Energy | Tensor, c: Context = None) -> Tensor:
    """E of every sample, (B, K, ...) -> (B, K). ValueError for energies of another shape."""
    shape = samples.shape[:2]
    if isinstance(energy, Tensor):
        if energy.shape != shape:
            raise ValueError(f"samples {tuple(samples.shape)} need energies {tuple(shape)}, got {tuple(energy.shape)}")
        return energy
    with torch.no_grad():
        return energy_values(energy, samples.flatten(0, 1), repeat_context(c, shape[1])).reshape(shape)


def _take(samples: Tensor, index: Tensor) -> Tensor:
    """samples (B, K, ...), index (B, n) -> (B, n, ...)"""
    return samples[torch.arange(len(samples), device=samples.device)[:, None], index]


def energy_weights(energy: Energy, beta: BetaOrZero, *, group: Batch | None = None, clip: Positive | None = None) -> Weights:
    """Weights of mean 1 for the loss of a denoiser: K softmax(-beta E) over every ``group`` of K rows, or over the batch.

    A denoiser so trained is that of p(x_0 | c) ~ q(x_0 | c) exp(-beta E(x_0, c)) as K grows, and needs no guidance:
    energy-weighted flow matching / QIPO (arXiv:2503.04975). In a batch of unlike contexts, weights over the whole batch
    spend themselves on contexts where E is low. Either take E less a function of c (an advantage), or feed ``group``
    samples of q(. | c) for each context, side by side. ``clip`` bounds the weights (before they are brought back to mean
    1): less variance, and a target that is milder than the tilted one. Raises ValueError when the group does not divide
    the batch, and for a group or clip that is not positive.
    """
    for name, value in {"group": group, "clip": clip}.items():
        if value is not None and not value > 0:
            raise ValueError(f"{name} is a positive number; got {value}")

    def weights(x0: Tensor, c: Context = None) -> Tensor:
        k = group or len(x0)
        if len(x0) % k:
            raise ValueError(f"a batch of {len(x0)} rows does not divide into groups of {k}; choose a multiple of {k}")
        with torch.no_grad():
            w = k * torch.softmax(-beta * energy_values(energy, x0, c).reshape(-1, k), 1)
        if clip is not None:
            w = w.clamp(max=clip)
            w = w / w.mean(1, keepdim=True)
        return w.flatten()

    return weights
