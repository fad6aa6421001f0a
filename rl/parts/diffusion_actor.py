"""Diffusion policy that imitates the data while a critic improves it; the method defines the improvement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from typing_extensions import override

from egd.bounds import Beta, Candidates, NotNegative
from egd.checkpoint import group, prefixed
from egd.config.base import Strict
from egd.config.sections import DenoiserConfig
from egd.denoisers import at_unit_scale, diffuse, prediction_target, random_times
from egd.selection import best_of
from egd.training.learners import Metrics, StepLearner
from egd.training.precision import Computing
from rl.config import CriticConfig, DiffusionConfig
from rl.critics import Critic, MinusAdvantage
from rl.critics.choice import beside_policy, critic_settings
from rl.data.transitions import Batch
from rl.parts.action_sampling import Choice
from rl.parts.actors import frozen
from rl.parts.base import Part
from rl.parts.behaviour import Behaviour
from rl.parts.policies import AgentPolicy

T_MIN = 1e-3  # smallest time of the denoising loss, as in DenoiserLearner


class ImprovementConfig(Strict):
    """Settings of the policy's improvement by a critic."""

    eta: NotNegative = 1.0
    """Weight of the critic's term against the denoising loss, a mean over entries; 0 is pure imitation."""
    backup: Candidates = 1
    """Number of actions in each next state, of which Q's target takes the best (max-Q backup)."""
    clip: NotNegative = 0.0
    """Largest norm of the policy's gradient, and of that of a critic trained with it; 0 for no limit."""
    clip_x0: bool = True
    """Keep the denoiser's x_0 within the range of the data's actions, in training and in acting."""


class ActingConfig(Strict):
    """Settings of acting."""

    candidates: Candidates = 50
    """Number of actions drawn for every state, of which one is kept."""
    selection: Literal["best", "softmax"] = "softmax"
    """Choice among the candidates: the one of highest Q, or one drawn by softmax(beta Q)."""
    beta: Beta = 1.0


class DiffusionActorConfig(DiffusionConfig):
    """Settings of a diffusion policy, in ``denoiser``, and its critic.

    The critic ``td`` learns from the policy's own actions and in step with it: its ``steps`` and ``batch`` are then the
    policy's.
    """

    denoiser: DenoiserConfig = DenoiserConfig(steps=1_000_000, ema=0.999)
    critic: CriticConfig = CriticConfig(name="td")
    improvement: ImprovementConfig = ImprovementConfig()
    acting: ActingConfig = ActingConfig()

    @property
    def on_policy(self) -> bool:
        """Flag that the critic learns from the policy's own actions, and so in step with it."""
        return self.critic.name == "td"

    @property
    def built_critic(self) -> CriticConfig:
        """Settings of the critic as ``rl.critics.choice`` builds it."""
        if not self.on_policy:
            return self.critic
        return beside_policy(self.critic, steps=self.denoiser.steps, batch=self.denoiser.batch)


class NoisedTransitions(NamedTuple):
    """Transitions, times t (B,) and noise (B, A) of the denoising loss, and ``member`` (1,), a member of the critic."""

    batch: Batch
    t: Tensor
    noise: Tensor
    member: Tensor


ImprovementLoss: TypeAlias = Callable[[NoisedTransitions, Tensor, Tensor, torch.Generator], tuple[Tensor, Metrics]]
"""Computes the loss () by which a critic improves the policy, and metrics, from (noised, x_t (B, A), the network's prediction
at x_t (B, A), generator)."""


