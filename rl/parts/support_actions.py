"""Support actions: K actions of a policy for every state of the data, drawn once and kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from egd.training.learners import Metrics
from rl.data.transitions import OfflineData

STATES = 256  # in one batch, as QGPO has it
CHECKPOINTS = 4  # at most: the whole table is in each

Draw = Callable[[Tensor, int, torch.Generator], Tensor]
"""(states (N, S), K, generator) -> actions (N, K, A)."""


class SupportTable:
    """K actions for every state and, with ``next_states``, every next state, as QGPO (arXiv:2304.12824) draws them before it
    learns Q; of a state that is the next state of the row before it there is one set, not two. A learner: an update draws those
    of 256 states.

    It takes 4 (N + n) K A bytes, for N transitions and n next states of their own: about one an episode where the data's rows
    are in the order of time.
    """

    training_only = True
    """No policy needs it to act."""

    def __init__(self, data: OfflineData, k: int, draw: Draw, *, next_states: bool = True) -> None:
        self.k, self.draw = k, draw
        rows = data.transitions
        self.follows = torch.zeros(len(rows), dtype=torch.bool, device=rows.state.device)
        self.follows[:-1] = (rows.next_state[:-1] == rows.state[1:]).all(1)
        own = torch.nonzero(~self.follows).squeeze(1)
        self.states = torch.cat([rows.state, rows.next_state[own]]) if next_states else rows.state
        self.next_row = torch.arange(1, len(rows) + 1, device=own.device)
        self.next_row[own] = torch.arange(len(rows), len(rows) + len(own), device=own.device)
        self.shape = len(self.states), k, rows.action.shape[1]
        self.actions = torch.empty(0)  # until the first update
        self.done = 0

    @property
    def steps(self) -> int:
        """How many updates fill it."""
        return -(-len(self.states) // STATES)

    def checkpoint_every(self, wanted: int) -> int:
        """Give the steps between checkpoints, at least so many: every checkpoint has the whole table, so that there are few."""
        return max(wanted, -(-self.steps // CHECKPOINTS))

    def of(self, index: Tensor) -> Tensor:
        """Actions in the states of these transitions: (B,) -> (B, K, A)"""
        return self.actions[index]

    def of_next(self, index: Tensor) -> Tensor:
        """Actions in their next states: (B,) -> (B, K, A)"""
        return self.actions[self.next_row[index]]

    @torch.no_grad()
    def update(self, generator: torch.Generator) -> Metrics:
        """Draw those of the next states in turn."""
        if self.done == 0:
            self._allocate()
        part = slice(self.done * STATES, (self.done + 1) * STATES)
        self.actions[part] = self.draw(self.states[part], self.k, generator)
        self.done += 1
        return {"action_std": self.actions[part].std(1).mean()}

    def _allocate(self) -> None:
        self.actions = torch.zeros(self.shape, device=self.states.device)

    def state(self) -> dict[str, Tensor]:
        """For the checkpoint: what is drawn so far."""
        return {"actions": self.actions[: self.done * STATES], "done": torch.tensor(self.done)}

    def load(self, state: dict[str, Tensor]) -> None:
        """The inverse of ``state``. ValueError for a table of other states or another K."""
        drawn = state["actions"].to(self.states.device)
        self.done = int(state["done"])
        if drawn.shape[1:] != self.shape[1:] or len(drawn) != min(self.done * STATES, len(self.states)):
            raise ValueError(f"actions {tuple(drawn.shape)} do not fit a table of {self.shape}")
        if len(drawn) == len(self.states):
            self.actions = drawn
        else:
            self._allocate()
            self.actions[: len(drawn)] = drawn
