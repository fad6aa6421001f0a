"""Conservative Q-learning with its own policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from typing_extensions import override

from egd.errors import UserError
from rl.agents.base import Agent
from rl.config import CriticConfig, RunConfig
from rl.critics import CQL
from rl.critics.choice import CRITICS, check_critic
from rl.data.transitions import OfflineData
from rl.parts.base import Part
from rl.parts.critic import OfflineCritic
from rl.parts.policies import ActorPolicy, AgentPolicy


class CQLConfig(RunConfig):
    """Settings of a critic, which contains its actor."""

    agent: str = "cql"
    critic: CriticConfig = CriticConfig(name="cql")


class CQLAgent(Agent):
    """CQL (arXiv:2006.04779): a soft actor-critic with a conservative critic, whose losses are in ``rl.critics.cql``.

    Its phase is that of the critic ``cql`` under any other agent, so that the two can share it.
    """

    Config: ClassVar[type[RunConfig]] = CQLConfig
    config: CQLConfig

    def __init__(self, config: CQLConfig, data: OfflineData, device: torch.device) -> None:
        super().__init__(config, data, device)
        self.critic_part = OfflineCritic(self.context, config.critic)
        critic = self.critic_part.critic
        assert isinstance(critic, CQL)  # ensured by check
        self.critic, self.actor = critic, critic.actor

    @classmethod
    @override
    def check(cls, config: Any) -> None:
        check_critic(config.critic)
        component = CRITICS.find(config.critic.name, "critic.name")
        if not (isinstance(component, type) and issubclass(component, CQL)):
            raise UserError(f"'{config.critic.name}' trains no actor, by which agent cql acts; use cql", key="critic.name")

    @override
    def parts(self) -> Sequence[Part]:
        return [self.critic_part]

    @override
    def named_policies(self) -> Mapping[str, AgentPolicy]:
        return {"policy": ActorPolicy(self.critic_part, self.actor)}
