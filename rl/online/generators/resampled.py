"""Importance-resampled replay: replayed transitions, drawn in proportion to their weight under the current policy."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from typing_extensions import override

from egd.bounds import ProperShare
from egd.training.learners import Metrics
from rl.data.transitions import Batch
from rl.online.generators.base import Generator, GeneratorContext
from rl.online.generators.edis import RATIO, SAMPLES, LogWeights, RatioConfig
from rl.online.replay import Replay, joined
from rl.online.replay_mixture import ReplayMixture
from rl.online.transition_codec import TransitionCodec

__all__ = ["Resampled"]


class Resampled(Generator):
    """Rows of D_off and D_on drawn with probability proportional to e^w(s, a), w = log p / q learned as in EDIS.

    With an ``online_share`` q is that of EDIS, too. Only the ratio is trained, and the transitions obey the dynamics: this is
    the baseline that EDIS has to beat.
    """

    def __init__(
        self, context: GeneratorContext, *, ratio: RatioConfig = RATIO, online_share: ProperShare | None = None
    ) -> None:
        self.offline, self.window = context.data.transitions, ratio.window
        codec = TransitionCodec(self.offline, "never")
        self.weights = LogWeights(context, codec, {"state": 1.0, "action": 1.0}, ratio)
        self.mixture = ReplayMixture(self.offline, codec, online_share)
        self.rows = self.offline
        self.cumulative = torch.empty(0)

    @override
    def refresh(self, online: Replay, generator: torch.Generator) -> Metrics:
        self.rows = joined(self.offline, online.rows)
        self.mixture.take(online)
        recent = online.recent(self.window or len(online))
        metrics = self.weights.learn(recent, self.mixture.draw, self.mixture.share_of(len(recent)), None, generator)
        with torch.no_grad():
            w = torch.cat([self.weights(x) + log_q for x, log_q in self.mixture.weighed()])
        self.cumulative = w.double().softmax(0).cumsum(0)
        return metrics | self.weights.spread(self.mixture.draw(SAMPLES, generator))

    @override
    def sample(self, n: int, generator: torch.Generator) -> Batch:
        u = torch.rand(n, generator=generator, device=generator.device, dtype=torch.float64)
        return self.rows[torch.searchsorted(self.cumulative, u * self.cumulative[-1]).clamp(max=len(self.cumulative) - 1)]

    @override
    def networks(self) -> dict[str, nn.Module]:
        return self.weights.networks()

    @override
    def state(self) -> dict[str, Tensor]:
        online = {name: getattr(self.rows, name)[len(self.offline) :] for name in Batch.__dataclass_fields__}
        return {"cumulative": self.cumulative, **(online if len(self.rows) > len(self.offline) else {})}

    @override
    def load(self, state: Mapping[str, Tensor]) -> None:
        self.cumulative = state["cumulative"]
        if "reward" in state:
            self.rows = joined(self.offline, Batch(*(state[name] for name in Batch.__dataclass_fields__)))
