"""Sections that the recipes of several experiments have in common."""

from __future__ import annotations

from collections.abc import Iterable

from egd.bounds import Batch, Layers, Rate, Steps, Width
from egd.config.base import Strict
from egd.errors import UserError
from egd.networks.mlp import ActivationName

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


def check_titles(estimators: Iterable[str], taken: Iterable[str]) -> None:
    """UserError for an estimator that is called like a row that every table has."""
    for title in set(estimators) & set(taken):
        raise UserError(f"'{title}' is a row of its own; call the estimator something else", key=f"estimators.{title}")
