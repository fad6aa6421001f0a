"""Diffusion model of whole transitions, and the transitions that it has generated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from egd.bounds import Layers, Rate, SamplerSteps, Steps
from egd.config.base import ComponentConfig
from egd.config.catalogue import make_schedule
from egd.config.sections import DenoiserConfig, SamplerConfig
from egd.denoisers import NetworkDenoiser, Prediction
from egd.errors import UserError
from egd.networks.mlp import NoiseMLP
from egd.samplers.base import initial_noise
from egd.schedules import Spacing, time_grid
from egd.training.learners import DenoiserLearner, Fit, Metrics, train
from egd.training.times import LogNormalTimes
from egd.types import Denoiser
from rl.data.transitions import Batch, drawn
from rl.online import terminations
from rl.online.generators.base import GeneratorContext
from rl.online.replay import Replay
from rl.online.replay_mixture import ReplayMixture
from rl.online.transition_codec import TerminalModel, TransitionCodec
from rl.parts.base import Part
from rl.tasks import Task

ROWS = 2048  # vectors sampled at a time
SCHEDULE = ComponentConfig(name="edm")


class ModelConfig(DenoiserConfig):
    """Settings of the model's network; ``steps`` are taken offline, before the first refresh."""

    prediction: Prediction = "v_prediction"
    blocks: Layers = 4
    steps: Steps = 20_000
    lr: Rate = 1e-3


class StepsConfig(SamplerConfig):
    """Settings of the sampler; its steps are uniform in the schedule's time, which for EDM is Karras' spacing."""

    steps: SamplerSteps = 20
    spacing: Spacing = "time"


MODEL, SAMPLER = ModelConfig(), StepsConfig()


