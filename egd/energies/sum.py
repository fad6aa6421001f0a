"""A weighted sum of intermediate energies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from egd.bounds import Number
from egd.contracts import timed_values
from egd.energies.base import prepare
from egd.types import Context, TimedEnergy

__all__ = ["Sum"]


@dataclass(frozen=True)
class Sum:
    """Weighted sum sum_k w_k E_t^k(x_t, t, c), with ``weights`` 1 unless given: guidance by several energies at once.

    The sum of the exact E_t's of two energies is not the E_t of their sum, -log E[exp(-beta (E^1 + E^2)) | x_t], unless the two
    are independent given x_t (for instance where they act on independent coordinates), or t -> 0. Where the clean energies are
    at hand, add those instead: ``egd.energies.clean.combine``. Weights that add up to 1 average estimates of one energy.

    Raises ValueError when there are no energies, or not one weight for each.
    """

    energies: Sequence[TimedEnergy]
    weights: Sequence[Number] | None = None

    def __post_init__(self) -> None:
        check_weights(self.energies, self.weights)

    def prepare(self, c: Context) -> Sum:
        """Return the sum with each energy prepared for the contexts."""
        return Sum([prepare(energy, c) for energy in self.energies], self.weights)

    def __call__(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        """Estimate E_t: (B, ...), (B,), c -> (B,)."""
        return weighted([timed_values(energy, x, t, c) for energy in self.energies], self.weights)


def check_weights(terms: Sequence[object], weights: Sequence[float] | None) -> None:
    """Raise ValueError when there are no terms, or not one weight for each."""
    if not terms or (weights is not None and len(weights) != len(terms)):
        given = "no weights" if weights is None else f"{len(weights)} weights"
        raise ValueError(f"a sum needs one energy at least and a weight for each; got {len(terms)} energies and {given}")


def weighted(values: Sequence[Tensor], weights: Sequence[float] | None) -> Tensor:
    """Compute sum_k w_k v_k, for values (B,) and weights that are 1 unless given."""
    stacked = torch.stack(list(values))
    return stacked.sum(0) if weights is None else torch.tensordot(stacked.new_tensor(weights), stacked, 1)
