"""Generated transitions of an unguided diffusion model, checked before they are used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from egd.bounds import Layers, NotNegative, Rate, SamplerSteps, Samples, Steps
from egd.config.base import ComponentConfig
from egd.denoisers import NetworkDenoiser, Prediction
from egd.errors import UserError
from egd.networks.mlp import NoiseMLP
from egd.runs.phases import Phase
from egd.samplers.base import initial_noise
from egd.schedules import Spacing, time_grid
from egd.training.learners import DenoiserLearner, Fit, Metrics, train
from egd.training.times import LogNormalTimes
from egd.types import Denoiser
from rl.data.transitions import Batch, drawn
from rl.online import terminations
from rl.online.generators.base import Generator, GeneratorContext
from rl.online.replay import Replay
from rl.online.replay_mixture import ReplayMixture, Share
from rl.online.transition_codec import TerminalModel, TransitionCodec
from rl.parts.behaviour import make_schedule
from rl.runs.config import DenoiserConfig, SamplerConfig
from rl.tasks import Task

__all__ = ["Diffusion"]

ROWS = 2048  # sampled at a time
SCHEDULE = ComponentConfig(name="edm")


class ModelConfig(DenoiserConfig):
    """The network of the model; ``steps`` offline, before the first refresh."""

    prediction: Prediction = "v_prediction"
    blocks: Layers = 4
    steps: Steps = 20_000
    lr: Rate = 1e-3


class StepsConfig(SamplerConfig):
    """Uniform in the schedule's time, which is Karras' spacing for EDM's."""

    steps: SamplerSteps = 20
    spacing: Spacing = "time"


MODEL, SAMPLER = ModelConfig(), StepsConfig()