class TransitionModel(Part):
    """Unconditional diffusion model q of x = (s, a, r, s', terminal), as in SynthER (arXiv:2303.06614).

    The default schedule is EDM's with its distribution of noise levels; a network that predicts v under it is EDM's
    preconditioned network for data of unit variance (arXiv:2206.00364, Table 1). ``online_share`` is the share of online
    transitions in ``mixture``, which the model learns from; by default all rows are equally likely, as in SynthER.
    """

    name = "generator"

    def __init__(
        self,
        context: GeneratorContext,
        *,
        schedule: ComponentConfig,
        denoiser: ModelConfig,
        sampler: StepsConfig,
        refresh_steps: int,
        samples: int,
        terminal: TerminalModel,
        warm_start: bool,
        reach: float,
        online_share: float | None,
    ) -> None:
        self.context, self.config, self.sampler, self.samples = context, denoiser, sampler, samples
        self.refresh_steps, self.warm_start, self.reach = refresh_steps, warm_start, reach
        self.steps, self.schedule = denoiser.steps, make_schedule(schedule.spec)
        self.settings = {
            "schedule": schedule.model_dump(mode="json"),
            "denoiser": denoiser.model_dump(mode="json"),
            "terminal": terminal == "generated",
        }
        data = context.data.transitions
        rule = terminations.rule(context.task, context.data) if terminal == "computed" else None
        self.codec = TransitionCodec(data, terminal, rule)
        self.settings = {
            "schedule": schedule.model_dump(mode="json"),
            "denoiser": denoiser.model_dump(mode="json"),
            "terminal": self.codec.terminal == "generated",
        }
        self.mixture = ReplayMixture(data, self.codec, online_share)
        self.fit = self._fit(context.fresh("generator", self._network), denoiser.steps)
        self.generated = data[torch.zeros(0, dtype=torch.long, device=data.reward.device)]
        self.refreshes = 0

    @staticmethod
    def check(settings: Mapping[str, Any], task: Task) -> None:
        """Raise UserError for an unsuitable schedule or sampler, and where the rule of terminal states is needed
        but not known.
        """
        schedule = make_schedule(ComponentConfig.model_validate(settings.get("schedule", SCHEDULE)).spec)
        sampler = StepsConfig.model_validate(settings.get("sampler", SAMPLER))
        try:
            LogNormalTimes(schedule)
            time_grid(schedule, 1, end=sampler.end, spacing=sampler.spacing)
        except ValueError as error:
            raise UserError(str(error), key="online.generator") from None
        sampler.chosen()
        if settings.get("terminal") == "computed":
            terminations.known(task)

    # -- learning ------------------------------------------------------------------------------------------------

    def parts(self) -> Sequence[Part]:
        """Return the model itself if it learns from the offline data; it is the same for every generator with this model."""
        return [self] if self.warm_start else []

    @cached_property
    @override
    def learner(self) -> DenoiserLearner:
        return self._learner(self.fit)

    def learn(self, online: Replay, generator: torch.Generator) -> Metrics:
        """Train the model further on offline and online transitions, with a restarted learning rate; return metrics."""
        self.mixture.take(online)
        network = self.fit.model if self.warm_start else self.context.fresh(f"generator/{self.refreshes}", self._network)
        self.fit = self._fit(network, self.refresh_steps)
        self.refreshes += 1
        metrics = train(self._learner(self.fit), self.refresh_steps, generator)
        return {"generator_loss": metrics["loss"]} if metrics else {}

    def _network(self) -> nn.Module:
        return NoiseMLP(self.codec.size, width=self.config.width, blocks=self.config.blocks)

    def _fit(self, network: nn.Module, steps: int) -> Fit:
        d = self.config
        return Fit(network, lr=d.lr, steps=steps, decay=d.decay, ema=d.ema)

    def _learner(self, fit: Fit) -> DenoiserLearner:
        d, times, mixture = self.config, LogNormalTimes(self.schedule), self.mixture

        def sample(n: int, generator: torch.Generator) -> tuple[Tensor, None]:
            return mixture.draw(n, generator), None

        return DenoiserLearner(fit, self.schedule, sample, batch=d.batch, prediction=d.prediction, times=times)

    # -- sampling ------------------------------------------------------------------------------------------------

    @property
    def denoiser(self) -> Denoiser:
        """Unguided denoiser D(x_t, t)."""
        return NetworkDenoiser(self.fit.model, self.schedule, self.config.prediction)

    def draw(self, denoiser: Denoiser, n: int, generator: torch.Generator) -> Tensor:
        """Draw vectors (n, D) by sampling with this denoiser."""
        s = self.sampler
        times = time_grid(self.schedule, s.steps, end=s.end, spacing=s.spacing).to(generator.device)
        sampler, found = s.chosen(), []
        for size in [ROWS] * (n // ROWS) + [n % ROWS] * (n % ROWS > 0):
            noise = initial_noise(self.schedule, (size, self.codec.size), times[0], generator)
            found.append(sampler(denoiser, self.schedule, noise, times, generator=generator))
        return torch.cat(found)

    def generate(self, denoiser: Denoiser, generator: torch.Generator) -> Metrics:
        """Replace the ``generated`` transitions by ``samples`` new ones of this denoiser, and return metrics.

        Actions are clipped to [-1, 1]. Rows that are not finite, or lie outside the range of the data by more than ``reach`` of
        its width, are rejected and replaced by draws from the other rows.
        """
        x = self.draw(denoiser, self.samples, generator)
        low, high = self.mixture.range()
        room = self.reach * (high - low).clamp(min=1)  # a coordinate may be constant
        inside = (x >= low - room) & (x <= high + room)
        inside[:, self.codec.bounded] = True
        good = inside.all(1) & x.isfinite().all(1)
        if not good.any():
            raise UserError(
                "no generated transition is finite and in the range of the data; lower omega, or raise refresh_steps or reach",
                key="online.generator",
            )
        rows = self.codec.decode(torch.where(good[:, None], x, drawn(x[good], len(x), generator)))
        clipped = rows.action.abs() > 1
        self.generated = Batch(rows.state, rows.action.clamp(-1, 1), rows.reward, rows.next_state, rows.terminal)
        return {
            "rejected": 1 - good.float().mean(),
            "clipped": clipped.float().mean(),
            "generated_terminal": rows.terminal.mean(),
        }

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """Draw n of the ``generated`` transitions, uniformly with replacement."""
        return drawn(self.generated, n, generator)

    # -- checkpoints ---------------------------------------------------------------------------------------------

    @override
    def networks(self) -> dict[str, nn.Module]:
        return {"model": self.fit.model}

    def state(self) -> dict[str, Tensor]:
        """Return the generated transitions and the number of refreshes."""
        rows = {name: getattr(self.generated, name) for name in Batch.__dataclass_fields__}
        return rows | {"refreshes": torch.tensor(self.refreshes)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore the tensors returned by ``state``."""
        self.refreshes = int(state["refreshes"])
        self.generated = Batch(*(state[name] for name in Batch.__dataclass_fields__))
