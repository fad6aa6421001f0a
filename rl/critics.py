"""Implicit Q-learning: Q and V without ever asking Q about an action outside the data."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from egd.checkpoint import group, prefixed
from egd.networks import ACTIVATIONS, LayerNorm
from egd.tensors import transformed
from egd.training import Fit, Metrics, StepLearner
from egd.types import Context
from rl.data import Batch, OfflineData


class EnsembleLinear(nn.Module):
    """``members`` independent linear layers as one batched product: (members, B, in) -> (members, B, out)."""

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)  # nn.Linear's own initialisation
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """(members, B, in) -> (members, B, out)"""
        return torch.baddbmm(self.bias, x, self.weight)


class LastEnsembleLinear(EnsembleLinear):
    """In float32 whatever x has, as ``egd.networks.LastLinear``."""

    def forward(self, x: Tensor) -> Tensor:
        """(members, B, in) -> (members, B, out)"""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float() if x.dtype == torch.bfloat16 else x)


class EnsembleMLP(nn.Module):
    """``members`` MLPs with one output each: (B, in) -> (members, B).

    A smooth activation (SiLU, Mish) matters here more than elsewhere: first-order guidance reads the critic's gradient
    at a point.
    """

    def __init__(
        self, members: int, inputs: int, *, width: int = 256, layers: int = 3, activation: str = "silu", layer_norm: bool = True
    ) -> None:
        super().__init__()
        self.members = members
        sizes = [inputs] + [width] * layers
        parts: list[nn.Module] = []
        for a, b in pairwise(sizes):
            parts.append(EnsembleLinear(members, a, b))
            if layer_norm:
                parts.append(LayerNorm(b))
            parts.append(ACTIVATIONS[activation]())
        self.net = nn.Sequential(*parts, LastEnsembleLinear(members, width, 1))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Flat inputs (B, ...), concatenated -> (members, B)"""
        x = torch.cat(inputs, 1)
        out: Tensor = self.net(x.expand(self.members, *x.shape))
        return out.squeeze(-1)


class _Values(nn.Module):
    expectile: Tensor

    def __init__(self, q: EnsembleMLP, v: EnsembleMLP, expectile: float) -> None:
        super().__init__()
        self.q, self.v = q, v
        self.register_buffer("expectile", torch.tensor(expectile), persistent=False)  # so that runs can differ in it


def expectile_loss(difference: Tensor, tau: float | Tensor) -> Tensor:
    """E |tau - 1(u < 0)| u^2, u (B,). IQL (arXiv:2110.06169) Eq. 5; AEPO Eq. 27."""
    weight = torch.where(difference < 0, 1 - tau, tau)
    return (weight * difference.square()).mean()


class IQL:
    """Twin (or more) Q and one V by expectile regression, Polyak target. The losses of AEPO Eq. 27."""

    def __init__(
        self,
        state: int,
        action: int,
        *,
        expectile: float = 0.7,
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
        self.gamma = gamma
        q = EnsembleMLP(ensemble, state + action, width=width, layers=layers, activation=activation, layer_norm=layer_norm)
        v = EnsembleMLP(1, state, width=width, layers=layers, activation=activation, layer_norm=layer_norm)
        self.values = _Values(q, v, expectile).to(device)
        self.fit = Fit(self.values, lr=lr, steps=steps, decay=decay)
        self.target = self.fit.follow(self.values.q, 1 - polyak)
        self.target.update_parameters(self.values.q)  # the first call copies

    def q(self, state: Tensor, action: Tensor) -> Tensor:
        """The pessimistic target value, min over members: (B, S), (B, A) -> (B,)"""
        values: Tensor = self.target(state, action)
        return values.amin(0)

    def v(self, state: Tensor) -> Tensor:
        """(B, S) -> (B,)"""
        value: Tensor = self.values.v(state)
        return value[0]

    def value_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Expectile of Q_target(s, a) - V(s)."""
        with torch.no_grad():
            q = self.q(batch.state, batch.action)
        advantage = q - self.v(batch.state)
        loss = expectile_loss(advantage, self.values.expectile)
        return loss, {"v_loss": loss.detach(), "advantage_std": advantage.detach().std(), "q_mean": q.mean()}

    def q_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """(r + gamma (1 - terminal) V(s') - Q(s, a))^2, averaged over members."""
        with torch.no_grad():
            target = batch.reward + self.gamma * (1 - batch.terminal) * self.v(batch.next_state)
        loss = (self.values.q(batch.state, batch.action) - target).square().mean()
        return loss, {"q_loss": loss.detach()}

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Of Q and V, one step's."""
        v_loss, v_info = self.value_loss(batch)
        q_loss, q_info = self.q_loss(batch)
        return v_loss + q_loss, {**v_info, **q_info}

    def update_on(self, batch: Batch) -> Metrics:
        """One step of Q, V and the target on a batch."""
        loss, metrics = self.loss(batch)
        self.fit.descend(loss)
        return metrics

    def state(self) -> dict[str, Tensor]:
        """Everything that decides later updates."""
        return {**prefixed("fit", self.fit.state()), **prefixed("target", self.target.state_dict())}

    def load(self, state: dict[str, Tensor]) -> None:
        """The inverse of ``state``."""
        self.fit.load(group("fit", state))
        self.target.load_state_dict(group("target", state))


class MinusAdvantage:
    """E(a, s) = (V(s) - Q(s, a)) / unit. V has no part in the gradient by a, and is that of the last states seen as long as
    these and the critic stay the same: guidance asks about many actions of one batch of states.
    """

    def __init__(self, critic: IQL, unit: Tensor) -> None:
        self.critic, self.unit = critic, unit
        self._last: tuple[tuple[int, int], Tensor, Tensor] | None = None

    def __call__(self, action: Tensor, state: Context) -> Tensor:
        """(B, A), (B, S) -> (B,)"""
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
    """A critic and the data it learns from, as a learner."""

    def __init__(self, critic: IQL, data: OfflineData, *, batch: int) -> None:
        self.critic, self.data, self.batch, self.fit = critic, data, batch, critic.fit

    def draw(self, generator: torch.Generator) -> Batch:
        """Random transitions."""
        return self.data.sample(self.batch, generator)

    def loss(self, drawn: Batch) -> tuple[Tensor, Metrics]:
        """Of Q and V."""
        return self.critic.loss(drawn)

    def state(self) -> dict[str, Tensor]:
        """The critic's, its target included."""
        return self.critic.state()

    def load(self, state: dict[str, Tensor]) -> None:
        """The inverse of ``state``."""
        self.critic.load(state)