class Diffusion(Generator):
    """One unconditional diffusion over whole transitions (s, a, r, s', terminal), as SynthER (arXiv:2303.06614) has it:
    learned offline, and at every refresh for ``refresh_steps`` more on offline and online transitions, with a learning rate
    that begins anew; then ``samples`` are drawn in place of those of the last refresh. ``online_share`` is that of online
    transitions among those it learns from; by default they are drawn alike, as SynthER's are.

    The default schedule is EDM's with its distribution of noise levels; a network that predicts v under it is EDM's
    preconditioned one for data of unit variance (arXiv:2206.00364, Table 1). ``warm_start: false`` begins each refresh with a
    fresh network, as EDIS's code does. Actions are clipped to [-1, 1]; rows that are not finite, or further from the range of
    the data than ``reach`` of its width, are rejected and drawn again from the others: ``rejected`` is their share.
    """

    def __init__(
        self,
        world: GeneratorContext,
        *,
        schedule: ComponentConfig = SCHEDULE,
        denoiser: ModelConfig = MODEL,
        sampler: StepsConfig = SAMPLER,
        refresh_steps: Steps = 500,
        samples: Samples = 20_000,
        terminal: TerminalModel = "generated",
        warm_start: bool = True,
        reach: NotNegative = 0.1,
        online_share: Share | None = None,
    ) -> None:
        self.world, self.settings, self.sampler, self.samples = world, denoiser, sampler, samples
        self.refresh_steps, self.warm_start, self.reach = refresh_steps, warm_start, reach
        self.schedule_name, self.schedule = schedule, make_schedule(schedule.spec)
        data = world.data.transitions
        rule = terminations.rule(world.task, world.data) if terminal == "computed" else None
        self.vectors = TransitionCodec(data, terminal, rule)
        self.pool = ReplayMixture(data, self.vectors, online_share)
        self.fit = self._fit(world.fresh("generator", self._network), denoiser.steps)
        self.rows = data[torch.zeros(0, dtype=torch.long, device=data.reward.device)]
        self.refreshes = 0

    @classmethod
    def check(cls, settings: Mapping[str, Any], task: Task) -> None:
        """UserError for a schedule or a sampler that does not fit, and for a rule of terminal states that is not known."""
        schedule = make_schedule(ComponentConfig.model_validate(settings.get("schedule", "edm")).spec)
        sampler = StepsConfig.model_validate(settings.get("sampler", SAMPLER))
        try:
            LogNormalTimes(schedule)
            time_grid(schedule, 1, end=sampler.end, spacing=sampler.spacing)
        except ValueError as error:
            raise UserError(str(error), key="online.generator") from None
        sampler.chosen()
        if settings.get("terminal") == "computed":
            terminations.known(task)

    def _network(self) -> nn.Module:
        return NoiseMLP(self.vectors.size, width=self.settings.width, blocks=self.settings.blocks)

    def _fit(self, network: nn.Module, steps: int) -> Fit:
        d = self.settings
        return Fit(network, lr=d.lr, steps=steps, decay=d.decay, ema=d.ema)

    # -- learning ------------------------------------------------------------------------------------------------

    def phases(self) -> list[Phase]:
        """On the offline data; the same for every generator with this model."""
        if not self.warm_start:
            return []
        settings = {
            "schedule": self.schedule_name.model_dump(mode="json"),
            "denoiser": self.settings.model_dump(mode="json"),
            "terminal": self.vectors.terminal == "generated",
        }
        learner = self._learner(self.fit)
        return [self.world.phase("generator", self.settings.steps, learner, settings, owners=[self])]

    def _learner(self, fit: Fit) -> DenoiserLearner:
        d, times, pool = self.settings, LogNormalTimes(self.schedule), self.pool

        def sample(n: int, generator: torch.Generator) -> tuple[Tensor, None]:
            return pool.draw(n, generator), None

        return DenoiserLearner(fit, self.schedule, sample, batch=d.batch, prediction=d.prediction, times=times)

    def refresh(self, online: Replay, generator: torch.Generator) -> Metrics:
        """Learn on, and sample anew."""
        self.pool.take(online)
        metrics = self._learn(generator)
        denoiser, more = self.denoiser(online, generator)
        self.refreshes += 1
        return metrics | more | self._fill(denoiser, generator)

    def _learn(self, generator: torch.Generator) -> Metrics:
        network = self.model if self.warm_start else self.world.fresh(f"generator/{self.refreshes}", self._network)
        self.fit = self._fit(network, self.refresh_steps)
        metrics = train(self._learner(self.fit), self.refresh_steps, generator)
        return {"generator_loss": metrics["loss"]} if metrics else {}

    @property
    def model(self) -> nn.Module:
        """The network to sample with."""
        return self.fit.model

    def plain(self) -> Denoiser:
        """D(x_t, t), unguided."""
        return NetworkDenoiser(self.model, self.schedule, self.settings.prediction)

    def denoiser(self, online: Replay, generator: torch.Generator) -> tuple[Denoiser, Metrics]:
        """The one to sample with, and what there is to say of it."""
        return self.plain(), {}

    # -- sampling ------------------------------------------------------------------------------------------------

    def draw(self, denoiser: Denoiser, n: int, generator: torch.Generator) -> Tensor:
        """Vectors (n, D)."""
        s = self.sampler
        times = time_grid(self.schedule, s.steps, end=s.end, spacing=s.spacing).to(generator.device)
        sampler, found = s.chosen(), []
        for size in [ROWS] * (n // ROWS) + [n % ROWS] * (n % ROWS > 0):
            noise = initial_noise(self.schedule, (size, self.vectors.size), times[0], generator)
            found.append(sampler(denoiser, self.schedule, noise, times, generator=generator))
        return torch.cat(found)

    def _fill(self, denoiser: Denoiser, generator: torch.Generator) -> Metrics:
        x = self.draw(denoiser, self.samples, generator)
        low, high = self.pool.range()
        room = self.reach * (high - low).clamp(min=1)  # a coordinate may be constant
        inside = (x >= low - room) & (x <= high + room)
        inside[:, self.vectors.bounded] = True
        good = inside.all(1) & x.isfinite().all(1)
        if not good.any():
            raise UserError(
                "no generated transition is finite and in the range of the data; lower omega, or raise refresh_steps or reach",
                key="online.generator",
            )
        rows = self.vectors.decode(torch.where(good[:, None], x, drawn(x[good], len(x), generator)))
        clipped = rows.action.abs() > 1
        self.rows = Batch(rows.state, rows.action.clamp(-1, 1), rows.reward, rows.next_state, rows.terminal)
        return {
            "rejected": 1 - good.float().mean(),
            "clipped": clipped.float().mean(),
            "generated_terminal": rows.terminal.mean(),
        }

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """n of the transitions of the last refresh."""
        return drawn(self.rows, n, generator)

    # -- keeping -------------------------------------------------------------------------------------------------

    def modules(self) -> dict[str, nn.Module]:
        """The model."""
        return {"model": self.model}

    def kept(self) -> dict[str, Tensor]:
        """The generated transitions."""
        rows = {name: getattr(self.rows, name) for name in Batch.__dataclass_fields__}
        return rows | {"refreshes": torch.tensor(self.refreshes)}

    def keep(self, kept: Mapping[str, Tensor]) -> None:
        """The inverse of ``kept``."""
        self.refreshes = int(kept["refreshes"])
        self.rows = Batch(*(kept[name] for name in Batch.__dataclass_fields__))
