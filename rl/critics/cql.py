"""Conservative Q-learning: a soft actor-critic whose Q is lowered at random and actor's actions and raised at the data's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn
from typing_extensions import override

from egd.bounds import Candidates, Layers, NotNegative, Number, Rate, Width
from egd.networks.mlp import ActivationName
from egd.training.learners import Fit, Learner, Metrics
from rl.critics.base import Critic, CriticLearner, Shared
from rl.data.transitions import Batch, OfflineData
from rl.parts.actors import TanhGaussianActor, frozen
from rl.parts.support_actions import SupportTable

__all__ = ["CQL"]


@dataclass(frozen=True)
class NoisyBatch:
    """Transitions, and all random numbers of a step.

    ``actor_noise`` (B, 1, A) is standard normal, for the action that the actor learns from. ``noise`` (B, n, A) and
    ``next_noise`` (B, n, A) are standard normal, for the actor's actions in s and in s' at which Q is evaluated; ``uniform``
    (B, n, A) are uniform actions. ``floor`` (B,), if given, bounds Q of the actor's actions from below.
    """

    batch: Batch
    actor_noise: Tensor
    noise: Tensor
    next_noise: Tensor
    uniform: Tensor
    floor: Tensor | None = None


torch.export.register_dataclass(NoisyBatch)


class CQL(Critic):
    """Twin (or more) Q by CQL(H) (arXiv:2006.04779, Eq. 4 and appendix F), trained together with its actor.

    The loss is the error of temporal differences plus ``alpha`` times log sum exp Q(s, .) - Q(s, a), estimated by importance
    sampling from ``actions`` actions each of the uniform distribution, pi(. | s) and pi(. | s'). With a ``gap`` the term has
    a Lagrange multiplier, which grows while the term exceeds the gap. ``max_target_backup`` takes the best of ``actions``
    next actions instead of one; ``clip_min`` bounds the term's difference from below; ``target_entropy`` defaults to minus
    the number of an action's entries. V is regressed on Q at the actor's action, and nothing is learned from it.
    Calibrated Q-learning passes the data's return from the state on as ``floor`` to ``draw``.
    """

    def __init__(
        self,
        state: int,
        action: int,
        *,
        alpha: NotNegative = 10.0,
        actions: Candidates = 10,
        gap: Number | None = None,
        max_target_backup: bool = False,
        clip_min: Number | None = None,
        target_entropy: Number | None = None,
        policy_lr: Rate = 3e-5,
        policy_width: Width = 256,
        policy_layers: Layers = 3,
        policy_activation: ActivationName = "relu",
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(state, action, **shared)
        device = self.fit.device
        self.alpha, self.actions, self.gap = alpha, actions, gap
        self.max_target_backup, self.clip_min = max_target_backup, clip_min
        self.target_entropy = -float(action) if target_entropy is None else target_entropy
        actor = TanhGaussianActor(state, action, width=policy_width, layers=policy_layers, activation=policy_activation)
        self.actor = actor.to(device)
        self.temperature = _Exponential(0.0).to(device)
        parts: dict[str, nn.Module] = {"critic": self.values, "actor": self.actor, "temperature": self.temperature}
        if gap is not None:
            self.multiplier = parts["multiplier"] = _Exponential(1.0).to(device)
        rates = {"actor": policy_lr, "temperature": policy_lr}
        self._learn(Fit(nn.ModuleDict(parts), lr=self.fit.lr, steps=self.fit.steps, decay=self.fit.decay, rates=rates))

    @override
    def learner(self, data: OfflineData, batch: int, support: SupportTable | None) -> Learner:
        def sample(generator: torch.Generator) -> NoisyBatch:
            return self.draw(data.sample(batch, generator), generator)

        return CriticLearner(self, sample)

    def draw(self, batch: Batch, generator: torch.Generator, floor: Tensor | None = None) -> NoisyBatch:
        """Draw the random numbers of a step for a batch; ``floor`` (B,) as in ``NoisyBatch``."""
        b, a = batch.action.shape

        def noise(k: int) -> Tensor:
            return torch.randn(b, k, a, generator=generator, device=batch.action.device)

        uniform = 2 * torch.rand(b, self.actions, a, generator=generator, device=batch.action.device) - 1
        return NoisyBatch(batch, noise(1), noise(self.actions), noise(self.actions), uniform, floor)

    @override
    def loss(self, drawn: NoisyBatch) -> tuple[Tensor, Metrics]:
        losses, metrics = self.losses(drawn)
        return torch.stack([*losses.values()]).sum(), metrics

    def losses(self, drawn: NoisyBatch) -> tuple[dict[str, Tensor], Metrics]:
        """Compute the loss of each network by its name, in which the other networks are constants."""
        critic_loss, metrics = self.critic_loss(drawn)
        actor_loss, actor_info = self.actor_loss(drawn)
        temperature_loss = self.temperature_loss(actor_info["entropy"])
        losses = {"critic": critic_loss, "actor": actor_loss, "temperature": temperature_loss}
        if self.gap is not None:
            losses["multiplier"] = self.multiplier_loss(metrics["conservative"], self.gap)
        return losses, {**metrics, **actor_info}

    def critic_loss(self, drawn: NoisyBatch) -> tuple[Tensor, Metrics]:
        """Compute E (Q_i(s, a) - target)^2 + weight E [log sum exp Q_i(s, .) - Q_i(s, a)], averaged over members i, plus V's
        loss.
        """
        batch = drawn.batch
        with torch.no_grad():
            acted = self.actor(batch.state, drawn.noise)
            next_acted = self.actor(batch.next_state, drawn.next_noise)
            backup = next_acted[0] if self.max_target_backup else next_acted[0][:, :1]
            next_q = of_each(self.target, batch.next_state, backup).amin(0)
            target = self.backup(batch, next_q.amax(1))
        q = self.values.q(batch.state, batch.action)
        q_loss = (q - target).square().mean()
        excess = self.log_sum_exp(drawn, acted, next_acted) - q
        if self.clip_min is not None:
            excess = excess.clamp(min=self.clip_min)
        conservative = excess.mean()
        v_loss = (self.v(batch.next_state) - next_q.mean(1)).square().mean()
        metrics = {"q_loss": q_loss, "v_loss": v_loss, "conservative": conservative, "q_mean": q.mean()}
        if self.gap is None:
            loss = q_loss + v_loss + self.alpha * conservative
        else:
            loss = q_loss + v_loss + self.multiplier().detach() * self.alpha * (conservative - self.gap)
        return loss, {name: value.detach() for name, value in metrics.items()}

    def log_sum_exp(self, drawn: NoisyBatch, acted: tuple[Tensor, Tensor], next_acted: tuple[Tensor, Tensor]) -> Tensor:
        """Estimate log sum exp(Q(s, a)) / density(a) over uniform actions and those of the actor in s and s': (members, B)."""
        actions = torch.cat([drawn.uniform, acted[0], next_acted[0]], 1)
        q = of_each(self.values.q, drawn.batch.state, actions)
        if drawn.floor is not None:
            of_actor = q[:, :, self.actions :].maximum(drawn.floor[:, None])
            q = torch.cat([q[:, :, : self.actions], of_actor], 2)
        log_uniform = torch.full_like(acted[1], -math.log(2.0) * actions.shape[2])
        return (q - torch.cat([log_uniform, acted[1], next_acted[1]], 1)).logsumexp(2)

    def actor_loss(self, drawn: NoisyBatch) -> tuple[Tensor, Metrics]:
        """Compute E [temperature log pi(a|s) - min_i Q_i(s, a)] for actions a of the actor."""
        state = drawn.batch.state
        actions, log_density = self.actor(state, drawn.actor_noise)
        q = of_each(frozen(self.values.q), state, actions).amin(0)
        temperature = self.temperature().detach()
        loss = (temperature * log_density - q).mean()
        return loss, {"actor_loss": loss.detach(), "entropy": -log_density.detach().mean(), "temperature": temperature}

    def temperature_loss(self, entropy: Tensor) -> Tensor:
        """Compute log temperature (entropy - target entropy): the temperature rises while the entropy is too low."""
        loss: Tensor = -self.temperature.log * (self.target_entropy - entropy)
        return loss

    def multiplier_loss(self, conservative: Tensor, gap: float) -> Tensor:
        """Compute -multiplier alpha (conservative - gap): the multiplier rises while the term exceeds the gap."""
        loss: Tensor = -self.multiplier() * self.alpha * (conservative - gap)
        return loss


def of_each(q: Callable[[Tensor, Tensor], Tensor], state: Tensor, actions: Tensor) -> Tensor:
    """Evaluate every member at K actions of every state: (B, S), (B, K, A) -> (members, B, K)."""
    b, k, _ = actions.shape
    return q(state.repeat_interleave(k, 0), actions.flatten(0, 1)).reshape(-1, b, k)


class _Exponential(nn.Module):
    """Positive parameter exp(log), at most a million."""

    def __init__(self, log: float) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(log))

    def forward(self) -> Tensor:
        """Return exp(log), clamped at a million: ()."""
        return self.log.exp().clamp(max=1e6)
