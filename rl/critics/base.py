"""Contracts of critics, and what they share: an ensemble of Q, one V, a Polyak target, and the energy of guidance."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypedDict

import torch
from torch import Tensor, nn
from typing_extensions import override

from egd.checkpoint import group, prefixed
from egd.networks.ensemble import EnsembleMLP
from egd.tensors import transformed
from egd.training.learners import Fit, Learner, Metrics, StepLearner
from egd.types import Context
from rl.data.transitions import Batch, OfflineData
from rl.parts.support_actions import SupportTable


class ValueFunction(Protocol):
    """Q and V as energies use them: the value of a sample (an action or a plan), and the value of a state."""

    fit: Fit
    """The optimiser of V, whose step count tells when V has changed."""

    def q(self, state: Tensor, sample: Tensor, /) -> Tensor:
        """Value samples: (B, S), (B, ...) -> (B,)."""
        ...

    def v(self, state: Tensor, /) -> Tensor:
        """Value states: (B, S) -> (B,)."""
        ...


class Shared(TypedDict, total=False):
    """Settings that every critic takes, so that two critics can be compared on the same networks."""

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
    """Q(s, a), the minimum over ``ensemble`` target networks, and V(s), a baseline by which energies are centred.

    A subclass defines their regression targets in ``loss``. A subclass that learns from more than transitions returns a
    ``learner`` of its own.
    """

    needs_support = False
    """Whether the critic learns from actions drawn from the behaviour policy (``rl.parts.support_actions``)."""
    in_reward_units = True
    """Whether Q is a discounted sum of rewards, comparable with another critic's."""

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
        """Learn by this fit, which holds the values and all that is learned with them; the target follows Q."""
        self.fit, self.target = fit, fit.follow(self.values.q, 1 - self.polyak)
        self.target.update_parameters(self.values.q)  # the first call copies

    @abstractmethod
    def loss(self, drawn: Any) -> tuple[Tensor, Metrics]:
        """Compute one step's loss () and metrics on what the learner draws, by default a ``Batch``."""

    def learner(self, data: OfflineData, batch: int, support: SupportTable | None) -> Learner:
        """Make the learner that trains the critic. ``support`` is given where ``needs_support`` is set."""
        return CriticLearner(self, partial(data.sample, batch))

    def backup(self, batch: Batch, next_value: Tensor) -> Tensor:
        """Compute r + gamma (1 - terminal) V(s') from a batch and the values (B,) of its next states: (B,)."""
        return batch.reward + self.gamma * (1 - batch.terminal) * next_value

    def q_loss(self, batch: Batch, target: Tensor) -> tuple[Tensor, Metrics]:
        """Compute mean_i E (Q_i(s, a) - target)^2, over members i; ``target`` (B,)."""
        q = self.values.q(batch.state, batch.action)
        loss = (q - target).square().mean()
        return loss, {"q_loss": loss.detach(), "q_mean": q.detach().mean()}

    def v_loss(self, state: Tensor, target: Tensor) -> tuple[Tensor, Metrics]:
        """Compute E (V(s) - target)^2: ``state`` (B, S), ``target`` (B,)."""
        loss = (self.v(state) - target).square().mean()
        return loss, {"v_loss": loss.detach()}

    def q(self, state: Tensor, action: Tensor) -> Tensor:
        """Value actions by the minimum over the target networks: (B, S), (B, A) -> (B,)."""
        values: Tensor = self.target(state, action)
        return values.amin(0)

    def softmax_q(self, state: Tensor, actions: Tensor, beta: float) -> Tensor:
        """Compute sum_k w_k Q(s, a_k), w = softmax_k(beta Q(s, a_k)): (B, S), (B, K, A) -> (B,)."""
        k = actions.shape[1]
        q = self.q(state.repeat_interleave(k, 0), actions.flatten(0, 1)).reshape(-1, k)
        return ((beta * q).softmax(1) * q).sum(1)

    def v(self, state: Tensor) -> Tensor:
        """Value states: (B, S) -> (B,)."""
        value: Tensor = self.values.v(state)
        return value[0]

    def update_on(self, drawn: Any) -> Metrics:
        """Take one step of Q, V and the target, and return its metrics."""
        loss, metrics = self.loss(drawn)
        self.fit.descend(loss)
        return metrics

    def state(self) -> dict[str, Tensor]:
        """Return everything that decides later updates."""
        return {**prefixed("fit", self.fit.state()), **prefixed("target", self.target.state_dict())}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore the tensors returned by ``state``."""
        self.fit.load(group("fit", state))
        self.target.load_state_dict(group("target", state))


class _Values(nn.Module):
    def __init__(self, q: EnsembleMLP, v: EnsembleMLP) -> None:
        super().__init__()
        self.q, self.v = q, v


class CriticLearner(StepLearner):
    """Learner of a critic, on what ``sample`` draws for its loss."""

    def __init__(self, critic: Critic, sample: Callable[[torch.Generator], Any]) -> None:
        self.critic, self.sample, self.fit = critic, sample, critic.fit

    @override
    def draw(self, generator: torch.Generator) -> Any:
        return self.sample(generator)

    @override
    def loss(self, drawn: Any) -> tuple[Tensor, Metrics]:
        return self.critic.loss(drawn)

    @override
    def state(self) -> dict[str, Tensor]:
        return self.critic.state()

    @override
    def load(self, state: dict[str, Tensor]) -> None:
        self.critic.load(state)


class MinusAdvantage:
    """Energy E(a, s) = (V(s) - Q(s, a)) / unit.

    V does not depend on a. Its last value is kept as long as states and critic are unchanged, because guidance evaluates many
    actions of one batch of states.
    """

    def __init__(self, critic: ValueFunction, unit: Tensor) -> None:
        self.critic, self.unit = critic, unit
        self._last: tuple[tuple[int, int], Tensor, Tensor] | None = None

    def __call__(self, action: Tensor, state: Context) -> Tensor:
        """Compute the energy: (B, ...), (B, S) -> (B,)."""
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
