"""A diffusion policy that a critic improves while it imitates the data: what Diffusion-QL and EDP share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn
from typing_extensions import override

from egd.bounds import Beta, Candidates, NotNegative
from egd.config.base import Strict
from egd.denoisers import at_unit_scale, diffuse, prediction_target, random_times
from egd.runs.checkpoint import group, prefixed
from egd.selection import best_of
from egd.training.learners import Metrics, StepLearner
from egd.training.precision import Computing
from rl.agents.base import Agent
from rl.critics import Critic, MinusAdvantage
from rl.critics.choice import beside_policy, check_critic, critic_settings
from rl.critics.td import TD
from rl.data.transitions import Batch, OfflineData
from rl.parts.actors import frozen
from rl.parts.base import Part
from rl.parts.behaviour import Behaviour, check_sampling
from rl.parts.critic import OfflineCritic
from rl.parts.guided_policy import Choice
from rl.parts.policies import AgentPolicy
from rl.runs.config import CriticConfig, DenoiserConfig, DiffusionConfig

T_MIN = 1e-3  # of the times of the denoising loss, as in DenoiserLearner


class ImprovementConfig(Strict):
    """How a critic improves the policy."""

    eta: NotNegative = 1.0
    """Weight of the critic's term against the denoising loss, a mean over entries; 0 is plain imitation."""
    backup: Candidates = 1
    """So many actions in each next state, of which Q's target takes the best (max-Q backup)."""
    clip: NotNegative = 0.0
    """Largest norm of a gradient, of the policy's and of that of a critic trained with it; 0: any."""
    clip_x0: bool = True
    """Keep the denoiser's x_0 within the range of the data's actions, in training and in acting."""


class ActingConfig(Strict):
    """How the policy acts."""

    candidates: Candidates = 50
    """Actions drawn for every state, of which one is kept."""
    selection: Literal["best", "softmax"] = "softmax"
    """That of highest Q, or one by softmax(beta Q)."""
    beta: Beta = 1.0


class DiffusionActorConfig(DiffusionConfig):
    """A diffusion policy, which is ``denoiser``, and its critic. The critic ``td`` learns from the policy's own actions, and in
    step with it: its ``steps`` and ``batch`` are then the policy's.
    """

    denoiser: DenoiserConfig = DenoiserConfig(steps=1_000_000, ema=0.999)
    critic: CriticConfig = CriticConfig(name="td")
    improvement: ImprovementConfig = ImprovementConfig()
    acting: ActingConfig = ActingConfig()

    @property
    def built_critic(self) -> CriticConfig:
        """As ``rl.critics.choice`` builds it."""
        if self.critic.name != "td":
            return self.critic
        return beside_policy(self.critic, steps=self.denoiser.steps, batch=self.denoiser.batch)


Drawn: TypeAlias = tuple[Batch, Tensor, Tensor, Tensor]
"""Transitions, times (B,) and noise (B, A) of the denoising loss, and which member of the critic judges, (1,)."""


class Improved(Part, StepLearner):
    """The denoising loss + eta ``improvement`` of the policy's ``actions``, on the policy's network."""

    name = "policy"

    def __init__(self, behaviour: Behaviour, critic: Critic, config: DiffusionActorConfig, after: Sequence[Part] = ()) -> None:
        self.behaviour, self.critic, self.config, self.fit = behaviour, critic, config.improvement, behaviour.fit
        self.steps, self.after = config.denoiser.steps, after
        dumped = config.model_dump(mode="json", include={"schedule", "denoiser", "sampler", "improvement"})
        self.settings = {**dumped, "critic": critic_settings(config.built_critic)}
        self.generator = torch.Generator()

    @abstractmethod
    def actions(self, state: Tensor, x: Tensor, t: Tensor, output: Tensor) -> Tensor:
        """Actions (B, A) of the policy in training, with their graph; ``output`` (B, A) is what its network predicts of the
        data's actions noised to x (B, A) at t (B,).
        """

    def draw(self, generator: torch.Generator) -> Drawn:
        """A batch, times, noise, a judge."""
        self.generator = generator
        batch = self.behaviour.data.sample(self.behaviour.config.denoiser.batch, generator)
        t = random_times(len(batch), T_MIN, generator)
        noise = torch.randn(batch.action.shape, generator=generator, device=t.device)
        judge = torch.randint(self.critic.values.q.members, (1,), generator=generator, device=t.device)
        return batch, t, noise, judge

    def loss(self, drawn: Drawn) -> tuple[Tensor, Metrics]:
        """The metric ``loss`` is the denoising loss, 1 for a noise model that predicts nothing."""
        batch, t, noise, judge = drawn
        schedule, prediction = self.behaviour.schedule, self.behaviour.config.denoiser.prediction
        x = diffuse(schedule, batch.action, t, noise)
        output = at_unit_scale(self.fit.module, schedule)(x, t, batch.state)
        loss = (output - prediction_target(schedule, batch.action, t, noise, prediction)).square().mean()
        metrics = {"loss": loss.detach()}
        if self.config.eta > 0:
            improvement, more = self.improvement(batch, self.actions(batch.state, x, t, output), judge)
            loss, metrics = loss + self.config.eta * improvement, metrics | more
        return loss, metrics

    def improvement(self, batch: Batch, actions: Tensor, judge: Tensor) -> tuple[Tensor, Metrics]:
        """-E Q_i(s, a) / E |Q_j(s, a)| with j the member after i: Diffusion-QL (arXiv:2208.06193), its Q scaled."""
        q = frozen(self.critic.values.q)(batch.state, actions)
        value = q.index_select(0, judge).mean()
        unit = q.detach().index_select(0, (judge + 1) % len(q)).abs().mean().clamp(min=1e-6)
        return -value / unit, {"q_policy": value.detach()}

    @torch.no_grad()
    def next_actions(self, state: Tensor, generator: torch.Generator) -> Tensor:
        """Actions of the averaged policy for Q's target, the best of ``backup`` by the target Q: (B, S) -> (B, A)"""
        drawn = self.behaviour.actions(state, self.config.backup, generator, self.config.clip_x0)
        if self.config.backup == 1:
            return drawn[:, 0]
        return best_of(drawn, lambda a, s: -self.critic.q(s, a), state)  # type: ignore[arg-type]  # states are tensors

    @override
    def networks(self) -> dict[str, nn.Module]:
        return self.behaviour.networks()

    @override
    def loss_networks(self) -> dict[str, nn.Module]:
        return {"critic": self.critic.values, "target": self.critic.target.module}


