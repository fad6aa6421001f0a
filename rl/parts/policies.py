"""Policies of an agent: what it acts by, each under a name of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from typing_extensions import override

from egd.types import Denoiser
from rl.parts.actors import Actor
from rl.parts.base import Part
from rl.parts.guided_policy import ActionSampler, Choice, GuidedPolicy, Randomness

Act: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(standardised states (n, S), scale_index (n,)) -> actions (n, A): row i is acted in at the scale of that index."""


class AgentPolicy(ABC):
    """A policy of an agent, which rests on parts of it; ``part`` is the last of them. ``scale`` is its own guidance scale."""

    part: Part
    scale: float | None = None

    def scales(self, only: Sequence[float] | None = None) -> list[float] | None:
        """Give the guidance scales at which it is evaluated, or of ``only`` these; [] where it has none.

        None: at no scale is it another policy than behaviour.
        """
        return []

    def networks(self) -> dict[str, nn.Module]:
        """Name the networks that it reads; {}: it may read those of all parts."""
        return {}

    @abstractmethod
    def act(self, scales: Sequence[float], randomness: Randomness) -> Act:
        """Make the function that acts, row i of its states at its own one of ``scales``."""


class Direct(AgentPolicy):
    """The mean of an actor; nothing is random about it."""

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


class Sampled(AgentPolicy):
    """Samples of a diffusion model: one a state, or one of several by a ``choice``; within ``bounds`` where there are any."""

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
        policy = GuidedPolicy(self.sampler, self.denoiser, randomness, choice=choice, bounds=bounds, temperature=temperature)
        return lambda states, scale_index: policy(states)
