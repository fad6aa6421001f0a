"""Support actions: K actions of a policy for every state of the data, drawn once and kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from egd.training.learners import Metrics
from rl.config import ValuedConfig
from rl.data.transitions import OfflineData
from rl.parts.base import Part
from rl.parts.behaviour import Behaviour

STATES = 256  # number of states in one batch, as in QGPO
CHECKPOINTS = 4  # maximum number: each holds the whole table

Draw = Callable[[Tensor, int, torch.Generator], Tensor]
"""Draws actions (N, K, A) for (states (N, S), K, generator)."""


class SupportTable(Part):
    """Table of K actions for every state and, with ``next_states``, every next state, as drawn by QGPO (arXiv:2304.12824)
    before it learns Q.

    A state that is also the next state of the row before it has one set of actions, not two. The table is a learner: an update
    draws the actions of 256 states.

    The table takes 4 (N + n) K A bytes, for N transitions and n next states that are not the state of another row: about one
    per episode where the data's rows are in order of time.
    """

    training_only = True
    """Whether the part is needed in training alone: no policy needs it to act."""
    members = ("state", "next_state", "action")

    def __init__(
        self,
        data: OfflineData,
        k: int,
        draw: Draw,
        *,
        next_states: bool = True,
        name: str = "support",
        settings: Mapping[str, Any] | None = None,
        after: Sequence[Part] = (),
    ) -> None:
        self.name, self.data, self.k, self.draw, self.after = name, data, k, draw, after
        self.settings = {**(settings or {}), "k": k}
        rows = data.transitions
        self.follows = torch.zeros(len(rows), dtype=torch.bool, device=rows.state.device)
        self.follows[:-1] = (rows.next_state[:-1] == rows.state[1:]).all(1)
        own = torch.nonzero(~self.follows).squeeze(1)
        self.states = torch.cat([rows.state, rows.next_state[own]]) if next_states else rows.state
        self.next_row = torch.arange(1, len(rows) + 1, device=own.device)
        self.next_row[own] = torch.arange(len(rows), len(rows) + len(own), device=own.device)
        self.shape = len(self.states), k, rows.action.shape[1]
        self.actions = torch.empty(0)  # until the first update
        self.done, self.steps = 0, -(-len(self.states) // STATES)

    @override
    def checkpoint_every(self, wanted: int) -> int:
        return max(wanted, -(-self.steps // CHECKPOINTS))  # few, as each has the whole table

    @override
    def loss_networks(self) -> dict[str, nn.Module]:
        return {}  # what is drawn is data

    def grouped(self, k: int, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw k of the actions in each of n / k states, those of a state in consecutive rows, and return them with their
        states.
        """
        index = self.data.index(max(1, n // k), generator)
        return self.of(index)[:, :k].flatten(0, 1), self.data.transitions.state[index].repeat_interleave(k, 0)

    def of(self, index: Tensor) -> Tensor:
        """Return the actions in the states of these transitions: (B,) -> (B, K, A)."""
        return self.actions[index]

    def of_next(self, index: Tensor) -> Tensor:
        """Return the actions in the next states of these transitions: (B,) -> (B, K, A)."""
        return self.actions[self.next_row[index]]

    @torch.no_grad()
    def update(self, generator: torch.Generator) -> Metrics:
        """Draw the actions of the next ``STATES`` states of the table, and return metrics."""
        if self.done == 0:
            self._allocate()
        part = slice(self.done * STATES, (self.done + 1) * STATES)
        self.actions[part] = self.draw(self.states[part], self.k, generator)
        self.done += 1
        return {"action_std": self.actions[part].std(1).mean()}

    def _allocate(self) -> None:
        self.actions = torch.zeros(self.shape, device=self.states.device)

    def state(self) -> dict[str, Tensor]:
        """Return the actions drawn so far, for the checkpoint."""
        return {"actions": self.actions[: self.done * STATES], "done": torch.tensor(self.done)}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore the tensors returned by ``state``. Raises ValueError for a table of other states or another K."""
        drawn = state["actions"].to(self.states.device)
        self.done = int(state["done"])
        if drawn.shape[1:] != self.shape[1:] or len(drawn) != min(self.done * STATES, len(self.states)):
            raise ValueError(f"actions {tuple(drawn.shape)} do not fit a table of {self.shape}")
        if len(drawn) == len(self.states):
            self.actions = drawn
        else:
            self._allocate()
            self.actions[: len(drawn)] = drawn


def drawn_from(
    model: Behaviour, config: ValuedConfig, k: int, *, name: str = "support", next_states: bool = True
) -> SupportTable:
    """Return the table of K actions that a diffusion model draws once it is trained."""
    draw = partial(_actions, model, config.support.clip_x0)
    settings = config.model_dump(mode="json", include={"support", "sampler"})
    return SupportTable(model.data, k, draw, next_states=next_states, name=name, settings=settings, after=[model])


def _actions(model: Behaviour, clip: bool, states: Tensor, k: int, generator: torch.Generator) -> Tensor:
    return model.actions(states, k, generator, clip)
