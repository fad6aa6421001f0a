"""Methods without guidance: choosing among unguided samples by their energies, and weighting the data before training."""

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
"""Weights of the rows in a training loss: (x_0 (B, ...), c) -> (B,)."""


def best_of(samples: Tensor, energy: Energy | Tensor, c: Context = None) -> Tensor:
    """Return the sample of lowest energy in every row: (B, K, ...) -> (B, ...).

    ``energy`` is a function (evaluated without gradients, c repeated K times) or its values (B, K). The larger K, the greedier
    the choice: there is no inverse temperature, and the samples lose their spread. An energy that is nan is never the lowest.
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
    """Draw n of the K samples of every row, with replacement, by softmax(-beta E): (B, K, ...) -> (B, n, ...).

    This is importance resampling: if the K are samples of q, the draws become exact samples of p(x_0) ~ q(x_0) exp(-beta
    E(x_0)) as K -> infinity, for n << K. SfBC (arXiv:2209.14548) selects so. Where few of the K weights count, the draws
    repeat.
    """
    weights = torch.softmax(-beta * energies_of(samples, energy, c), 1)
    return _take(samples, torch.multinomial(weights, n, replacement=True, generator=generator))


def energies_of(samples: Tensor, energy: Energy | Tensor, c: Context = None) -> Tensor:
    """Evaluate E at every sample: (B, K, ...) -> (B, K). Raises ValueError for energies of another shape."""
    shape = samples.shape[:2]
    if isinstance(energy, Tensor):
        if energy.shape != shape:
            raise ValueError(f"samples {tuple(samples.shape)} need energies {tuple(shape)}, got {tuple(energy.shape)}")
        return energy
    with torch.no_grad():
        return energy_values(energy, samples.flatten(0, 1), repeat_context(c, shape[1])).reshape(shape)


def _take(samples: Tensor, index: Tensor) -> Tensor:
    """Index samples (B, K, ...) by index (B, n): (B, n, ...)."""
    return samples[torch.arange(len(samples), device=samples.device)[:, None], index]


def energy_weights(energy: Energy, beta: BetaOrZero, *, group: Batch | None = None, clip: Positive | None = None) -> Weights:
    """Make weights of mean 1 for a denoiser's loss: K softmax(-beta E) over every ``group`` of K rows, or over the batch.

    A denoiser trained with them is that of p(x_0 | c) ~ q(x_0 | c) exp(-beta E(x_0, c)) as K grows, and needs no guidance:
    energy-weighted flow matching / QIPO (arXiv:2503.04975). In a batch of different contexts, weights over the whole batch
    favour contexts with low E. To avoid this, subtract a function of c from E (which gives an advantage), or feed ``group``
    samples of q(. | c) for each context, side by side. ``clip`` bounds the weights, before they are rescaled to mean 1: the
    variance is smaller, and the target milder than the tilted one. Raises ValueError when the group does not divide the batch,
    and for a group or clip that is not positive.
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
