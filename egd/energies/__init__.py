"""Intermediate energies that need no training: one closed form a file, each found by its name in a recipe."""

from egd.energies.dps import DPS
from egd.energies.first_order import FirstOrder
from egd.energies.monte_carlo import MonteCarlo
from egd.energies.sum import Sum
from egd.energies.support import SupportSamples

__all__ = ["DPS", "FirstOrder", "MonteCarlo", "Sum", "SupportSamples"]
