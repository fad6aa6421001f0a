"""Windows of consecutive transitions, the events of trajectory models."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from egd.errors import UserError
from rl.data.transitions import Batch, OfflineData


def consecutive(rows: Batch) -> Tensor:
    """Return, for each transition, whether the next row continues it, (N,): its next state equals that row's state bit for bit,
    and it is not terminal.

    A walk that was cut into episodes without a reset counts as one.
    """
    follows = torch.zeros(len(rows), dtype=torch.bool, device=rows.state.device)
    follows[:-1] = (rows.next_state[:-1] == rows.state[1:]).all(1) & (rows.terminal[:-1] == 0)
    return follows


@dataclass(frozen=True)
class Windows:
    """Windows of H = ``horizon`` consecutive transitions, as events (H, S + A) of states and actions.

    Every window lies within one episode, so none starts in an episode's last H - 1 states. Raises UserError, naming
    ``plan.horizon``, where there is no window at all.
    """

    data: OfflineData
    horizon: int

    def __post_init__(self) -> None:
        if not len(self.starts):
            steps = int(self._lengths.max())
            raise UserError(
                f"no {self.horizon} transitions of the data follow on one another, at most {steps} do; choose less",
                key="plan.horizon",
            )

    @cached_property
    def _lengths(self) -> Tensor:
        """Number of consecutive transitions from each row on, the row included, (N,)."""
        ends = torch.nonzero(~consecutive(self.data.transitions)).squeeze(1)
        row = torch.arange(len(self.data.transitions), device=ends.device)
        return ends[torch.searchsorted(ends, row)] - row + 1

    @cached_property
    def starts(self) -> Tensor:
        """First rows of the windows, (M,)."""
        return torch.nonzero(self._lengths >= self.horizon).squeeze(1)

    @property
    def states(self) -> int:
        """Number of entries of a state, S."""
        return self.data.transitions.state.shape[1]

    @property
    def event(self) -> tuple[int, int]:
        """Shape of an event, (H, S + A)."""
        return self.horizon, self.states + self.data.transitions.action.shape[1]

    @cached_property
    def given(self) -> Tensor:
        """Mask of the entries of an event that belong to its first state, (H, S + A)."""
        mask = torch.zeros(self.event, dtype=torch.bool, device=self.starts.device)
        mask[0, : self.states] = True
        return mask

    @cached_property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Range of the data in every entry, lower and upper, each (H, S + A); infinite for the entries of the first state."""
        data, inf = self.data, torch.inf
        low = torch.cat([data.transitions.state.amin(0), data.action_low]).expand(self.event)
        high = torch.cat([data.transitions.state.amax(0), data.action_high]).expand(self.event)
        return low.masked_fill(self.given, -inf), high.masked_fill(self.given, inf)

    def rows(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw the row numbers of n windows, uniformly with replacement: (n, H)."""
        chosen = torch.randint(len(self.starts), (n,), generator=generator, device=generator.device)
        return self.starts[chosen][:, None] + torch.arange(self.horizon, device=self.starts.device)

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw n windows (n, H, S + A), and return them with their first states (n, S)."""
        rows, t = self.rows(n, generator), self.data.transitions
        return torch.cat([t.state[rows], t.action[rows]], -1), t.state[rows[:, 0]]
