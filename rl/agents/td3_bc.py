"""TD3 with behaviour cloning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from egd.bounds import Every, NotNegative
from egd.checkpoint import group, prefixed
from egd.errors import UserError
from egd.training.learners import Fit, Metrics
from egd.training.precision import Computing
from rl.agents.base import Agent
from rl.config import ActorConfig, CriticConfig, RunConfig
from rl.critics.choice import beside_policy, check_critic, critic_settings, make_critic
from rl.critics.td import TD
from rl.data.transitions import Batch, OfflineData
from rl.parts.actors import frozen, make_actor
from rl.parts.base import Part, RunContext
from rl.parts.policies import ActorPolicy, AgentPolicy


class ImprovedActorConfig(ActorConfig):
    """Settings of a policy and its improvement by Q. Its ``steps`` and ``batch`` are the critic's, too."""

    name: Literal["deterministic"] = "deterministic"
    decay: bool = False
    alpha: NotNegative = 2.5
    """Weight of Q, divided by the mean of |Q|, against the squared error."""
    noise: NotNegative = 0.2
    """Standard deviation of the noise on the target policy's actions."""
    noise_clip: NotNegative = 0.5
    delay: Every = 2
    """Number of the critic's steps per step of the policy."""


class TD3BCConfig(RunConfig):
    """Settings of a policy and its critic."""

    agent: str = "td3_bc"
    critic: CriticConfig = CriticConfig(name="td")
    actor: ImprovedActorConfig = ImprovedActorConfig()

    @property
    def built_critic(self) -> CriticConfig:
        """Settings of the critic as ``rl.critics.choice`` builds it."""
        return beside_policy(self.critic, steps=self.actor.steps, batch=self.actor.batch)


class DelayedActorCritic(Part):
    """Actor and critic: steps of the critic on the smoothed target policy's actions, and one of the policy every ``delay``
    steps (arXiv:2106.06860, Eq. 3 and 5).
    """

    name = "policy"
    computing = Computing()

    def __init__(self, context: RunContext, config: TD3BCConfig) -> None:
        a, sizes = config.actor, (context.states, context.actions)
        critic = context.fresh("critic", lambda: make_critic(config.built_critic, *sizes, context.device))
        assert isinstance(critic, TD)
        self.critic, self.config, self.data = critic, a, context.data
        self.steps = a.steps
        self.settings = {"actor": a.model_dump(mode="json"), "critic": critic_settings(config.built_critic)}
        self.actor = context.fresh("actor", lambda: make_actor(a, *sizes))
        self.fit = Fit(self.actor, lr=a.lr, steps=a.steps // a.delay, decay=a.decay)
        self.target = self.fit.follow(self.actor, 1 - config.critic.polyak)
        self.target.update_parameters(self.actor)  # the first call copies

    def update(self, generator: torch.Generator) -> Metrics:
        """Take one step on transitions of the data, and return its metrics."""
        return self.update_on(self.data.sample(self.config.batch, generator), generator)

    def update_on(self, batch: Batch, generator: torch.Generator) -> Metrics:
        """Take one step on a given batch, and return its metrics."""
        actions = self.next_actions(batch.next_state, generator)
        with self.computing.autocast(self.fit.device):
            loss, metrics = self.critic.loss((batch, actions))
        self.critic.fit.descend(loss)
        if self.critic.fit.step % self.config.delay:
            return metrics
        with self.computing.autocast(self.fit.device):
            loss, more = self.actor_loss(batch)
        self.fit.descend(loss)
        return metrics | more

    @torch.no_grad()
    def next_actions(self, state: Tensor, generator: torch.Generator) -> Tensor:
        """Draw actions of the target policy with clipped noise: (B, S) -> (B, A)."""
        actions: Tensor = self.target(state)
        limit = self.config.noise_clip
        noise = self.config.noise * torch.randn(actions.shape, generator=generator, device=actions.device)
        return (actions + noise.clamp(-limit, limit)).clamp(-1, 1)

    def actor_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Compute -lambda E Q_1(s, pi(s)) + E (pi(s) - a)^2, lambda = alpha / E |Q_1(s, pi(s))|."""
        action = self.actor.mean(batch.state)
        q = frozen(self.critic.values.q)(batch.state, action)[0]
        weight = self.config.alpha / q.detach().abs().mean().clamp(min=1e-6)
        cloning = (action - batch.action).square().mean()
        return cloning - weight * q.mean(), {"cloning_loss": cloning.detach(), "q_policy": q.detach().mean()}

    @override
    def networks(self) -> dict[str, nn.Module]:
        return {"actor": self.actor}

    def _parts(self) -> dict[str, Any]:
        return {"critic": self.critic, "actor": self.fit}

    def state(self) -> dict[str, Tensor]:
        """Return the state of both, with their targets."""
        parts = {k: v for name, part in self._parts().items() for k, v in prefixed(name, part.state()).items()}
        return {**parts, **prefixed("target", self.target.state_dict())}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore the tensors returned by ``state``."""
        for name, part in self._parts().items():
            part.load(group(name, state))
        self.target.load_state_dict(group("target", state))


class TD3BC(Agent):
    """TD3+BC (arXiv:2106.06860): a deterministic policy towards high Q and towards the data's actions, with a critic on the
    policy's own actions.
    """

    Config: ClassVar[type[RunConfig]] = TD3BCConfig
    config: TD3BCConfig

    def __init__(self, config: TD3BCConfig, data: OfflineData, device: torch.device) -> None:
        super().__init__(config, data, device)
        self.learner = DelayedActorCritic(self.context, config)
        self.actor = self.learner.actor

    @classmethod
    @override
    def check(cls, config: Any) -> None:
        if config.critic.name != "td":
            raise UserError(
                f"'{config.critic.name}' does not learn from the policy's actions, as TD3+BC's critic must; use td",
                key="critic.name",
            )
        check_critic(config.built_critic)

    @override
    def parts(self) -> Sequence[Part]:
        return [self.learner]

    @override
    def named_policies(self) -> Mapping[str, AgentPolicy]:
        return {"policy": ActorPolicy(self.learner, self.actor)}
