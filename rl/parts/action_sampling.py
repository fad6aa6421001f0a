"""Guided sampling of one action per state."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from egd.energies.base import prepare
from egd.errors import UserError
from egd.guidance import guide
from egd.particles import smc
from egd.samplers import dpm_solver_pp_2m, initial_noise
from egd.selection import best_of, energies_of, softmax_resample
from egd.training.precision import quick_products
from egd.types import Context, Denoiser, Energy, GuidanceRule, Sampler, Schedule, TimedEnergy
from rl.config import Selection


@dataclass
class GivenNoise:
    """Standard normal ``noise`` (N, M, E) in place of a generator: M draws for each of N states, used in order; ``used`` counts
    them.
    """

    noise: Tensor
    used: int = 0

    def take(self, n: int) -> Tensor:
        """Return the next n / N draws of every state, those of a state in consecutive rows: (n, A)."""
        first, self.used = self.used, self.used + n // len(self.noise)
        return self.noise[:, first : self.used].flatten(0, 1)


Randomness: TypeAlias = torch.Generator | GivenNoise


def generator_for(selection: str, randomness: Randomness) -> torch.Generator:
    """Return the generator for a selection that draws random numbers. Raises UserError where noise is given instead."""
    if isinstance(randomness, GivenNoise):
        raise UserError(
            f"selection '{selection}' draws random numbers that are not normal; with noise given, use selection 'best'"
        )
    return randomness


@dataclass(frozen=True)
class ActionSampler:
    """Reverse process with its times, which draws samples of the shape ``event``: (A,) for actions."""

    schedule: Schedule
    times: Tensor
    event: tuple[int, ...]
    sampler: Sampler = dpm_solver_pp_2m

    def draw(self, denoiser: Denoiser, c: Context, n: int, generator: Randomness, temperature: float = 1.0) -> Tensor:
        """Draw n samples, one per row of c: (n, *event); the initial noise is scaled by ``temperature``."""
        with quick_products(self.times.device, n):
            if isinstance(generator, GivenNoise):
                noise = self.schedule.sigma(self.times[0]) * generator.take(n).reshape(n, *self.event)
                return self.sampler(denoiser, self.schedule, temperature * noise, self.times, c)
            noise = initial_noise(self.schedule, (n, *self.event), self.times[0], generator)
            return self.sampler(denoiser, self.schedule, temperature * noise, self.times, c, generator=generator)


@dataclass(frozen=True)
class BehaviourSupport:
    """Sampler of K actions of the behaviour policy for every state, all N x K in one batch: (N, S), K -> (N, K, A)."""

    sampler: ActionSampler
    denoiser: Denoiser
    generator: Randomness

    def __call__(self, c: Context, k: int) -> Tensor:
        """Draw K actions for every state: (N, S) -> (N, K, A)."""
        assert isinstance(c, Tensor)  # states
        drawn = self.sampler.draw(self.denoiser, c.repeat_interleave(k, 0), len(c) * k, self.generator)
        return drawn.reshape(len(c), k, *drawn.shape[1:])


@dataclass(frozen=True)
class Choice:
    """Choice of one of ``candidates``.

    One is kept: the best by ``energy``; one drawn by softmax(-beta energy); one drawn by the weights tau where the energy is V
    - Q <= 0 and 1 - tau elsewhere, with IQL's ``expectile`` as tau; or one of as many particles of a sequential Monte Carlo
    run, for which ``variance`` is that of x_0 over t.
    """

    energy: Energy
    beta: float
    candidates: int
    selection: Selection | Literal["expectile"]
    variance: Callable[[Tensor], Tensor] = torch.ones_like
    expectile: float = 0.5

    def of(self, actions: Tensor, state: Tensor, randomness: Randomness) -> Tensor:
        """Choose one action per state: (N, K, A), (N, S) -> (N, A)."""
        if self.selection == "best":
            return best_of(actions, self.energy, state)
        generator = generator_for(self.selection, randomness)
        if self.selection == "expectile":
            odds = math.log(self.expectile / (1 - self.expectile))
            of_weights = torch.where(energies_of(actions, self.energy, state) <= 0, -odds, 0.0)
            return softmax_resample(actions, of_weights, 1.0, 1, generator=generator)[:, 0]
        return softmax_resample(actions, self.energy, self.beta, 1, c=state, generator=generator)[:, 0]


@dataclass(frozen=True)
class GuidedSampling:
    """Policy by guided sampling; without an energy, the behaviour policy.

    ``rule`` holds the guidance scale, one for each of N K rows if it is a tensor; ``bounds`` (A,) are those of samples;
    ``temperature`` scales the initial noise.
    """

    sampler: ActionSampler
    denoiser: Denoiser
    generator: Randomness
    timed_energy: TimedEnergy | None = None
    rule: GuidanceRule | None = None
    choice: Choice | None = None
    bounds: tuple[Tensor, Tensor] | None = None
    temperature: float = 1.0

    def __call__(self, state: Tensor) -> Tensor:
        """Draw an action in every standardised state: (N, S) -> (N, A)."""
        choice = self.choice if self.choice is not None and self.choice.candidates > 1 else None
        if choice is not None and choice.selection == "smc":
            return self._bounded(self._particles(state, choice))
        k = 1 if choice is None else choice.candidates
        states = state.repeat_interleave(k, 0)
        drawn = self.sampler.draw(self._denoiser(states), states, len(states), self.generator, self.temperature)
        actions = self._bounded(drawn)
        if choice is None:
            return actions
        return choice.of(actions.reshape(len(state), k, *actions.shape[1:]), state, self.generator)

    def _particles(self, state: Tensor, choice: Choice) -> Tensor:
        """Draw one of the weighted particles of every state, (N, A)."""
        s, generator = self.sampler, generator_for(choice.selection, self.generator)
        noise = initial_noise(s.schedule, (len(state), choice.candidates, *s.event), s.times[0], generator)
        timed = self.timed_energy or (lambda x, t, c: 0 * x.flatten(1).sum(1))  # unguided: the weights come at the end
        particles = smc(
            self.denoiser,
            s.schedule,
            noise,
            s.times,
            state,
            energy=choice.energy,
            beta=choice.beta,
            timed_energy=timed,
            rule=self.rule,
            variance=choice.variance,
            generator=generator,
        )
        return particles.draw(1, generator=generator)[:, 0]

    def _bounded(self, actions: Tensor) -> Tensor:
        return actions if self.bounds is None else actions.clamp(*self.bounds)

    def _denoiser(self, states: Tensor) -> Denoiser:
        if self.timed_energy is None or self.rule is None:
            return self.denoiser
        guided = guide(self.denoiser, prepare(self.timed_energy, states), self.rule, self.sampler.schedule)
        if self.bounds is None:
            return guided
        return lambda x, t, c: self._bounded(guided(x, t, c))
