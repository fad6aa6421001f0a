"""Networks for flat and temporal events, and ensembles."""

from egd.networks.mlp import EnergyMLP, EnergyNetwork, LayerNorm, NoiseMLP, mlp
from egd.networks.temporal import TemporalEnergy, TemporalUNet

__all__ = ["EnergyMLP", "EnergyNetwork", "LayerNorm", "NoiseMLP", "TemporalEnergy", "TemporalUNet", "mlp"]
