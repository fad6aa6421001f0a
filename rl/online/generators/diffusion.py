"""Generator of transitions by an unguided diffusion model, whose samples are checked before use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from egd.bounds import NotNegative, ProperShare, Samples, Steps
from egd.config.base import ComponentConfig
from egd.training.learners import Metrics
from rl.data.transitions import Batch
from rl.online.generators.base import Generator, GeneratorContext
from rl.online.replay import Replay
from rl.online.transition_codec import TerminalModel
from rl.online.transition_model import MODEL, SAMPLER, SCHEDULE, ModelConfig, StepsConfig, TransitionModel
from rl.parts.base import Part
from rl.tasks import Task

__all__ = ["Diffusion"]


class Diffusion(Generator):
    """SynthER (arXiv:2303.06614): transitions of a diffusion model that is trained offline and updated at every refresh.

    A refresh trains the model for ``refresh_steps`` more steps on offline and online transitions, and then replaces the
    generated transitions by ``samples`` new ones. ``warm_start: false`` starts each refresh from a fresh network, as EDIS's
    code does.
    """

    def __init__(
        self,
        context: GeneratorContext,
        *,
        schedule: ComponentConfig = SCHEDULE,
        denoiser: ModelConfig = MODEL,
        sampler: StepsConfig = SAMPLER,
        refresh_steps: Steps = 500,
        samples: Samples = 20_000,
        terminal: TerminalModel = "generated",
        warm_start: bool = True,
        reach: NotNegative = 0.1,
        online_share: ProperShare | None = None,
    ) -> None:
        self.model = TransitionModel(
            context,
            schedule=schedule,
            denoiser=denoiser,
            sampler=sampler,
            refresh_steps=refresh_steps,
            samples=samples,
            terminal=terminal,
            warm_start=warm_start,
            reach=reach,
            online_share=online_share,
        )

    @classmethod
    @override
    def check(cls, settings: Mapping[str, Any], task: Task) -> None:
        TransitionModel.check(settings, task)

    @override
    def parts(self) -> Sequence[Part]:
        return self.model.parts()

    @override
    def refresh(self, online: Replay, generator: torch.Generator) -> Metrics:
        metrics = self.model.learn(online, generator)
        return metrics | self.model.generate(self.model.denoiser, generator)

    @override
    def sample(self, n: int, generator: torch.Generator) -> Batch:
        return self.model.sample(n, generator)

    @override
    def networks(self) -> dict[str, nn.Module]:
        return self.model.networks()

    @override
    def state(self) -> dict[str, Tensor]:
        return self.model.state()

    @override
    def load(self, state: Mapping[str, Tensor]) -> None:
        self.model.load(state)
