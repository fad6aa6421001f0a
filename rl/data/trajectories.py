"""Windows of consecutive transitions: what models of trajectories learn from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from egd.errors import UserError
from rl.data.transitions import Batch, OfflineData


def consecutive(rows: Batch) -> Tensor:
    """Whether each transition goes on in the next row, (N,): its next state is that row's state, bit for bit, and it is not
    terminal. A walk that was cut into episodes without a reset is one walk.
    """
    follows = torch.zeros(len(rows), dtype=torch.bool, device=rows.state.device)
    follows[:-1] = (rows.next_state[:-1] == rows.state[1:]).all(1) & (rows.terminal[:-1] == 0)
    return follows


@dataclass(frozen=True)
class Windows:
    """All windows of H = ``horizon`` consecutive transitions, as events (H, S + A) of states and actions.

    They are those of the data that lie within an episode whole: of one that ends early there is none in the last H - 1 states.
    UserError, naming ``plan.horizon``, where there is no window at all.
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
        """How many transitions follow on one another from each on, itself included, (N,)."""
        ends = torch.nonzero(~consecutive(self.data.transitions)).squeeze(1)
        row = torch.arange(len(self.data.transitions), device=ends.device)
        return ends[torch.searchsorted(ends, row)] - row + 1

    @cached_property
    def starts(self) -> Tensor:
        """First rows of the windows, (M,)."""
        return torch.nonzero(self._lengths >= self.horizon).squeeze(1)

    @property
    def states(self) -> int:
        """S."""
        return self.data.transitions.state.shape[1]

    @property
    def event(self) -> tuple[int, int]:
        """(H, S + A)"""
        return self.horizon, self.states + self.data.transitions.action.shape[1]

    @cached_property
    def given(self) -> Tensor:
        """Which entries of an event are those of its first state, (H, S + A)."""
        mask = torch.zeros(self.event, dtype=torch.bool, device=self.starts.device)
        mask[0, : self.states] = True
        return mask

    @cached_property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The range of the data in every entry but those of the first state, which have none: twice (H, S + A)."""
        data, inf = self.data, torch.inf
        low = torch.cat([data.transitions.state.amin(0), data.action_low]).expand(self.event)
        high = torch.cat([data.transitions.state.amax(0), data.action_high]).expand(self.event)
        return low.masked_fill(self.given, -inf), high.masked_fill(self.given, inf)

    def rows(self, n: int, generator: torch.Generator) -> Tensor:
        """Row numbers of n windows, uniformly with replacement: (n, H)"""
        chosen = torch.randint(len(self.starts), (n,), generator=generator, device=generator.device)
        return self.starts[chosen][:, None] + torch.arange(self.horizon, device=self.starts.device)

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n windows (n, H, S + A) and their first states (n, S)."""
        rows, t = self.rows(n, generator), self.data.transitions
        return torch.cat([t.state[rows], t.action[rows]], -1), t.state[rows[:, 0]]
