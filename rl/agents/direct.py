"""Agents whose policy is one network: no diffusion, one forward pass an action."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from typing_extensions import override

from rl.agents.base import Agent
from rl.parts.actors import Actor
from rl.parts.policies import AgentPolicy, Direct


class DirectAgent(Agent):
    """Acts by the mean of its ``actor``, which the last of its parts trains."""

    actor: Actor

    @override
    def named_policies(self) -> Mapping[str, AgentPolicy]:
        return {"policy": Direct(self.parts()[-1], self.actor)}

    @override
    def modules(self) -> dict[str, nn.Module]:
        return {"actor": self.actor}
