"""Signs of divergence in training: quantities that are checked with every checkpoint, shown as metrics, and may end the run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_WEIGHT = 1e6
"""Size of a weight from which on training has diverged; networks that learn have weights of a few units."""


@dataclass(frozen=True)
class Vital:
    """Quantity that is checked: beyond ``warn`` the user is warned, beyond ``stop`` the run ends. ``remedy`` is what to try."""

    value: Tensor | float
    warn: float = math.inf
    stop: float = math.inf
    remedy: str = "lower the phase's lr, or look for outliers in the data"


Vitals = Callable[[], Mapping[str, Vital]]


def largest_weight(state: Mapping[str, Tensor]) -> dict[str, Vital]:
    """Return the largest absolute entry of all weights and biases in a learner's state; {} if it has none."""
    sizes = [t.detach().abs().max() for name, t in state.items() if _is_weight(name, t)]
    return {"largest_weight": Vital(torch.stack(sizes).max(), stop=LARGEST_WEIGHT)} if sizes else {}


def _is_weight(name: str, tensor: Tensor) -> bool:
    """Tell whether a tensor of a state is a weight or bias of a network."""
    fitted = name.endswith((".weight", ".bias")) and "optimiser" not in name
    return fitted and tensor.is_floating_point() and tensor.numel() > 0
