"""SRPO: a deterministic policy between a critic's gradient and the score of the behaviour policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn
from typing_extensions import override

from egd.bounds import Beta, PositiveShare, ProperShare
from egd.config.base import Strict
from egd.denoisers import convert, diffuse
from egd.errors import UserError
from egd.tensors import expand, value_and_grad
from egd.training.learners import Fit, Metrics, StepLearner
from egd.types import Denoiser, Sample, Schedule
from rl.agents.base import Agent
from rl.config import ActorConfig, CriticConfig, DiffusionConfig
from rl.critics import Critic
from rl.critics.choice import check_critic
from rl.data.transitions import OfflineData
from rl.parts.actors import Actor
from rl.parts.base import Part
from rl.parts.behaviour import Behaviour, check_sampling
from rl.parts.critic import OfflineCritic
from rl.parts.policies import ActorPolicy, AgentPolicy
from rl.parts.trained_actor import TrainedActor

WEIGHTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "variance": lambda alpha, sigma: sigma**2,
    "constant": lambda alpha, sigma: torch.ones_like(sigma),
    "score": lambda alpha, sigma: alpha / sigma,
}
"""Weights w(t) by name, as functions of alpha_t and sigma_t (B,)."""


class RegularisationConfig(Strict):
    """Settings of the balance between critic and behaviour policy."""

    beta: Beta = 0.05
    """Weight of Q's gradient against the score's."""
    weight: Literal["variance", "constant", "score"] = "variance"
    """Weight w(t): sigma_t^2, 1 or alpha_t / sigma_t."""
    t_min: ProperShare = 0.02
    t_max: PositiveShare = 0.98
    unit_gradient: bool = False
    """Divide Q's gradient by its root mean square over the action's entries: beta then has no unit (published for mazes)."""


class SRPOActorConfig(ActorConfig):
    """Settings of the policy's network."""

    name: Literal["deterministic"] = "deterministic"


class SRPOConfig(DiffusionConfig):
    """Settings of a behaviour policy, a critic, and the actor made of both."""

    agent: str = "srpo"
    critic: CriticConfig = CriticConfig()
    actor: SRPOActorConfig = SRPOActorConfig()
    regularisation: RegularisationConfig = RegularisationConfig()


NoisedStates: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""States (B, S), times (B,) and noise (B, A)."""


class ScoreRegularised(StepLearner):
    """Learner of an actor pi along the gradient of SRPO (arXiv:2310.07297) times beta:

        beta grad_a Q(s, a) - E_t,eps[w(t) (eps(a_t, t, s) - eps)],  a = pi(s),  a_t = alpha_t a + sigma_t eps,

    where eps(., .) is the noise model's prediction.

    Where the noise model is exact, the second term is the gradient of E_t[w(t) sigma_t / alpha_t KL(pi_t || mu_t)].
    ``networks`` are those that critic and denoiser evaluate.
    """

    def __init__(
        self,
        fit: Fit,
        sample: Sample,
        critic: Critic,
        denoiser: Denoiser,
        schedule: Schedule,
        settings: RegularisationConfig,
        *,
        batch: int,
        networks: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.fit, self.sample, self.critic, self.batch = fit, sample, critic, batch
        self.denoiser, self.schedule, self.settings = denoiser, schedule, settings
        self.weight, self.networks = WEIGHTS[settings.weight], dict(networks or {})

    @override
    def draw(self, generator: torch.Generator) -> NoisedStates:
        action, state = self.sample(self.batch, generator)
        assert isinstance(state, Tensor)
        low, high = self.settings.t_min, self.settings.t_max
        t = low + (high - low) * torch.rand(len(action), generator=generator, device=action.device)
        return state, t, torch.randn(action.shape, generator=generator, device=action.device)

    @override
    def loss(self, drawn: NoisedStates) -> tuple[Tensor, Metrics]:
        state, t, noise = drawn
        action: Tensor = self.fit.module(state)
        here = action.detach()
        pull = self.pull(here, state, t, noise)
        q, push = value_and_grad(lambda a: self.critic.q(state, a), here)
        if self.settings.unit_gradient:
            push = push / push.square().mean(1, keepdim=True).sqrt().clamp(min=1e-8)
        push = self.settings.beta * push
        loss = ((pull - push).detach() * action).sum(1).mean()  # its gradient is the one above
        sizes = {name: size.square().sum(1).mean().sqrt() for name, size in (("push", push), ("pull", pull))}
        return loss, {"q_policy": q.mean(), **{name: size.detach() for name, size in sizes.items()}}

    @override
    def loss_networks(self) -> dict[str, nn.Module]:
        return self.networks

    @torch.no_grad()
    def pull(self, action: Tensor, state: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Compute the score's term, w(t) (eps(a_t, t, s) - eps): (B, A)."""
        x = diffuse(self.schedule, action, t, noise)
        eps = convert(self.denoiser(x, t, state), x, t, self.schedule, "sample", "epsilon")
        return expand(self.weight(self.schedule.alpha(t), self.schedule.sigma(t)), x) * (eps - noise)


class SRPO(Agent):
    """SRPO (arXiv:2310.07297): behaviour diffusion, implicit Q-learning, and a deterministic policy by Q's gradient and the
    behaviour policy's score.

    Nothing is sampled, neither in training nor in acting.
    """

    Config: ClassVar[type[SRPOConfig]] = SRPOConfig
    config: SRPOConfig

    def __init__(self, config: SRPOConfig, data: OfflineData, device: torch.device) -> None:
        super().__init__(config, data, device)
        self.behaviour = Behaviour(self.context, config)
        self.critic_part = OfflineCritic(self.context, config.critic)
        self.critic = self.critic_part.critic
        self.policy_part = TrainedActor(
            self.context,
            config.actor,
            self.score_regularised,
            settings=config.model_dump(mode="json", include={"regularisation"}),
            members=("state",),
            after=[self.behaviour, self.critic_part],
        )
        self.actor = self.policy_part.actor

    @classmethod
    @override
    def check(cls, config: SRPOConfig) -> None:
        check_sampling(config)
        check_critic(config.critic, support=False)
        low, high = config.regularisation.t_min, config.regularisation.t_max
        if low >= high:
            raise UserError(f"t_min = {low:g} is not below t_max = {high:g}", key="regularisation.t_min")

    @override
    def parts(self) -> Sequence[Part]:
        return [self.behaviour, self.critic_part, self.policy_part]

    def score_regularised(self, actor: Actor, fit: Fit) -> ScoreRegularised:
        """Return the learner of the policy, on critic and noise model."""
        b, batch, settings = self.behaviour, self.config.actor.batch, self.config.regularisation
        networks = {**b.networks(), **self.critic_part.networks()}
        trained = (self.critic, b.denoiser(clip=False), b.schedule)
        return ScoreRegularised(fit, b.sample, *trained, settings, batch=batch, networks=networks)

    @override
    def named_policies(self) -> Mapping[str, AgentPolicy]:
        return {"policy": ActorPolicy(self.policy_part, self.actor)}
