"""Noise schedules alpha(t), sigma(t), data at t = 0 and noise at t = 1; most have the inverse of log-SNR, ``time``.

Each is one file, and is found by its name.
"""

from egd.schedules.diffusers import Diffusers, from_diffusers
from egd.schedules.edm import EDM
from egd.schedules.flow_matching import FlowMatching
from egd.schedules.grid import Spacing, log_snr, time_grid
from egd.schedules.ve import VE
from egd.schedules.vp_cosine import VPCosine
from egd.schedules.vp_linear import VPLinear

__all__ = [
    "EDM",
    "VE",
    "Diffusers",
    "FlowMatching",
    "Spacing",
    "VPCosine",
    "VPLinear",
    "from_diffusers",
    "log_snr",
    "time_grid",
]
