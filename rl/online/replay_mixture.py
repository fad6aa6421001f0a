"""Mixture of offline and online transitions, as vectors, that generators learn from."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rl.data.transitions import Batch, drawn
from rl.online.replay import Replay
from rl.online.transition_codec import TransitionCodec

CHUNK = 65_536  # vectors at a time


class ReplayMixture:
    """Mixture q(x) = (1 - f) D_off + f D_on, where f is ``online_share``, or by default the share of the rows.

    By default a million offline rows long outnumber those of the current policy, so that the weight between the policy and q is
    learned slowly.
    """

    def __init__(self, offline: Batch, codec: TransitionCodec, online_share: float | None) -> None:
        self.offline, self.codec, self.online_share = offline, codec, online_share
        self.online: Batch | None = None

    def take(self, online: Replay) -> None:
        """Use these online rows from now on."""
        self.online = online.rows if len(online) else None

    @property
    def share(self) -> float:
        """Share f of online rows in q."""
        if self.online is None:
            return 0.0
        known = self.online_share
        return len(self.online) / (len(self.offline) + len(self.online)) if known is None else known

    def share_of(self, recent: int) -> float:
        """Return the share of the last ``recent`` online rows in q."""
        return 0.0 if self.online is None else self.share * recent / len(self.online)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw vectors (n, D) of q."""
        x = self.codec.encode(drawn(self.offline, n, generator))
        if self.online is None:
            return x
        online = torch.rand(n, 1, generator=generator, device=generator.device) < self.share
        return torch.where(online, self.codec.encode(drawn(self.online, n, generator)), x)

    def weighed(self) -> Iterator[tuple[Tensor, float]]:
        """Yield all vectors, offline ones first, in parts (B, D), each with the log-probability under q of every row in it."""
        for rows, share in ((self.offline, 1 - self.share), (self.online, self.share)):
            if rows is None:
                continue
            each = torch.tensor(share / len(rows)).log().item()
            for index in torch.split(torch.arange(len(rows), device=rows.reward.device), CHUNK):
                yield self.codec.encode(rows[index]), each

    def range(self) -> tuple[Tensor, Tensor]:
        """Return the minimum and the maximum of every coordinate: (D,), (D,)."""
        parts = [(x.amin(0), x.amax(0)) for x, _ in self.weighed()]
        return torch.stack([low for low, _ in parts]).amin(0), torch.stack([high for _, high in parts]).amax(0)
