"""Calibrated Q-learning: conservative Q-learning whose values are bounded from below by the data's returns."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from egd.training.learners import Learner
from rl.critics.base import CriticLearner
from rl.critics.cql import CQL, NoisyBatch
from rl.data.transitions import Batch, OfflineData
from rl.parts.support_actions import SupportTable

__all__ = ["CalQL"]


class CalQL(CQL):
    """Cal-QL (arXiv:2303.05479): CQL whose conservative term bounds Q of the actor's actions from below by the data's return
    from that state on.

    It does not learn values far below those of the behaviour policy, which fine-tuning would have to unlearn first.
    """

    @override
    def learner(self, data: OfflineData, batch: int, support: SupportTable | None) -> Learner:
        returns = returns_to_go(data.transitions, self.gamma)

        def sample(generator: torch.Generator) -> NoisyBatch:
            index = data.index(batch, generator)
            return self.draw(data.transitions[index], generator, returns[index])

        return CriticLearner(self, sample)


def returns_to_go(rows: Batch, gamma: float) -> Tensor:
    """Compute the sum of gamma^k r_{i + k} over k to the end of the row's episode, (N,), for rows in order of time.

    Where the episode was truncated, the sum is a lower bound: later rewards count as 0 or, if the last reward is negative (as
    in tasks that pay -1 until the goal is reached), as that reward for ever.
    """
    follows = (rows.next_state[:-1] == rows.state[1:]).all(1) & (rows.terminal[:-1] == 0)
    goes_on = [*follows.tolist(), False]
    rewards, terminals = rows.reward.tolist(), rows.terminal.tolist()
    found, after = [0.0] * len(rewards), 0.0
    for i in range(len(rewards) - 1, -1, -1):
        if not goes_on[i]:
            after = 0.0 if terminals[i] else min(0.0, rewards[i]) / (1 - gamma)
        after = found[i] = rewards[i] + gamma * after
    return torch.tensor(found, device=rows.reward.device, dtype=rows.reward.dtype)
