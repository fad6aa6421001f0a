"""In-sample planning: values of the data's actions, backed up along the data's trajectories."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias, Unpack

import torch
from torch import Tensor
from typing_extensions import override

from egd.bounds import Beta, Rounds
from egd.checkpoint import group, prefixed
from egd.training.learners import Learner, Metrics, StepLearner
from rl.critics.base import Critic, Shared
from rl.data.transitions import Batch, OfflineData
from rl.parts.support_actions import SupportTable

__all__ = ["InSamplePlanning"]

STATES = 1024  # number of states whose actions are valued in one batch

Planned: TypeAlias = tuple[Batch, Tensor]
"""Transitions, and the returns (B,) planned from them, in units of their spread."""


class InSamplePlanning(Critic):
    """Q towards R_n = r_n + gamma max(R_n+1, V(s_n+1)): the data's return as long as it exceeds the policy's value.

    V(s) = sum_k w_k Q(s, a_k), w = softmax_k(beta Q(s, a_k)), with the a_k drawn from the behaviour policy. SfBC
    (arXiv:2209.14548) Eq. 9, 10 and Algorithm 1.

    Training has ``rounds`` rounds of equal length. The first has no V: its R is the discounted return. Before each later round,
    V is computed from the last Q, all R are planned anew, and Q restarts from its initial weights unless ``reset`` is off. Q,
    V and 1 / ``beta`` are in units of the spread of R, with the mean of R as zero.
    """

    needs_support = True
    in_reward_units = False

    def __init__(
        self,
        state: int,
        action: int,
        *,
        rounds: Rounds = 2,
        beta: Beta = 20.0,
        reset: bool = True,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(state, action, **shared)
        self.rounds, self.beta, self.reset = rounds, beta, reset
        self.fit.cycles = rounds if reset else 1
        self.fresh = {name: tensor.clone() for name, tensor in self.values.state_dict().items()}

    @override
    def learner(self, data: OfflineData, batch: int, support: SupportTable | None) -> Learner:
        if support is None:
            raise ValueError("in-sample planning needs a table of support actions")
        return PlanningLearner(self, data, batch, support)

    @override
    def loss(self, drawn: Planned) -> tuple[Tensor, Metrics]:
        batch, target = drawn
        q_loss, q_info = self.q_loss(batch, target)
        v_loss, v_info = self.v_loss(batch.state, target)  # a baseline, from which nothing is learned
        return q_loss + v_loss, {**q_info, **v_info}

    def restart(self) -> None:
        """Restart from the initial weights, with a fresh optimiser."""
        self.values.load_state_dict(self.fresh)
        self.target.module.load_state_dict(self.values.q.state_dict())
        self.fit.optimiser.state.clear()


class PlanningLearner(StepLearner):
    """Learner of Q on returns that are planned anew before each round."""

    batchable = False

    def __init__(self, critic: InSamplePlanning, data: OfflineData, batch: int, support: SupportTable) -> None:
        self.critic, self.data, self.support, self.batch, self.fit = critic, data, support, batch, critic.fit
        self.returns = torch.zeros(len(data.transitions), device=data.transitions.reward.device)
        self.mean, self.spread = torch.zeros((), device=self.returns.device), torch.ones((), device=self.returns.device)

    @override
    def draw(self, generator: torch.Generator) -> Planned:
        index = self.data.index(self.batch, generator)
        return self.data.transitions[index], (self.returns[index] - self.mean) / self.spread

    @override
    def loss(self, drawn: Planned) -> tuple[Tensor, Metrics]:
        return self.critic.loss(drawn)

    @property
    def round(self) -> int:
        """Length of a round in steps."""
        return max(1, -(-self.fit.steps // self.critic.rounds))

    @override
    def update(self, generator: torch.Generator) -> Metrics:
        metrics = self._plan() if self.fit.step % self.round == 0 else {}
        return {**super().update(generator), **metrics}

    @torch.no_grad()
    def _plan(self) -> Metrics:
        first = self.fit.step == 0
        values = None if first else self.spread * torch.cat(list(self._values())) + self.mean
        self.returns, in_data = planned(self.data.transitions, self.support, values, self.critic.gamma)
        self.mean, self.spread = self.returns.mean(), self.returns.std().clamp(min=0.1)
        if self.critic.reset and not first:
            self.critic.restart()
        return {"return_mean": self.mean, "return_std": self.spread, "returns_in_data": in_data}

    def _values(self) -> Iterator[Tensor]:
        chunks = (torch.split(tensor, STATES) for tensor in (self.support.states, self.support.actions))
        for states, actions in zip(*chunks, strict=True):
            yield self.critic.softmax_q(states, actions, self.critic.beta)

    @override
    def state(self) -> dict[str, Tensor]:
        planned = {"returns": self.returns, "mean": self.mean, "spread": self.spread}
        return {**prefixed("critic", self.critic.state()), **prefixed("planned", planned)}

    @override
    def load(self, state: dict[str, Tensor]) -> None:
        self.critic.load(group("critic", state))
        planned = {name: tensor.to(self.returns.device) for name, tensor in group("planned", state).items()}
        self.returns, self.mean, self.spread = planned["returns"], planned["mean"], planned["spread"]


def planned(rows: Batch, support: SupportTable, values: Tensor | None, gamma: float) -> tuple[Tensor, Tensor]:
    """Plan R_n of every row, (N,), from ``values`` (M,) of the table's states; return it with the share of rows that follow the
    data.

    A trajectory ends where the next row does not start in this row's next state. If the episode does not end there, the row
    bootstraps on V of its next state; without V, on the value of receiving the data's lowest reward (at most 0) for ever.
    """
    never = torch.full_like(rows.reward, float("-inf"))
    following = never if values is None else values[support.next_row]
    after = torch.full_like(rows.reward, float(rows.reward.min().clamp(max=0)) / (1 - gamma)) if values is None else following
    reward, end = rows.reward.tolist(), (rows.terminal > 0).tolist()
    follows, option, beyond = support.follows.tolist(), following.tolist(), after.tolist()
    returns, going_on = [0.0] * len(reward), 0
    for n in reversed(range(len(reward))):
        later = max(returns[n + 1], option[n]) if follows[n] else beyond[n]
        going_on += follows[n] and returns[n + 1] >= option[n]
        returns[n] = reward[n] if end[n] else reward[n] + gamma * later
    on_data = torch.tensor(going_on / max(1, sum(follows)), device=rows.reward.device)
    return torch.tensor(returns, device=rows.reward.device, dtype=rows.reward.dtype), on_data