class ActorCritic(Part):
    """One step of a critic on the policy's own actions in the next states, then one of the policy, on the same batch."""

    name = "policy"
    computing = Computing()

    def __init__(self, policy: Improved, critic: Critic) -> None:
        self.policy, self.critic = policy, critic
        self.steps, self.settings = policy.steps, policy.settings

    @override
    def networks(self) -> dict[str, nn.Module]:
        return self.policy.networks() | self.policy.loss_networks()

    def update(self, generator: torch.Generator) -> Metrics:
        """Of both."""
        drawn = self.policy.draw(generator)
        batch = drawn[0]
        next_actions = self.policy.next_actions(batch.next_state, generator)
        of_critic = self._descend(self.critic, (batch, next_actions))
        return self._descend(self.policy, drawn) | {f"critic/{name}": value for name, value in of_critic.items()}

    def _descend(self, part: Critic | Improved, drawn: Any) -> Metrics:
        with self.computing.autocast(part.fit.device):
            loss, metrics = part.loss(drawn)
        part.fit.descend(loss)
        return metrics

    def state(self) -> dict[str, Tensor]:
        """Of both."""
        return {**prefixed("policy", self.policy.state()), **prefixed("critic", self.critic.state())}

    def load(self, state: dict[str, Tensor]) -> None:
        """The inverse of ``state``."""
        self.policy.load(group("policy", state))
        self.critic.load(group("critic", state))


class DiffusionActor(Agent):
    """A policy by ``Learner``; acting, candidates are drawn from it and one is kept by its Q."""

    Config: ClassVar[type[DiffusionActorConfig]] = DiffusionActorConfig
    Learner: ClassVar[type[Improved]]
    config: DiffusionActorConfig

    def __init__(self, config: DiffusionActorConfig, data: OfflineData, device: torch.device) -> None:
        super().__init__(config, data, device)
        self.behaviour = Behaviour(self.context, config)
        self.critic_part = OfflineCritic(self.context, config.built_critic)
        self.critic = self.critic_part.critic
        self.behaviour.fit.clip = config.improvement.clip
        if self.together:
            self.critic.fit.clip = config.improvement.clip
        before = [] if self.together else [self.critic_part]
        self.improved = self.Learner(self.behaviour, self.critic, config, before)

    @classmethod
    def check(cls, config: DiffusionActorConfig) -> None:
        """UserError for a component that does not exist or a setting it does not have."""
        check_sampling(config)
        check_critic(config.built_critic, support=False)

    @property
    def together(self) -> bool:
        """Whether the critic learns from the policy's actions, and so in step with it."""
        return isinstance(self.critic, TD)

    @override
    def parts(self) -> Sequence[Part]:
        """List the two in one where the critic asks for the policy's actions; else the critic first."""
        if self.together:
            return [ActorCritic(self.improved, self.critic)]
        return [self.critic_part, self.improved]

    @override
    def named_policies(self) -> Mapping[str, AgentPolicy]:
        """The averaged network's samples, one of the candidates kept."""
        acting = self.config.acting
        energy = MinusAdvantage(self.critic, torch.ones((), device=self.device))
        choice = Choice(energy, acting.beta, acting.candidates, acting.selection)
        policy = self.behaviour.policy(self.config.improvement.clip_x0, choice=choice)
        policy.part = self.improved
        return {"policy": policy}
