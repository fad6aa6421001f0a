"""egd: energy-guided diffusion. Schedules, denoisers, posteriors, intermediate energies, guidance rules and samplers
that know of nothing but
tensors.

Names are imported on first use, so that ``egd --help`` need not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from egd.denoisers import Clip, EpsDenoiser, diffuse, eps_loss, score
    from egd.energies import DPS, FirstOrder, MonteCarlo, SupportSamples
    from egd.guidance import guide
    from egd.mixtures import GaussianMixture, Quadratic
    from egd.networks import EnergyMLP, NoiseMLP
    from egd.objectives import MSE, Analytic
    from egd.posteriors import IsotropicGaussian, MomentPosterior, Moments, calibrate
    from egd.rules import Additive, Rescaled
    from egd.samplers import ddim, dpm_solver_pp_2m
    from egd.schedules import VPCosine, VPLinear, time_grid
    from egd.training import DenoiserLearner, EnergyLearner, Fit

_HOME = {
    "egd.denoisers": ("Clip", "EpsDenoiser", "diffuse", "eps_loss", "score"),
    "egd.energies": ("DPS", "FirstOrder", "MonteCarlo", "SupportSamples"),
    "egd.guidance": ("guide",),
    "egd.mixtures": ("GaussianMixture", "Quadratic"),
    "egd.networks": ("EnergyMLP", "NoiseMLP"),
    "egd.objectives": ("MSE", "Analytic"),
    "egd.posteriors": ("IsotropicGaussian", "MomentPosterior", "Moments", "calibrate"),
    "egd.rules": ("Additive", "Rescaled"),
    "egd.samplers": ("ddim", "dpm_solver_pp_2m"),
    "egd.schedules": ("VPCosine", "VPLinear", "time_grid"),
    "egd.training": ("DenoiserLearner", "EnergyLearner", "Fit"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "DPS",
    "MSE",
    "Additive",
    "Analytic",
    "Clip",
    "DenoiserLearner",
    "EnergyLearner",
    "EnergyMLP",
    "EpsDenoiser",
    "FirstOrder",
    "Fit",
    "GaussianMixture",
    "IsotropicGaussian",
    "MomentPosterior",
    "Moments",
    "MonteCarlo",
    "NoiseMLP",
    "Quadratic",
    "Rescaled",
    "SupportSamples",
    "VPCosine",
    "VPLinear",
    "calibrate",
    "ddim",
    "diffuse",
    "dpm_solver_pp_2m",
    "eps_loss",
    "guide",
    "score",
    "time_grid",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module 'egd' has no attribute '{name}'")
