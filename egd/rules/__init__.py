"""Guidance rules: how the gradient of an intermediate energy changes the score. One a file, found by name."""

from egd.rules.additive import Additive
from egd.rules.rescaled import Rescaled

__all__ = ["Additive", "Rescaled"]
