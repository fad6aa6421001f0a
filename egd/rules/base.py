"""What rules that wrap another rule have in common."""

from __future__ import annotations

from torch import Tensor

from egd.rules.additive import Additive
from egd.types import GuidanceRule


def wrapped(rule: GuidanceRule | None, omega: float | Tensor) -> GuidanceRule:
    """The inner rule, which has a guidance scale of its own; the additive one at ``omega`` where none is given."""
    return Additive(omega) if rule is None else rule
