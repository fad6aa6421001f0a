"""Objectives that train an intermediate energy E_Theta(x_t, t, c): one a file, each found by its name in a recipe."""

from egd.objectives.analytic import Analytic
from egd.objectives.cep import CEP
from egd.objectives.exp_mse import ExpMSE
from egd.objectives.mse import MSE
from egd.objectives.ratio import Ratio

__all__ = ["CEP", "MSE", "Analytic", "ExpMSE", "Ratio"]
