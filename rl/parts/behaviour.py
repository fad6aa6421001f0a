"""The behaviour policy as a diffusion model of actions given states: what every diffusion method here starts from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from egd.config.catalogue import SCHEDULES
from egd.config.components import Spec, build
from egd.config.trial import Trial
from egd.denoisers import NetworkDenoiser
from egd.errors import UserError
from egd.schedules import time_grid
from egd.training.learners import DenoiserLearner, Fit
from egd.types import Denoiser, Schedule
from egd.wrappers import Clip
from rl.data.transitions import OfflineData
from rl.parts.guided_policy import ActionSampler, Randomness
from rl.runs.config import DiffusionConfig


def make_schedule(spec: Spec) -> Schedule:
    """The recipe's schedule. UserError for one that does not exist or settings that it does not take."""
    try:
        schedule: Schedule = build(SCHEDULES, spec, {}, "schedule")
    except (ValueError, UserError) as error:
        raise UserError(str(error), key=getattr(error, "key", None) or "schedule") from None
    return schedule


def check_sampling(config: DiffusionConfig) -> None:
    """UserError for a schedule or a sampler that does not exist or does not fit."""
    schedule = make_schedule(config.schedule.spec)
    try:
        time_grid(schedule, 1, end=config.sampler.end, spacing=config.sampler.spacing)
    except ValueError as error:
        raise UserError(str(error), key="sampler") from None
    s = config.sampler
    Trial((2,), schedule, torch.zeros(2, 1)).sampler(Spec(s.name, s.model_extra or {}), s.chosen(), "sampler")


class Behaviour:
    """A noise model of the data's actions with its schedule and sampler. ``network`` is fresh."""

    def __init__(self, config: DiffusionConfig, data: OfflineData, network: nn.Module, device: torch.device) -> None:
        self.config, self.data = config, data
        d = config.denoiser
        self.schedule = make_schedule(config.schedule.spec)
        self.fit = Fit(network, lr=d.lr, steps=d.steps, decay=d.decay, ema=d.ema)
        times = time_grid(self.schedule, config.sampler.steps, end=config.sampler.end, spacing=config.sampler.spacing)
        event = tuple(data.transitions.action.shape[1:])
        self.sampler = ActionSampler(self.schedule, times.to(device), event, config.sampler.chosen())
        self.low, self.high = data.action_low, data.action_high

    def denoiser(self, clip: bool, straight_through: bool = False, *, in_training: bool = False) -> Denoiser:
        """E[x_0 | x_t, s], x_0 within the data's action range if ``clip``; of the weights that are being trained, not of their
        average, if ``in_training``.
        """
        network = self.fit.module if in_training else self.fit.model
        plain = NetworkDenoiser(network, self.schedule, self.config.denoiser.prediction)
        return Clip(plain, self.low, self.high, straight_through) if clip else plain

    def learner(self) -> DenoiserLearner:
        """What trains it."""
        d = self.config.denoiser
        return DenoiserLearner(self.fit, self.schedule, self.sample, batch=d.batch, prediction=d.prediction)

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n actions of the data and their states."""
        batch = self.data.sample(n, generator)
        return batch.action, batch.state

    @torch.no_grad()
    def actions(self, states: Tensor, k: int, generator: Randomness, clip: bool = False) -> Tensor:
        """K actions in every state, all N x K in one batch: (N, S) -> (N, K, A)"""
        tiled = states.repeat_interleave(k, 0)
        return self.sampler.draw(self.denoiser(clip), tiled, len(tiled), generator).reshape(len(states), k, -1)
