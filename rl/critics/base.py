"""What critics share: an ensemble of Q, one V, a Polyak target, and the energy that guidance makes of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypedDict

import torch
from torch import Tensor, nn

from egd.networks.ensemble import EnsembleMLP
from egd.runs.checkpoint import group, prefixed
from egd.tensors import transformed
from egd.training.learners import Fit, Learner, Metrics, StepLearner
from egd.types import Context
from rl.data.transitions import Batch, OfflineData
from rl.parts.support_actions import SupportTable


class Shared(TypedDict, total=False):
    """Settings that every critic takes, so that two kinds can be compared on the same networks."""

    gamma: float
    polyak: float
    lr: float
    steps: int
    decay: bool
    ensemble: int
    width: int
    layers: int
    activation: str
    layer_norm: bool
    device: torch.device | str


class Critic(ABC):
    """Q(s, a) as the least of ``ensemble`` target networks, and V(s), a baseline by which energies are centred.

    A kind of critic is what it regresses them on: ``loss``. One that learns from more than transitions gives a ``learner`` of
    its own.
    """

    needs_support = False
    """Whether it learns from actions drawn from the behaviour policy (``rl.parts.support_actions``)."""
    in_reward_units = True
    """Whether Q is a discounted sum of rewards, which can be set beside another critic's."""

    def __init__(
        self,
        state: int,
        action: int,
        *,
        gamma: float = 0.99,
        polyak: float = 0.005,
        lr: float = 3e-4,
        steps: int = 1_000_000,
        decay: bool = False,
        ensemble: int = 2,
        width: int = 256,
        layers: int = 3,
        activation: str = "silu",
        layer_norm: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        self.gamma, self.polyak = gamma, polyak
        q = EnsembleMLP(ensemble, state + action, width=width, layers=layers, activation=activation, layer_norm=layer_norm)
        v = EnsembleMLP(1, state, width=width, layers=layers, activation=activation, layer_norm=layer_norm)
        self.values = _Values(q, v).to(device)
        self._learn(Fit(self.values, lr=lr, steps=steps, decay=decay))

    def _learn(self, fit: Fit) -> None:
        """By this, which has the values and whatever is learned with them; the target follows Q."""
        self.fit, self.target = fit, fit.follow(self.values.q, 1 - self.polyak)
        self.target.update_parameters(self.values.q)  # the first call copies

    @abstractmethod
    def loss(self, drawn: Any) -> tuple[Tensor, Metrics]:
        """One step's loss () on what the learner draws, by default a ``Batch``, and metrics."""

    def learner(self, data: OfflineData, batch: int, support: SupportTable | None) -> Learner:
        """What trains it. ``support`` is there where the class says that it needs it."""
        return CriticLearner(self, partial(data.sample, batch))

    def backup(self, batch: Batch, next_value: Tensor) -> Tensor:
        """r + gamma (1 - terminal) V(s'): a batch and the values (B,) of its next states -> (B,)"""
        return batch.reward + self.gamma * (1 - batch.terminal) * next_value

    def squares(self, batch: Batch, target: Tensor, state: Tensor, value: Tensor) -> tuple[Tensor, Metrics]:
        """The mean squares of all members' errors of Q(s, a), and of V's in ``state`` (B, S); ``target`` and ``value`` (B,)."""
        q = self.values.q(batch.state, batch.action)
        q_loss, v_loss = (q - target).square().mean(), (self.v(state) - value).square().mean()
        return q_loss + v_loss, {"q_loss": q_loss.detach(), "v_loss": v_loss.detach(), "q_mean": q.detach().mean()}

    def q(self, state: Tensor, action: Tensor) -> Tensor:
        """The pessimistic target value, min over members: (B, S), (B, A) -> (B,)"""
        values: Tensor = self.target(state, action)
        return values.amin(0)

    def softmax_q(self, state: Tensor, actions: Tensor, beta: float) -> Tensor:
        """sum_k w_k Q(s, a_k), w = softmax_k(beta Q(s, a_k)): (B, S), (B, K, A) -> (B,)"""
        k = actions.shape[1]
        q = self.q(state.repeat_interleave(k, 0), actions.flatten(0, 1)).reshape(-1, k)
        return ((beta * q).softmax(1) * q).sum(1)

    def v(self, state: Tensor) -> Tensor:
        """(B, S) -> (B,)"""
        value: Tensor = self.values.v(state)
        return value[0]

    def update_on(self, drawn: Any) -> Metrics:
        """One step of Q, V and the target."""
        loss, metrics = self.loss(drawn)
        self.fit.descend(loss)
        return metrics

    def state(self) -> dict[str, Tensor]:
        """Everything that decides later updates."""
        return {**prefixed("fit", self.fit.state()), **prefixed("target", self.target.state_dict())}

    def load(self, state: dict[str, Tensor]) -> None:
        """The inverse of ``state``."""
        self.fit.load(group("fit", state))
        self.target.load_state_dict(group("target", state))


class _Values(nn.Module):
    def __init__(self, q: EnsembleMLP, v: EnsembleMLP) -> None:
        super().__init__()
        self.q, self.v = q, v


class ValueFunction(Protocol):
    """What an energy asks of a critic: the value of a sample, an action or a plan, and that of a state. ``fit`` is V's."""

    fit: Fit

    def q(self, state: Tensor, sample: Tensor, /) -> Tensor:
        """(B, S), (B, ...) -> (B,)"""
        ...

    def v(self, state: Tensor, /) -> Tensor:
        """(B, S) -> (B,)"""
        ...


class MinusAdvantage:
    """E(a, s) = (V(s) - Q(s, a)) / unit. V has no part in the gradient by a, and is that of the last states seen as long as
    these and the critic stay the same: guidance asks about many actions of one batch of states.
    """

    def __init__(self, critic: ValueFunction, unit: Tensor) -> None:
        self.critic, self.unit = critic, unit
        self._last: tuple[tuple[int, int], Tensor, Tensor] | None = None

    def __call__(self, action: Tensor, state: Context) -> Tensor:
        """(B, ...), (B, S) -> (B,)"""
        assert isinstance(state, Tensor)  # contexts are states here
        value: Tensor = (self._value(state) - self.critic.q(state, action)) / self.unit
        return value

    @torch.no_grad()
    def _value(self, state: Tensor) -> Tensor:
        if transformed():
            return self.critic.v(state)
        version = self.critic.fit.step, state._version
        if self._last is None or self._last[0] != version or self._last[1] is not state:
            self._last = version, state, self.critic.v(state)
        return self._last[2]


class CriticLearner(StepLearner):
    """A critic, and ``sample``, which draws what its loss is of."""

    def __init__(self, critic: Critic, sample: Callable[[torch.Generator], Any]) -> None:
        self.critic, self.sample, self.fit = critic, sample, critic.fit

    def draw(self, generator: torch.Generator) -> Any:
        """A batch."""
        return self.sample(generator)

    def loss(self, drawn: Any) -> tuple[Tensor, Metrics]:
        """The critic's."""
        return self.critic.loss(drawn)

    def state(self) -> dict[str, Tensor]:
        """The critic's, its target included."""
        return self.critic.state()

    def load(self, state: dict[str, Tensor]) -> None:
        """The inverse of ``state``."""
        self.critic.load(state)