class DiffusionActor(Part, StepLearner):
    """Diffusion policy, trained on the denoising loss + eta times an improvement loss."""

    name = "policy"

    def __init__(
        self,
        behaviour: Behaviour,
        critic: Critic,
        config: DiffusionActorConfig,
        improvement_loss: ImprovementLoss,
        after: Sequence[Part] = (),
    ) -> None:
        self.behaviour, self.critic, self.config, self.fit = behaviour, critic, config, behaviour.fit
        self.improvement_loss, self.steps, self.after = improvement_loss, config.denoiser.steps, after
        dumped = config.model_dump(mode="json", include={"schedule", "denoiser", "sampler", "improvement"})
        self.settings = {**dumped, "critic": critic_settings(config.built_critic)}
        self.fit.clip = config.improvement.clip
        self.generator = torch.Generator()

    @override
    def draw(self, generator: torch.Generator) -> NoisedTransitions:
        self.generator = generator
        batch = self.behaviour.data.sample(self.config.denoiser.batch, generator)
        t = random_times(len(batch), T_MIN, generator)
        noise = torch.randn(batch.action.shape, generator=generator, device=t.device)
        member = torch.randint(self.critic.values.q.members, (1,), generator=generator, device=t.device)
        return NoisedTransitions(batch, t, noise, member)

    @override
    def loss(self, drawn: NoisedTransitions) -> tuple[Tensor, Metrics]:
        batch, t, noise, _ = drawn
        schedule, prediction, eta = self.behaviour.schedule, self.config.denoiser.prediction, self.config.improvement.eta
        x = diffuse(schedule, batch.action, t, noise)
        output = at_unit_scale(self.fit.module, schedule)(x, t, batch.state)
        loss = (output - prediction_target(schedule, batch.action, t, noise, prediction)).square().mean()
        metrics = {"loss": loss.detach()}  # 1 for a noise model that always predicts 0
        if eta > 0:
            improvement_loss, more = self.improvement_loss(drawn, x, output, self.generator)
            loss, metrics = loss + eta * improvement_loss, metrics | more
        return loss, metrics

    @torch.no_grad()
    def next_actions(self, state: Tensor, generator: torch.Generator) -> Tensor:
        """Draw actions of the averaged policy for Q's target, the best of ``backup`` by the target Q: (B, S) -> (B, A)."""
        improvement = self.config.improvement
        drawn = self.behaviour.actions(state, improvement.backup, generator, improvement.clip_x0)
        if improvement.backup == 1:
            return drawn[:, 0]
        return best_of(drawn, lambda a, s: -self.critic.q(s, a), state)  # type: ignore[arg-type]  # states are tensors

    def policy(self) -> AgentPolicy:
        """Return the policy that acts: of candidates of the averaged network one is kept by its Q."""
        acting = self.config.acting
        energy = MinusAdvantage(self.critic, torch.ones((), device=self.fit.device))
        choice = Choice(energy, acting.beta, acting.candidates, acting.selection)
        policy = self.behaviour.policy(self.config.improvement.clip_x0, choice=choice)
        policy.part = self
        return policy

    @override
    def networks(self) -> dict[str, nn.Module]:
        return self.behaviour.networks()

    @override
    def loss_networks(self) -> dict[str, nn.Module]:
        return {"critic": self.critic.values, "target": self.critic.target.module}


def normalised_q_loss(critic: Critic, state: Tensor, actions: Tensor, member: Tensor) -> tuple[Tensor, Metrics]:
    """Compute -E Q_i(s, a) / E |Q_j(s, a)|, j the member after i: Diffusion-QL (arXiv:2208.06193) with scaled Q."""
    q = frozen(critic.values.q)(state, actions)
    value = q.index_select(0, member).mean()
    unit = q.detach().index_select(0, (member + 1) % len(q)).abs().mean().clamp(min=1e-6)
    return -value / unit, {"q_policy": value.detach()}


class ActorCritic(Part):
    """Actor and critic, trained in turn: a step of the critic on the policy's own actions in the next states, then one of the
    policy on the same batch.
    """

    name = "policy"
    computing = Computing()

    def __init__(self, policy: DiffusionActor) -> None:
        self.policy, self.critic = policy, policy.critic
        self.steps, self.settings = policy.steps, policy.settings
        if policy.config.on_policy:
            self.critic.fit.clip = policy.config.improvement.clip

    @override
    def networks(self) -> dict[str, nn.Module]:
        return self.policy.networks() | self.policy.loss_networks()

    def update(self, generator: torch.Generator) -> Metrics:
        """Take a step of the critic, then one of the policy, and return their metrics."""
        drawn = self.policy.draw(generator)
        batch = drawn.batch
        next_actions = self.policy.next_actions(batch.next_state, generator)
        critic_metrics = self._descend(self.critic, (batch, next_actions))
        return self._descend(self.policy, drawn) | {f"critic/{name}": value for name, value in critic_metrics.items()}

    def _descend(self, part: Critic | DiffusionActor, drawn: Any) -> Metrics:
        with self.computing.autocast(part.fit.device):
            loss, metrics = part.loss(drawn)
        part.fit.descend(loss)
        return metrics

    def state(self) -> dict[str, Tensor]:
        """Return the state of both."""
        return {**prefixed("policy", self.policy.state()), **prefixed("critic", self.critic.state())}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore the tensors returned by ``state``."""
        self.policy.load(group("policy", state))
        self.critic.load(group("critic", state))
