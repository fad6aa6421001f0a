"""The policy: guided sampling of one action a state."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from egd.energies.base import prepare
from egd.guidance import guide
from egd.samplers import dpm_solver_pp_2m, initial_noise
from egd.selection import best_of
from egd.types import Context, Denoiser, Energy, GuidanceRule, Schedule, TimedEnergy
from egd.types import Sampler as Walk


@dataclass(frozen=True)
class Sampler:
    """The reverse process with its times, drawing actions of ``dim`` entries."""

    schedule: Schedule
    times: Tensor
    dim: int
    walk: Walk = dpm_solver_pp_2m

    def draw(self, denoiser: Denoiser, c: Context, n: int, generator: torch.Generator) -> Tensor:
        """n samples, one a row of c: (n, dim)."""
        noise = initial_noise(self.schedule, (n, self.dim), self.times[0], generator)
        return self.walk(denoiser, self.schedule, noise, self.times, c, generator=generator)


@dataclass(frozen=True)
class BehaviourSupport:
    """K samples of the behaviour policy for every state, all N x K in one batch: (N, S), K -> (N, K, A)."""

    sampler: Sampler
    denoiser: Denoiser
    generator: torch.Generator

    def __call__(self, c: Context, k: int) -> Tensor:
        """(N, S) -> (N, K, A)"""
        assert isinstance(c, Tensor)  # states
        drawn = self.sampler.draw(self.denoiser, c.repeat_interleave(k, 0), len(c) * k, self.generator)
        return drawn.reshape(len(c), k, -1)


@dataclass(frozen=True)
class GuidedPolicy:
    """Actions by guided sampling; without an energy, the behaviour policy.

    ``rule`` must hold its guidance scale; ``low`` and ``high`` (A,) bound the samples when ``clip``.
    """

    sampler: Sampler
    denoiser: Denoiser
    generator: torch.Generator
    timed_energy: TimedEnergy | None = None
    rule: GuidanceRule | None = None
    energy: Energy | None = None
    candidates: int = 1
    bounds: tuple[Tensor, Tensor] | None = None

    def __call__(self, state: Tensor) -> Tensor:
        """(N, S) standardised -> (N, A)"""
        states = state.repeat_interleave(self.candidates, 0)
        actions = self.sampler.draw(self._denoiser(states), states, len(states), self.generator)
        if self.bounds is not None:
            actions = actions.clamp(*self.bounds)
        if self.candidates == 1 or self.energy is None:
            return actions
        return best_of(actions.reshape(len(state), self.candidates, -1), self.energy, state)

    def _denoiser(self, states: Tensor) -> Denoiser:
        if self.timed_energy is None or self.rule is None:
            return self.denoiser
        guided = guide(self.denoiser, prepare(self.timed_energy, states), self.rule, self.sampler.schedule)
        if self.bounds is None:
            return guided
        low, high = self.bounds
        return lambda x, t, c: guided(x, t, c).clamp(low, high)
