"""Whether training goes astray: quantities looked at when a checkpoint is due, shown in the metrics, warned of, or its end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_WEIGHT = 1e6
"""Of a network in training; those that learn have weights of a few units."""


@dataclass(frozen=True)
class Vital:
    """One quantity: beyond ``warn`` people are told, beyond ``stop`` the run ends. ``remedy``: what to try."""

    value: Tensor | float
    warn: float = math.inf
    stop: float = math.inf
    remedy: str = "lower the phase's lr, or look for outliers in the data"


Vitals = Callable[[], Mapping[str, Vital]]


def largest_weight(state: Mapping[str, Tensor]) -> dict[str, Vital]:
    """The largest entry, in size, of all weights and biases in a learner's state, if it has any."""
    sizes = [t.detach().abs().max() for name, t in state.items() if _is_weight(name, t)]
    return {"largest_weight": Vital(torch.stack(sizes).max(), stop=LARGEST_WEIGHT)} if sizes else {}


def _is_weight(name: str, tensor: Tensor) -> bool:
    fitted = name.endswith((".weight", ".bias")) and "optimiser" not in name
    return fitted and tensor.is_floating_point() and tensor.numel() > 0
