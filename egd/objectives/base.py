"""What an objective may say of itself beyond its loss."""

from __future__ import annotations

from egd.types import Dimensionless, Grouped


def is_dimensionless(objective: object) -> bool:
    """Tell whether the loss has no unit, of an objective or of its class."""
    return isinstance(objective, Dimensionless) and objective.dimensionless


def is_grouped(objective: object) -> bool:
    """Tell whether it compares samples of one context side by side, of an objective or of its class."""
    return isinstance(objective, Grouped) and objective.grouped
