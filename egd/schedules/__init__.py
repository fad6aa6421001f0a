"""Noise schedules: alpha(t), sigma(t), and for most the way back from log-SNR. Data at t = 0, noise at t = 1. One a file,
found by name.
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
