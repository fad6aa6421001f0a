"""Encoding of transitions as vectors, the sample space of their diffusion model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from rl.data.transitions import Batch

TerminalModel = Literal["generated", "computed", "never"]
"""Terminal of a generated transition: a further generated coordinate; computed from s' by the environment's own rule; or always
0, as in EDIS's code."""

Rule = Callable[[Tensor], Tensor]
"""Maps standardised states (B, S) to terminals (B,), 0 or 1."""


class TransitionCodec:
    """Codec of x = (s, a, r, s'[, terminal]) (B, D), each coordinate standardised by ``data``; terminal is -1 or 1.

    ``rule`` is given where terminals are ``computed``.
    """

    def __init__(self, data: Batch, terminal: TerminalModel, rule: Rule | None = None) -> None:
        self.terminal, self.rule = terminal, rule
        self.s, self.a = data.state.shape[1], data.action.shape[1]
        raw = self._raw(data)
        self.mean, self.std = raw.mean(0), raw.std(0) + 1e-5
        if terminal == "generated":
            self.mean[-1], self.std[-1] = 0.0, 1.0

    @property
    def size(self) -> int:
        """Dimension D of x."""
        return len(self.mean)

    @property
    def state(self) -> slice:
        """Coordinates of s."""
        return slice(0, self.s)

    @property
    def bounded(self) -> list[int]:
        """Coordinates of a and terminal, which ``decode`` or clipping keeps in their range."""
        return [*range(self.s, self.s + self.a), *range(2 * self.s + self.a + 1, self.size)]

    @property
    def state_action(self) -> slice:
        """Coordinates of (s, a)."""
        return slice(0, self.s + self.a)

    @property
    def next_state(self) -> slice:
        """Coordinates of s'."""
        return slice(self.s + self.a + 1, 2 * self.s + self.a + 1)

    def _raw(self, rows: Batch) -> Tensor:
        parts = [rows.state, rows.action, rows.reward[:, None], rows.next_state]
        if self.terminal == "generated":
            parts.append(2 * rows.terminal[:, None] - 1)
        return torch.cat(parts, 1)

    def encode(self, rows: Batch) -> Tensor:
        """Encode transitions: (B, D)."""
        return (self._raw(rows) - self.mean) / self.std

    def encode_pairs(self, state: Tensor, action: Tensor) -> Tensor:
        """Encode (s, a) alone: (B, S), (B, A) -> (B, S + A)."""
        part = self.state_action
        return (torch.cat([state, action], 1) - self.mean[part]) / self.std[part]

    def decode(self, x: Tensor) -> Batch:
        """Decode vectors (B, D) to transitions, with terminals as ``terminal`` says."""
        raw = x * self.std + self.mean
        body = raw[:, :-1] if self.terminal == "generated" else raw
        state, action, reward, next_state = torch.split(body, [self.s, self.a, 1, self.s], 1)
        return Batch(state, action, reward[:, 0], next_state, self._terminals(raw, next_state))

    def _terminals(self, raw: Tensor, next_state: Tensor) -> Tensor:
        if self.terminal == "generated":
            return (raw[:, -1] > 0).to(raw.dtype)
        if self.terminal == "computed":
            assert self.rule is not None
            return self.rule(next_state).to(raw.dtype)
        return torch.zeros_like(raw[:, 0])
