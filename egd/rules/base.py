"""The inner rule of rules that wrap another."""

from __future__ import annotations

from torch import Tensor

from egd.rules.additive import Additive
from egd.types import GuidanceRule


def wrapped(rule: GuidanceRule | None, omega: float | Tensor) -> GuidanceRule:
    """Return the inner rule, which has its own guidance scale; the additive rule at ``omega`` where none is given."""
    return Additive(omega) if rule is None else rule
