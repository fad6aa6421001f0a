"""Objectives that train an intermediate energy E_Theta(x_t, t, c): one a file, each found by its name in a recipe."""

from egd.objectives.analytic import Analytic
from egd.objectives.mse import MSE

__all__ = ["MSE", "Analytic"]
