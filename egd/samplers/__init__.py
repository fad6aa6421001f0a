"""Samplers: functions that take x from noise to data and need only a denoiser. Each is one file, and is found by its name."""

from egd.samplers.ancestral import ancestral
from egd.samplers.base import check_times, differentiable, initial_noise
from egd.samplers.choice import choose
from egd.samplers.ddim import ddim
from egd.samplers.dpm_solver_pp_1 import dpm_solver_pp_1
from egd.samplers.dpm_solver_pp_2m import dpm_solver_pp_2m
from egd.samplers.dpm_solver_pp_3m import dpm_solver_pp_3m
from egd.samplers.euler import euler
from egd.samplers.heun import heun

__all__ = [
    "ancestral",
    "check_times",
    "choose",
    "ddim",
    "differentiable",
    "dpm_solver_pp_1",
    "dpm_solver_pp_2m",
    "dpm_solver_pp_3m",
    "euler",
    "heun",
    "initial_noise",
]
