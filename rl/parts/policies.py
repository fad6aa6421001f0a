"""Policies by which an agent acts, each under its own name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from typing_extensions import override

from egd.types import Denoiser
from rl.parts.action_sampling import ActionSampler, Choice, GuidedSampling, Randomness
from rl.parts.actors import Actor
from rl.parts.base import Part

Act: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Returns actions (n, A) for (standardised states (n, S), scale_index (n,)), row i at the scale of its index."""


class AgentPolicy(ABC):
    """Policy of an agent; ``part`` is the last of the parts it depends on, and ``scale`` is its own guidance scale."""

    part: Part
    scale: float | None = None

    def scales(self, only: Sequence[float] | None = None) -> list[float] | None:
        """Return the guidance scales of an evaluation, ``only`` these if given; [] for a policy without any.

        Returns None where the policy equals the behaviour policy at every scale.
        """
        return []

    def networks(self) -> dict[str, nn.Module]:
        """Return, by name, the networks that the policy evaluates; {} where it may evaluate those of all parts."""
        return {}

    @abstractmethod
    def act(self, scales: Sequence[float], randomness: Randomness) -> Act:
        """Return the function that acts; row i of its states has its own one of ``scales``."""


class ActorPolicy(AgentPolicy):
    """Policy that acts by the mean of an actor, without random numbers."""

    def __init__(self, part: Part, actor: Actor) -> None:
        self.part, self.actor = part, actor

    @override
    def networks(self) -> dict[str, nn.Module]:
        return {"actor": self.actor}

    @override
    def act(self, scales: Sequence[float], randomness: Randomness) -> Act:
        @torch.no_grad()
        def act(states: Tensor, scale_index: Tensor) -> Tensor:
            return self.actor.mean(states)

        return act


class SampledPolicy(AgentPolicy):
    """Policy that acts by samples of a diffusion model: one per state, or one of several by a ``choice``; within ``bounds``, if
    given.
    """

    def __init__(
        self,
        part: Part,
        sampler: ActionSampler,
        denoiser: Denoiser,
        *,
        bounds: tuple[Tensor, Tensor] | None = None,
        choice: Choice | None = None,
        temperature: float = 1.0,
    ) -> None:
        self.part, self.sampler, self.denoiser = part, sampler, denoiser
        self.bounds, self.choice, self.temperature = bounds, choice, temperature

    @override
    def act(self, scales: Sequence[float], randomness: Randomness) -> Act:
        bounds, choice, temperature = self.bounds, self.choice, self.temperature
        policy = GuidedSampling(self.sampler, self.denoiser, randomness, choice=choice, bounds=bounds, temperature=temperature)
        return lambda states, scale_index: policy(states)
