"""Guidance rules: how the gradient of an intermediate energy changes the score. Each is one file, and is found by its name."""

from egd.rules.additive import Additive
from egd.rules.gradient_clip import GradientClip
from egd.rules.interval import Interval
from egd.rules.rescaled import Rescaled
from egd.rules.scheduled import Scheduled

__all__ = ["Additive", "GradientClip", "Interval", "Rescaled", "Scheduled"]
