"""Policies that are one network, with actions in [-1, 1]^A, the range of all data."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from typing_extensions import override

from egd.networks.mlp import mlp

if TYPE_CHECKING:
    from rl.config import ActorConfig


class Actor(nn.Module, ABC):
    """Policy with one action for evaluation, and a cost by which it learns from given actions."""

    @abstractmethod
    def mean(self, state: Tensor) -> Tensor:
        """Compute the action used in evaluation: (B, S) -> (B, A)."""

    @abstractmethod
    def cost(self, state: Tensor, action: Tensor) -> Tensor:
        """Compute the cost of given actions: (B, S), (B, A) -> (B,)."""


class DeterministicActor(Actor):
    """Actor that is the tanh of a network; its cost is the squared distance."""

    def __init__(
        self, state: int, action: int, *, width: int = 256, layers: int = 3, activation: str = "relu", layer_norm: bool = False
    ) -> None:
        super().__init__()
        self.net = mlp(state, action, width=width, layers=layers, activation=activation, layer_norm=layer_norm)

    @override
    def mean(self, state: Tensor) -> Tensor:
        action: Tensor = self.net(state).tanh()
        return action

    def forward(self, state: Tensor) -> Tensor:
        """Compute the action: (B, S) -> (B, A)."""
        return self.mean(state)

    @override
    def cost(self, state: Tensor, action: Tensor) -> Tensor:
        # |pi(s) - a|^2
        return (self.mean(state) - action).square().sum(1)


class GaussianActor(DeterministicActor):
    """Actor N(tanh of a network, one standard deviation for all states), as in IQL; its cost is -log pi(a|s)."""

    def __init__(
        self, state: int, action: int, *, width: int = 256, layers: int = 3, activation: str = "relu", layer_norm: bool = False
    ) -> None:
        super().__init__(state, action, width=width, layers=layers, activation=activation, layer_norm=layer_norm)
        self.log_std = nn.Parameter(torch.zeros(action))

    @property
    def std(self) -> Tensor:
        """Standard deviation, (A,)."""
        return self.log_std.clamp(-20, 2).exp()

    @override
    def cost(self, state: Tensor, action: Tensor) -> Tensor:
        # -log pi(a|s)
        z = (action - self.mean(state)) / self.std
        return (0.5 * z.square() + self.std.log() + 0.5 * math.log(2 * math.pi)).sum(1)


class TanhGaussianActor(Actor):
    """Actor tanh of N(m(s), diag sigma(s)^2), as in SAC and CQL; log sigma is the network's output - 1, within [-20, 2]."""

    def __init__(
        self, state: int, action: int, *, width: int = 256, layers: int = 3, activation: str = "relu", layer_norm: bool = False
    ) -> None:
        super().__init__()
        self.net = mlp(state, 2 * action, width=width, layers=layers, activation=activation, layer_norm=layer_norm)

    def _moments(self, state: Tensor) -> tuple[Tensor, Tensor]:
        mean, spread = self.net(state).chunk(2, 1)
        return mean, (spread - 1).clamp(-20, 2)

    @override
    def mean(self, state: Tensor) -> Tensor:
        return self._moments(state)[0].tanh()

    def forward(self, state: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Compute K actions in every state and their log densities from standard normal noise: (B, S), (B, K, A) -> (B, K, A),
        (B, K).
        """
        mean, log_std = (each[:, None] for each in self._moments(state))
        u = mean + log_std.exp() * noise
        return u.tanh(), _log_density(noise, log_std, u)

    @override
    def cost(self, state: Tensor, action: Tensor) -> Tensor:
        # -log pi(a|s), with actions clipped to just within [-1, 1]
        mean, log_std = self._moments(state)
        u = action.clamp(-1 + 1e-6, 1 - 1e-6).atanh()
        return -_log_density((u - mean) / log_std.exp(), log_std, u)


def _log_density(z: Tensor, log_std: Tensor, u: Tensor) -> Tensor:
    """Compute the log density of tanh(u), u = mean + std z: (..., A) -> (...)."""
    grad = 2 * (math.log(2) - u - F.softplus(-2 * u))  # log(1 - tanh(u)^2), without overflow
    return (-0.5 * z.square() - log_std - 0.5 * math.log(2 * math.pi) - grad).sum(-1)


ACTORS: dict[str, type[DeterministicActor]] = {"deterministic": DeterministicActor, "gaussian": GaussianActor}
"""Actors by ``actor.name``."""


def make_actor(config: ActorConfig, state: int, action: int) -> DeterministicActor:
    """Build the recipe's actor, untrained."""
    network = config.model_dump(include={"width", "layers", "activation", "layer_norm"})
    return ACTORS[config.name](state, action, **network)


def frozen(module: nn.Module) -> Callable[..., Tensor]:
    """Return the module with its parameters as constants; it can still be differentiated by its inputs."""
    constants = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return lambda *inputs: functional_call(module, constants, inputs)
