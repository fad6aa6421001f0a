"""No generator at all: the replayed transitions, drawn by how much the policy of the day would have them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from egd.training.learners import Metrics
from rl.data.transitions import Batch
from rl.online.generators.base import Generator, GeneratorContext
from rl.online.ratios import RATIO, LogWeights, RatioConfig
from rl.online.replay import Replay, joined
from rl.online.replay_mixture import ReplayMixture, Share
from rl.online.transition_codec import TransitionCodec

__all__ = ["Resampled"]

SAMPLES = 2048  # of q, to say how far weights are spread


class Resampled(Generator):
    """Importance-resampled replay: rows of D_off and D_on with probability proportional to e^w(s, a), w = log p / q as EDIS
    learns it; with an ``online_share`` that of q is that of EDIS, too. It costs the ratio alone, and its transitions obey the
    dynamics: what EDIS has to beat.
    """

    def __init__(self, world: GeneratorContext, *, ratio: RatioConfig = RATIO, online_share: Share | None = None) -> None:
        self.world = world
        vectors = TransitionCodec(world.data.transitions, "never")
        self.weights = LogWeights(world, vectors, {"state": 1.0, "action": 1.0}, ratio)
        self.pool = ReplayMixture(world.data.transitions, vectors, online_share)
        self.rows = world.data.transitions
        self.cumulative = torch.empty(0)
        self.online = 0

    def refresh(self, online: Replay, generator: torch.Generator) -> Metrics:
        """Learn the ratio; weigh all rows."""
        self._take(online.rows)
        self.pool.take(online)
        recent = online.recent(self.weights.config.window or len(online))
        metrics = self.weights.train(recent, self.pool.draw, self.pool.share_of(len(recent)), None, generator)
        with torch.no_grad():
            w = torch.cat([self.weights(x) + log_q for x, log_q in self.pool.weighed()])
        self.cumulative = w.double().softmax(0).cumsum(0)
        return metrics | self.weights.spread(self.pool.draw(SAMPLES, generator))

    def _take(self, online: Batch) -> None:
        self.online = len(online)
        self.rows = joined(self.world.data.transitions, online)

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """n rows, with replacement."""
        u = torch.rand(n, generator=generator, device=generator.device, dtype=torch.float64)
        return self.rows[torch.searchsorted(self.cumulative, u * self.cumulative[-1]).clamp(max=len(self.cumulative) - 1)]

    def modules(self) -> dict[str, nn.Module]:
        """Of the ratio."""
        return self.weights.modules()

    def kept(self) -> dict[str, Tensor]:
        """The weights, and the online rows that they belong to."""
        n = self.online
        own = {name: getattr(self.rows, name)[-n:] for name in Batch.__dataclass_fields__} if n else {}
        return {"cumulative": self.cumulative, **own}

    def keep(self, kept: Mapping[str, Tensor]) -> None:
        """The inverse of ``kept``."""
        self.cumulative = kept["cumulative"]
        if "reward" in kept:
            self._take(Batch(*(kept[name] for name in Batch.__dataclass_fields__)))
