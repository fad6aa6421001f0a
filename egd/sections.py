"""Sections that the recipes of several experiments have in common."""

from __future__ import annotations

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from egd.config import Strict
from egd.networks import ActivationName

__all__ = ["NetworkConfig"]


class NetworkConfig(Strict):
    """A network of dense layers, and how it is trained."""

    width: PositiveInt = 256
    layers: PositiveInt = 3
    activation: ActivationName = "silu"
    steps: NonNegativeInt = 1_000_000
    batch: PositiveInt = 256
    lr: PositiveFloat = 3e-4
    decay: bool = True
    """The learning rate falls to 0, by a cosine."""
