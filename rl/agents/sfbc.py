"""SfBC: the behaviour policy's samples, chosen by a critic that plans within the data."""

from __future__ import annotations

from typing import ClassVar

from rl.agents.selecting import SelectingAgent, SelectingConfig, SelectionConfig
from rl.runs.config import CriticConfig


class SfBCConfig(SelectingConfig):
    """Of a selecting agent, with what SfBC has in other places. Its critic's unit is the spread of the returns, and so is
    that of 1 / beta.
    """

    agent: str = "sfbc"
    critic: CriticConfig = CriticConfig(name="in_sample_planning")
    selection: SelectionConfig = SelectionConfig(candidates=32, by="softmax", beta=100.0)


class SfBC(SelectingAgent):
    """SfBC (arXiv:2209.14548): behaviour diffusion, in-sample planning on stored samples of it, and one of K samples a state,
    drawn by softmax(alpha Q).
    """

    Config: ClassVar[type[SelectingConfig]] = SfBCConfig
