"""Sections that the recipes of several experiments have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ConfigDict, model_validator

from egd.bounds import Batch, Layers, Rate, Steps, Width
from egd.config.base import Strict
from egd.config.components import Spec
from egd.errors import UserError
from egd.networks.mlp import ActivationName


class ChosenConfig(Strict):
    """A component by its ``name`` and the keys that every one of the section has; its own settings stand beside them."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)
    name: str

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def settings(self) -> Mapping[str, Any]:
        """Those of the component alone."""
        return self.model_extra or {}

    @property
    def spec(self) -> Spec:
        """For ``egd.config.components``."""
        return Spec(self.name, self.settings)


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
