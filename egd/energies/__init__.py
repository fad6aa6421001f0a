"""Intermediate energies without training: one closed form a file, each found by its name in a recipe."""

from egd.energies.dps import DPS
from egd.energies.ess_blend import EssBlend
from egd.energies.first_order import FirstOrder
from egd.energies.mixture_fit import MixtureFit
from egd.energies.monte_carlo import MonteCarlo
from egd.energies.second_order import SecondOrder
from egd.energies.sigma_points import SigmaPoints
from egd.energies.sum import Sum
from egd.energies.support import SupportSamples

__all__ = [
    "DPS",
    "EssBlend",
    "FirstOrder",
    "MixtureFit",
    "MonteCarlo",
    "SecondOrder",
    "SigmaPoints",
    "Sum",
    "SupportSamples",
]
