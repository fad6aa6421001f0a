"""Behaviour cloning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from egd.training.learners import Fit, Metrics, StepLearner
from rl.agents.base import Agent
from rl.config import ActorConfig, RunConfig
from rl.data.transitions import Batch, OfflineData
from rl.parts.actors import Actor
from rl.parts.base import Part
from rl.parts.policies import ActorPolicy, AgentPolicy
from rl.parts.trained_actor import TrainedActor


class BCConfig(RunConfig):
    """Settings of behaviour cloning: a policy alone."""

    agent: str = "bc"
    actor: ActorConfig = ActorConfig()


class Cloning(StepLearner):
    """Learner of E cost(s, a): the squared error |pi(s) - a|^2, or -log pi(a|s) of a Gaussian."""

    def __init__(self, actor: Actor, fit: Fit, sample: Callable[[torch.Generator], Batch]) -> None:
        self.actor, self.fit, self.sample = actor, fit, sample

    @override
    def draw(self, generator: torch.Generator) -> Batch:
        return self.sample(generator)

    @override
    def loss(self, drawn: Batch) -> tuple[Tensor, Metrics]:
        loss = self.actor.cost(drawn.state, drawn.action).mean()
        return loss, {"loss": loss.detach()}


class BC(Agent):
    """Behaviour cloning: the data's actions regressed on its states by squared error or by the likelihood of a Gaussian."""

    Config: ClassVar[type[RunConfig]] = BCConfig
    config: BCConfig

    def __init__(self, config: BCConfig, data: OfflineData, device: torch.device) -> None:
        super().__init__(config, data, device)
        sample = partial(data.sample, config.actor.batch)
        members = ("state", "action")
        self.policy_part = TrainedActor(self.context, config.actor, partial(Cloning, sample=sample), members=members)
        self.actor = self.policy_part.actor

    @override
    def parts(self) -> Sequence[Part]:
        return [self.policy_part]

    @override
    def named_policies(self) -> Mapping[str, AgentPolicy]:
        return {"policy": ActorPolicy(self.policy_part, self.actor)}
