"""QGPO: contrastive energy prediction."""

from __future__ import annotations

from typing import ClassVar

from egd.config.base import ComponentConfig
from rl.agents.guided import GuidedAgent
from rl.runs.config import CriticConfig, EnergyNetworkConfig, GuidanceConfig, GuidedConfig


class QGPOConfig(GuidedConfig):
    """Of a guided agent, with what QGPO has in other places than AEPO."""

    agent: str = "qgpo"
    critic: CriticConfig = CriticConfig(name="isql")
    energy_network: EnergyNetworkConfig = EnergyNetworkConfig(layers=4, batch=4096)
    """256 states of 16 actions."""
    guidance: GuidanceConfig = GuidanceConfig(energy=ComponentConfig(name="cep"), clip_x0=False)


class QGPO(GuidedAgent):
    """QGPO (arXiv:2304.12824): behaviour diffusion, support actions drawn from it for every state, in-support softmax
    Q-learning on them, an energy network by contrastive energy prediction on them, guided sampling.
    """

    Config: ClassVar[type[GuidedConfig]] = QGPOConfig
