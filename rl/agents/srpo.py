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
from rl.agents.direct import DirectAgent
from rl.critics import Critic
from rl.critics.choice import check_critic
from rl.data.transitions import OfflineData
from rl.parts.actors import make_actor
from rl.parts.base import Part, RunContext
from rl.parts.behaviour import Behaviour, check_sampling
from rl.parts.critic import OfflineCritic
from rl.runs.config import ActorConfig, CriticConfig, DiffusionConfig

WEIGHTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "variance": lambda alpha, sigma: sigma**2,
    "constant": lambda alpha, sigma: torch.ones_like(sigma),
    "score": lambda alpha, sigma: alpha / sigma,
}
"""w(t) by its name, of alpha_t and sigma_t (B,)."""


class RegularisationConfig(Strict):
    """The balance of critic and behaviour policy."""

    beta: Beta = 0.05
    """Weight of Q's gradient against the score's."""
    weight: Literal["variance", "constant", "score"] = "variance"
    """w(t) = sigma_t^2, 1 or alpha_t / sigma_t."""
    t_min: ProperShare = 0.02
    t_max: PositiveShare = 0.98
    unit_gradient: bool = False
    """Q's gradient divided by its root mean square over the action's entries: beta then has no unit (published for mazes)."""


class SRPOActorConfig(ActorConfig):
    """Of the policy's network."""

    name: Literal["deterministic"] = "deterministic"


class SRPOConfig(DiffusionConfig):
    """A behaviour policy, a critic, and the actor made of both."""

    agent: str = "srpo"
    critic: CriticConfig = CriticConfig()
    actor: SRPOActorConfig = SRPOActorConfig()
    regularisation: RegularisationConfig = RegularisationConfig()


Drawn: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""States (B, S), times (B,) and noise (B, A)."""


class ScoreRegularised(StepLearner):
    """An actor pi along  beta grad_a Q(s, a) - E_t,eps[w(t) (eps(a_t, t, s) - eps)],  a = pi(s), a_t = alpha_t a + sigma_t eps,
    eps(., .) the noise model's: SRPO (arXiv:2310.07297), its gradient times beta.

    Where the noise model is exact the second term is the gradient of E_t[w(t) sigma_t / alpha_t KL(pi_t || mu_t)]. ``networks``
    are those that critic and denoiser read.
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

    def draw(self, generator: torch.Generator) -> Drawn:
        """States, times and noise."""
        action, state = self.sample(self.batch, generator)
        assert isinstance(state, Tensor)
        low, high = self.settings.t_min, self.settings.t_max
        t = low + (high - low) * torch.rand(len(action), generator=generator, device=action.device)
        return state, t, torch.randn(action.shape, generator=generator, device=action.device)

    def loss(self, drawn: Drawn) -> tuple[Tensor, Metrics]:
        """A number whose gradient is the one above; the metrics are Q of the policy and the sizes of the two terms."""
        state, t, noise = drawn
        action: Tensor = self.fit.module(state)
        here = action.detach()
        pull = self.pull(here, state, t, noise)
        q, push = value_and_grad(lambda a: self.critic.q(state, a), here)
        if self.settings.unit_gradient:
            push = push / push.square().mean(1, keepdim=True).sqrt().clamp(min=1e-8)
        push = self.settings.beta * push
        loss = ((pull - push).detach() * action).sum(1).mean()
        sizes = {name: size.square().sum(1).mean().sqrt() for name, size in (("push", push), ("pull", pull))}
        return loss, {"q_policy": q.mean(), **{name: size.detach() for name, size in sizes.items()}}

    def loss_networks(self) -> dict[str, nn.Module]:
        """The ``networks``."""
        return self.networks

    @torch.no_grad()
    def pull(self, action: Tensor, state: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """w(t) (eps(a_t, t, s) - eps): (B, A)"""
        x = diffuse(self.schedule, action, t, noise)
        eps = convert(self.denoiser(x, t, state), x, t, self.schedule, "sample", "epsilon")
        return expand(self.weight(self.schedule.alpha(t), self.schedule.sigma(t)), x) * (eps - noise)


class ImprovedActor(Part):
    """The actor of SRPO, which comes after behaviour model and critic."""

    name = "policy"
    members = ("state",)

    def __init__(self, context: RunContext, config: SRPOConfig, behaviour: Behaviour, critic: OfflineCritic) -> None:
        a = config.actor
        self.steps, self.settings = a.steps, config.model_dump(mode="json", include={"actor", "regularisation"})
        self.after = [behaviour, critic]
        self.actor = context.fresh("actor", lambda: make_actor(a, context.states, context.actions))
        self.fit = Fit(self.actor, lr=a.lr, steps=a.steps, decay=a.decay)
        trained = (behaviour.sample, critic.critic, behaviour.denoiser(clip=False), behaviour.schedule)
        self._learner = ScoreRegularised(
            self.fit, *trained, config.regularisation, batch=a.batch, networks=self.loss_networks()
        )

    @property
    @override
    def learner(self) -> ScoreRegularised:
        return self._learner

    @override
    def networks(self) -> dict[str, nn.Module]:
        return {"actor": self.actor}


class SRPO(DirectAgent):
    """SRPO (arXiv:2310.07297): behaviour diffusion and implicit Q-learning, and a deterministic policy by Q's gradient and the
    behaviour policy's score. Nothing is sampled, neither in training nor in acting.
    """

    Config: ClassVar[type[SRPOConfig]] = SRPOConfig
    config: SRPOConfig

    def __init__(self, config: SRPOConfig, data: OfflineData, device: torch.device) -> None:
        super().__init__(config, data, device)
        self.behaviour = Behaviour(self.context, config)
        self.critic_part = OfflineCritic(self.context, config.critic)
        self.critic = self.critic_part.critic
        self.improved = ImprovedActor(self.context, config, self.behaviour, self.critic_part)
        self.actor = self.improved.actor

    @classmethod
    def check(cls, config: SRPOConfig) -> None:
        """UserError for a component that does not exist, a setting it does not have, or times in the wrong order."""
        check_sampling(config)
        check_critic(config.critic, support=False)
        low, high = config.regularisation.t_min, config.regularisation.t_max
        if low >= high:
            raise UserError(f"t_min = {low:g} is not below t_max = {high:g}", key="regularisation.t_min")

    @override
    def parts(self) -> Sequence[Part]:
        return [self.behaviour, self.critic_part, self.improved]
