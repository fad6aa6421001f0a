"""Objectives of energy networks that are built when what they need is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from egd.config.catalogue import OBJECTIVES
from egd.config.components import build
from egd.objectives.base import is_dimensionless
from egd.training import batched
from egd.training.learners import Metrics
from egd.types import Context, TimedEnergy
from rl.parts.guidance import group_size

if TYPE_CHECKING:
    from rl.agents.guided import GuidedAgent


class LateObjective:
    """An objective built at its first use after a calibration: it needs the variances that the calibration finds."""

    def __init__(self, agent: GuidedAgent, name: str) -> None:
        self.agent, self.name, self.guidance = agent, name, agent.config.guidances[name]
        guidance = self.guidance
        self._built: tuple[int, torch.Generator, Any] | None = None
        component = OBJECTIVES.find(guidance.energy.name, "guidance.energy")
        self.dimensionless: bool = is_dimensionless(component)
        if hasattr(component, "targets"):
            self.targets = self._targets

    def loss_networks(self) -> dict[str, nn.Module]:
        """What the energy, the posterior and the denoiser read."""
        return self.agent.loss_networks()

    def _objective(self, generator: torch.Generator) -> Any:
        if batched.inside():  # made of the tensors of all runs: for this call alone
            return self._make(generator, beta=self.agent.beta(self.name))
        version = self.agent.calibration.version
        if self._built is None or self._built[0] != version or self._built[1] is not generator:
            self._built = version, generator, self._make(generator)
        return self._built[2]

    def _make(self, generator: torch.Generator, **instead: Any) -> Any:
        grouped = {"support": None} if group_size(self.guidance) else {}  # the batch comes in groups already
        parts = self.agent.parts(self.guidance, generator) | grouped | instead
        return build(OBJECTIVES, self.guidance.energy.spec, parts, "guidance.energy")

    def _targets(self, x0: Tensor, x: Tensor, t: Tensor, c: Context) -> Tensor:
        """Of the objective, with random numbers that are the same at every call."""
        targets: Tensor = self._objective(torch.Generator(self.agent.device)).targets(x0, x, t, c)
        return targets

    def loss(
        self, network: TimedEnergy, x0: Tensor, x: Tensor, t: Tensor, c: Context, generator: torch.Generator
    ) -> tuple[Tensor, Metrics]:
        """Of the objective."""
        loss: tuple[Tensor, Metrics] = self._objective(generator).loss(network, x0, x, t, c, generator)
        return loss
