"""egd: energy-guided diffusion. Schedules, denoisers, posteriors, intermediate energies, guidance rules and samplers
that know of nothing but
tensors.

Names are imported on first use, so that ``egd --help`` need not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from egd.denoisers import NetworkDenoiser, convert, diffuse, prediction_loss, prediction_target, score
    from egd.energies import (
        DPS,
        EssBlend,
        FirstOrder,
        MixtureFit,
        MonteCarlo,
        SecondOrder,
        SigmaPoints,
        Sum,
        SupportSamples,
    )
    from egd.guidance import guide
    from egd.mixtures import GaussianMixture, Quadratic
    from egd.networks.mlp import EnergyMLP, NoiseMLP
    from egd.networks.temporal import TemporalEnergy, TemporalUNet
    from egd.objectives import CEP, MSE, Analytic, ExpMSE, Ratio
    from egd.particles import Particles, smc
    from egd.pipelines.guided import EnergyGuidedPipeline
    from egd.posteriors import (
        DiagonalGaussian,
        FullGaussian,
        IsotropicGaussian,
        MomentPosterior,
        Moments,
        Tweedie,
        calibrate,
    )
    from egd.rules import Additive, GradientClip, Interval, Rescaled, Scheduled
    from egd.samplers import (
        ancestral,
        ddim,
        dpm_solver_pp_1,
        dpm_solver_pp_2m,
        dpm_solver_pp_3m,
        euler,
        heun,
        initial_noise,
    )
    from egd.schedules import EDM, VE, Diffusers, FlowMatching, VPCosine, VPLinear, from_diffusers, time_grid
    from egd.selection import best_of, energy_weights, softmax_resample
    from egd.training.learners import DenoiserLearner, EnergyLearner, Fit
    from egd.wrappers import ClassifierFree, Clip, DynamicThreshold, Inpaint

_HOME = {
    "egd.denoisers": ("NetworkDenoiser", "convert", "diffuse", "prediction_loss", "prediction_target", "score"),
    "egd.energies": (
        "DPS",
        "EssBlend",
        "FirstOrder",
        "MixtureFit",
        "MonteCarlo",
        "SecondOrder",
        "SigmaPoints",
        "Sum",
        "SupportSamples",
    ),
    "egd.guidance": ("guide",),
    "egd.mixtures": ("GaussianMixture", "Quadratic"),
    "egd.networks.mlp": ("EnergyMLP", "NoiseMLP"),
    "egd.objectives": ("CEP", "MSE", "Analytic", "ExpMSE", "Ratio"),
    "egd.particles": ("Particles", "smc"),
    "egd.pipelines.guided": ("EnergyGuidedPipeline",),
    "egd.posteriors": (
        "DiagonalGaussian",
        "FullGaussian",
        "IsotropicGaussian",
        "MomentPosterior",
        "Moments",
        "Tweedie",
        "calibrate",
    ),
    "egd.rules": ("Additive", "GradientClip", "Interval", "Rescaled", "Scheduled"),
    "egd.samplers": (
        "ancestral",
        "ddim",
        "dpm_solver_pp_1",
        "dpm_solver_pp_2m",
        "dpm_solver_pp_3m",
        "euler",
        "heun",
        "initial_noise",
    ),
    "egd.schedules": ("EDM", "VE", "Diffusers", "FlowMatching", "VPCosine", "VPLinear", "from_diffusers", "time_grid"),
    "egd.selection": ("best_of", "energy_weights", "softmax_resample"),
    "egd.networks.temporal": ("TemporalEnergy", "TemporalUNet"),
    "egd.training.learners": ("DenoiserLearner", "EnergyLearner", "Fit"),
    "egd.wrappers": ("ClassifierFree", "Clip", "DynamicThreshold", "Inpaint"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "CEP",
    "DPS",
    "EDM",
    "MSE",
    "VE",
    "Additive",
    "Analytic",
    "ClassifierFree",
    "Clip",
    "DenoiserLearner",
    "DiagonalGaussian",
    "Diffusers",
    "DynamicThreshold",
    "EnergyGuidedPipeline",
    "EnergyLearner",
    "EnergyMLP",
    "EssBlend",
    "ExpMSE",
    "FirstOrder",
    "Fit",
    "FlowMatching",
    "FullGaussian",
    "GaussianMixture",
    "GradientClip",
    "Inpaint",
    "Interval",
    "IsotropicGaussian",
    "MixtureFit",
    "MomentPosterior",
    "Moments",
    "MonteCarlo",
    "NetworkDenoiser",
    "NoiseMLP",
    "Particles",
    "Quadratic",
    "Ratio",
    "Rescaled",
    "Scheduled",
    "SecondOrder",
    "SigmaPoints",
    "Sum",
    "SupportSamples",
    "TemporalEnergy",
    "TemporalUNet",
    "Tweedie",
    "VPCosine",
    "VPLinear",
    "ancestral",
    "best_of",
    "calibrate",
    "convert",
    "ddim",
    "diffuse",
    "dpm_solver_pp_1",
    "dpm_solver_pp_2m",
    "dpm_solver_pp_3m",
    "energy_weights",
    "euler",
    "from_diffusers",
    "guide",
    "heun",
    "initial_noise",
    "prediction_loss",
    "prediction_target",
    "score",
    "smc",
    "softmax_resample",
    "time_grid",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module 'egd' has no attribute '{name}'")
