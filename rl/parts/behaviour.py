"""Behaviour policy as a diffusion model of actions given states, from which every diffusion method here starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from egd.config.catalogue import make_schedule
from egd.config.components import Spec
from egd.config.sections import DenoiserConfig
from egd.config.trial import Trial
from egd.denoisers import NetworkDenoiser
from egd.errors import UserError
from egd.networks.mlp import NoiseMLP
from egd.schedules import time_grid
from egd.training.learners import DenoiserLearner, Fit
from egd.types import Denoiser
from egd.wrappers import Clip
from rl.config import DiffusionConfig
from rl.parts.action_sampling import ActionSampler, Choice, Randomness
from rl.parts.base import Part, RunContext
from rl.parts.policies import SampledPolicy


def check_sampling(config: DiffusionConfig) -> None:
    """Raise UserError for a schedule or a sampler that does not exist or does not fit."""
    schedule = make_schedule(config.schedule.spec)
    try:
        time_grid(schedule, 1, end=config.sampler.end, spacing=config.sampler.spacing)
    except ValueError as error:
        raise UserError(str(error), key="sampler") from None
    s = config.sampler
    Trial((2,), schedule, torch.zeros(2, 1)).sampler(Spec(s.name, s.model_extra or {}), s.chosen(), "sampler")


class Behaviour(Part):
    """Diffusion model of the data's actions with its schedule and sampler, trained on the denoising loss."""

    name = "denoiser"
    seeded = "denoiser"
    """Name that seeds the network's initial weights."""
    members: Sequence[str] = ("state", "action")
    sections: ClassVar[set[str]] = {"schedule", "denoiser"}
    """Sections of the recipe that the weights depend on."""

    def __init__(self, context: RunContext, config: DiffusionConfig, network: Callable[[], nn.Module] | None = None) -> None:
        self.config, self.data = config, context.data
        d, make = config.denoiser, partial(noise_model, config.denoiser, context)
        self.steps, self.settings = d.steps, config.model_dump(mode="json", include=self.sections)
        self.schedule = make_schedule(config.schedule.spec)
        self.fit = Fit(context.fresh(self.seeded, network or make), lr=d.lr, steps=d.steps, decay=d.decay, ema=d.ema)
        times = time_grid(self.schedule, config.sampler.steps, end=config.sampler.end, spacing=config.sampler.spacing)
        self.sampler = ActionSampler(self.schedule, times.to(context.device), (context.actions,), config.sampler.chosen())
        self.low, self.high = self.data.action_low, self.data.action_high

    @cached_property
    @override
    def learner(self) -> DenoiserLearner:
        d = self.config.denoiser
        return DenoiserLearner(self.fit, self.schedule, self.sample, batch=d.batch, prediction=d.prediction)

    @override
    def networks(self) -> dict[str, nn.Module]:
        return {"noise": self.fit.model}

    def bounds(self, clip: bool) -> tuple[Tensor, Tensor] | None:
        """Return the range of samples if ``clip``, else None."""
        return (self.low, self.high) if clip else None

    def policy(self, clip: bool, *, choice: Choice | None = None, temperature: float = 1.0) -> SampledPolicy:
        """Return the policy that acts by samples of the model, with x_0 and actions within the data's range if ``clip``."""
        return SampledPolicy(
            self, self.sampler, self.denoiser(clip), bounds=self.bounds(clip), choice=choice, temperature=temperature
        )

    def denoiser(self, clip: bool, straight_through: bool = False, *, in_training: bool = False) -> Denoiser:
        """Return the denoiser E[x_0 | x_t, s], with x_0 within the data's action range if ``clip``.

        Its weights are the averaged ones, or those being trained if ``in_training``.
        """
        network = self.fit.module if in_training else self.fit.model
        plain = NetworkDenoiser(network, self.schedule, self.config.denoiser.prediction)
        return Clip(plain, self.low, self.high, straight_through) if clip else plain

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw n actions of the data, and return them with their states."""
        batch = self.data.sample(n, generator)
        return batch.action, batch.state

    @torch.no_grad()
    def actions(self, states: Tensor, k: int, generator: Randomness, clip: bool = False) -> Tensor:
        """Draw K actions in every state, all N x K in one batch: (N, S) -> (N, K, A)."""
        tiled = states.repeat_interleave(k, 0)
        return self.sampler.draw(self.denoiser(clip), tiled, len(tiled), generator).reshape(len(states), k, -1)

    def grouped(self, k: int, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw n rows of the data, or fewer so that k divides their number: groups of k actions in different states."""
        return self.sample(max(1, n // k) * k, generator)


def noise_model(config: DenoiserConfig, context: RunContext) -> NoiseMLP:
    """Return the network of a recipe's ``denoiser``, for actions given states."""
    return NoiseMLP(context.actions, context.states, width=config.width, blocks=config.blocks)
