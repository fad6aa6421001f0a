"""Gaussians that approximate q(x_0 | x_t): one estimator a file, each found by its name in a recipe."""

from egd.posteriors.averaged import MomentPosterior, posterior1, posterior2, residual
from egd.posteriors.base import DiagonalGaussian, FullGaussian, IsotropicGaussian
from egd.posteriors.exact import ExactPosterior
from egd.posteriors.moments import Moments, calibrate
from egd.posteriors.tweedie import Tweedie

__all__ = [
    "DiagonalGaussian",
    "ExactPosterior",
    "FullGaussian",
    "IsotropicGaussian",
    "MomentPosterior",
    "Moments",
    "Tweedie",
    "calibrate",
    "posterior1",
    "posterior2",
    "residual",
]
