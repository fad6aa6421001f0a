"""IDQL: the behaviour policy's samples, chosen by implicit Q-learning's critic."""

from __future__ import annotations

from typing import ClassVar

from rl.agents.selecting import SelectingAgent, SelectingConfig


class IDQLConfig(SelectingConfig):
    """The defaults are those of its evaluation: the best of N samples. ``selection: {by: expectile}`` is the policy that the
    values are of.
    """

    agent: str = "idql"


class IDQL(SelectingAgent):
    """IDQL (arXiv:2304.10573): behaviour diffusion, implicit Q-learning, N samples a state, of which the one with the highest Q
    acts, or one drawn by the weights |tau - 1(Q < V)| (its Eq. 10 for the expectile loss).
    """

    Config: ClassVar[type[SelectingConfig]] = IDQLConfig
