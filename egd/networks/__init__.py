"""Networks: dense, temporal, and ensembles of them."""

from egd.networks.mlp import EnergyMLP, EnergyNetwork, LayerNorm, NoiseMLP, mlp
from egd.networks.temporal import TemporalEnergy, TemporalUNet

__all__ = ["EnergyMLP", "EnergyNetwork", "LayerNorm", "NoiseMLP", "TemporalEnergy", "TemporalUNet", "mlp"]
