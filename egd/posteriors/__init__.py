"""Posterior estimators: which Gaussian stands for q(x_0 | x_t)? ``moments`` estimates variances that depend on t alone."""

from egd.posteriors.base import IsotropicGaussian
from egd.posteriors.moments import MomentPosterior, Moments, calibrate

__all__ = ["IsotropicGaussian", "MomentPosterior", "Moments", "calibrate"]
