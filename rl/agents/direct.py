"""Agents whose policy is one network: no diffusion, one forward pass an action."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rl.agents.base import Act, Agent
from rl.parts.actors import Actor
from rl.parts.guided_policy import Randomness


class DirectAgent(Agent):
    """Acts by the mean of its ``actor``."""

    actor: Actor

    def policy(self, name: str, scales: Sequence[float], randomness: Randomness) -> Act:
        """The mean; nothing random about it."""

        @torch.no_grad()
        def act(states: Tensor, which: Tensor) -> Tensor:
            return self.actor.mean(states)

        return act

    def modules(self) -> dict[str, nn.Module]:
        """The actor."""
        return {"actor": self.actor}
