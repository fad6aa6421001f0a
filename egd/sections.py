"""Sections that the recipes of several experiments have in common."""

from __future__ import annotations

from egd.bounds import Batch, Layers, Rate, Steps, Width
from egd.config import Strict
from egd.networks import ActivationName

__all__ = ["NetworkConfig"]


class NetworkConfig(Strict):
    """A network of dense layers, and how it is trained."""

    width: Width = 256
    layers: Layers = 3
    activation: ActivationName = "silu"
    steps: Steps = 1_000_000
    batch: Batch = 256
    lr: Rate = 3e-4
    decay: bool = True
    """The learning rate falls to 0, by a cosine."""
