"""Policies regressed on the actions of the data, all alike or by how good they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from typing_extensions import override

from egd.training.learners import Fit, Metrics, StepLearner
from rl.critics.base import Critic
from rl.data.transitions import Batch
from rl.parts.actors import Actor, make_actor
from rl.parts.base import Part, RunContext
from rl.runs.config import ActorConfig


class AdvantageWeight:
    """exp(beta (Q(s, a) - V(s))), no more than ``most``: the weights of advantage-weighted regression as IQL
    (arXiv:2110.06169, Eq. 7) has them. No gradient flows into the critic.
    """

    def __init__(self, critic: Critic, beta: float, most: float = 100.0) -> None:
        self.critic, self.most = critic, most
        self.beta = nn.ParameterDict({"beta": torch.tensor(beta)}).requires_grad_(False).to(critic.fit.device)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """(B,)"""
        advantage = self.critic.q(batch.state, batch.action) - self.critic.v(batch.state)
        weight: Tensor = (self.beta["beta"] * advantage).exp().clamp(max=self.most)
        return weight

    def loss_networks(self) -> dict[str, nn.Module]:
        """What it depends on."""
        return {"beta": self.beta, "critic": self.critic.values, "target": self.critic.target.module}


class Cloning(StepLearner):
    """An actor towards actions that ``sample`` draws, on its ``cost``, each as heavy as ``weight`` says."""

    def __init__(
        self,
        actor: Actor,
        fit: Fit,
        sample: Callable[[torch.Generator], Batch],
        weight: AdvantageWeight | None = None,
    ) -> None:
        self.actor, self.fit, self.sample, self.weight = actor, fit, sample, weight

    def draw(self, generator: torch.Generator) -> Batch:
        """A batch."""
        return self.sample(generator)

    def loss(self, drawn: Batch) -> tuple[Tensor, Metrics]:
        """The weighted mean cost, not divided by the weights' sum."""
        cost = self.actor.cost(drawn.state, drawn.action)
        if self.weight is None:
            return cost.mean(), {"loss": cost.detach().mean()}
        weight = self.weight(drawn)
        loss = (weight * cost).mean()
        return loss, {"loss": loss.detach(), "cost": cost.detach().mean(), "weight": weight.mean()}

    def loss_networks(self) -> dict[str, nn.Module]:
        """Those of the weights."""
        return {} if self.weight is None else self.weight.loss_networks()


class ClonedActor(Part):
    """An actor of a recipe's section, trained towards the actions of the data."""

    name = "policy"

    def __init__(
        self, context: RunContext, config: ActorConfig, weight: AdvantageWeight | None = None, *, after: Sequence[Part] = ()
    ) -> None:
        self.actor = context.fresh("actor", lambda: make_actor(config, context.states, context.actions))
        self.fit = Fit(self.actor, lr=config.lr, steps=config.steps, decay=config.decay)
        self.steps, self.settings, self.after = config.steps, {"actor": config.model_dump(mode="json")}, after
        self.members = ("state", "action") if weight is None else Part.members
        self._learner = Cloning(self.actor, self.fit, partial(context.data.sample, config.batch), weight)

    @property
    @override
    def learner(self) -> Cloning:
        return self._learner

    @override
    def networks(self) -> dict[str, nn.Module]:
        return {"actor": self.actor}
