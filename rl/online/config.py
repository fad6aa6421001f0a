"""Section ``online`` of a recipe: how an agent goes on learning in the environment."""

from __future__ import annotations

from math import isclose

from pydantic import model_validator

from egd.bounds import Batch, Every, Rate, Rounds, Share, Steps
from egd.config.base import ComponentConfig, Strict


class SharesConfig(Strict):
    """Shares of a batch: replayed online transitions, offline ones, generated ones. They sum to 1."""

    online: Share = 0.5
    offline: Share = 0.5
    generated: Share = 0.0
    pooled: bool = False
    """Draw the online and the offline share together, uniformly from the rows of both, as published fine-tuning of IQL does:
    the online part then grows with time.
    """

    @model_validator(mode="after")
    def _whole(self) -> SharesConfig:
        total = self.online + self.offline + self.generated
        if not isclose(total, 1, abs_tol=1e-6):
            raise ValueError(f"online + offline + generated is {total:g}; the shares of a batch must sum to 1")
        return self

    def rows(self, batch: int) -> tuple[int, int, int]:
        """Return the numbers of online, offline and generated rows of a batch, which sum to ``batch``."""
        offline, generated = round(self.offline * batch), round(self.generated * batch)
        return batch - offline - generated, offline, generated


class OnlineConfig(Strict):
    """Settings of the loop: a step in the environment, then updates on batches of three shares."""

    steps: Steps = 50_000
    """Steps in the environment."""
    start: Every = 1000
    """Steps before the first update, taken with the agent of the offline phase."""
    updates: Rounds = 1
    """Number of updates after each ``update_every`` steps."""
    update_every: Every = 1
    """Steps between updates."""
    batch: Batch = 256
    lr: Rate | None = None
    """Largest of each optimiser's learning rates, without decay; its other rates are scaled in proportion. By default the rates
    of their sections.
    """
    shares: SharesConfig = SharesConfig()
    generator: ComponentConfig | None = None
    """Source of the generated share: one of ``rl.online.generators`` (``egd list``)."""
    refresh: Every = 5000
    """Steps between refreshes of the generator; the first is at ``start``."""

    @model_validator(mode="after")
    def _generated(self) -> OnlineConfig:
        if self.shares.generated > 0 and self.generator is None:
            raise ValueError(f"shares.generated is {self.shares.generated:g}, but there is no generator; name one")
        return self
