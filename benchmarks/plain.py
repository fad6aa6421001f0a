"""Training steps as public code of offline RL usually has them, to time the library against: the same arithmetic in plain code.

The code is written from scratch in the manner of single-file implementations (CORL's IQL, QGPO's two-stage training). Data are
numpy arrays, and a batch comes by ``np.random.randint`` and ``torch.tensor(...).to(device)``. Every critic is a module with its
own optimiser, ``torch.optim.Adam`` by default. Averages and target networks are updated parameter by parameter, and every step
calls ``loss.item()``. Networks, batches and numbers of steps equal the library's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from egd.networks.mlp import ACTIVATIONS
from rl.data.transitions import OfflineData

Arrays = dict[str, np.ndarray[Any, Any]]
KEYS = ("state", "action", "reward", "next_state", "terminal")
BETA_MIN, BETA_MAX = 0.1, 20.0

Step = Callable[[], float]


@dataclass(frozen=True)
class PlainReplay:
    """Transitions as numpy arrays, and the device of batches."""

    arrays: Arrays
    device: torch.device

    @staticmethod
    def of(data: OfflineData, device: torch.device) -> PlainReplay:
        """Convert the library's data."""
        return PlainReplay({key: getattr(data.transitions, key).cpu().numpy() for key in KEYS}, device)

    def sample(self, n: int) -> list[Tensor]:
        """Draw n random transitions, one tensor a key."""
        rows = np.random.randint(0, len(self.arrays["reward"]), size=n)  # noqa: NPY002 - as public code has it
        return [torch.tensor(self.arrays[key][rows]).to(self.device) for key in KEYS]


def marginal(t: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha_t and sigma_t of the VP-SDE, shaped like t."""
    log_alpha = -(t**2) * (BETA_MAX - BETA_MIN) / 4 - t * BETA_MIN / 2
    return torch.exp(log_alpha), torch.sqrt(1 - torch.exp(2 * log_alpha))


def noised(x0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draw random times t (B,) and noise, and return them with x_t (B, A)."""
    t = torch.rand(len(x0), device=x0.device) * (1 - 1e-3) + 1e-3
    noise = torch.randn_like(x0)
    alpha, sigma = marginal(t)
    return t, noise, alpha[:, None] * x0 + sigma[:, None] * noise


def follow(target: nn.Module, source: nn.Module, rate: float) -> None:
    """Update target <- (1 - rate) target + rate source."""
    for old, new in zip(target.parameters(), source.parameters(), strict=True):
        old.data.copy_(rate * new.data + (1 - rate) * old.data)


class PlainNoise:
    """The denoising loss with Adam and an average of the weights."""

    def __init__(self, network: nn.Module, replay: PlainReplay, *, batch: int, lr: float, ema: float) -> None:
        self.network, self.replay, self.batch, self.ema = network, replay, batch, ema
        self.average = copy.deepcopy(network) if ema else None
        self.optimiser = torch.optim.Adam(network.parameters(), lr=lr)

    def step(self) -> float:
        """Take one step on a random batch, and return the loss."""
        state, action, *_ = self.replay.sample(self.batch)
        t, noise, x = noised(action)
        return self.step_on(x, t, noise, state)

    def step_on(self, x: Tensor, t: Tensor, noise: Tensor, state: Tensor) -> float:
        """Take one step, and return the loss; x_t and noise (B, A), t (B,)."""
        loss = torch.mean(torch.sum((self.network(x, t, state) - noise) ** 2, dim=1))
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        if self.average is not None:
            follow(self.average, self.network, 1 - self.ema)
        return loss.item()


def mlp(inputs: int, *, width: int, layers: int, activation: str, layer_norm: bool) -> nn.Sequential:
    """Create an MLP with one output for rows of ``inputs`` entries."""
    parts: list[nn.Module] = []
    for i in range(layers):
        parts.append(nn.Linear(inputs if i == 0 else width, width))
        if layer_norm:
            parts.append(nn.LayerNorm(width))
        parts.append(ACTIVATIONS[activation]())
    return nn.Sequential(*parts, nn.Linear(width, 1))


class TwinQ(nn.Module):
    """Two networks Q(s, a)."""

    def __init__(self, state: int, action: int, **shape: Any) -> None:
        super().__init__()
        self.q1, self.q2 = mlp(state + action, **shape), mlp(state + action, **shape)

    def both(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return both values, (B,) each."""
        x = torch.cat([state, action], dim=1)
        return self.q1(x).squeeze(1), self.q2(x).squeeze(1)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """Return the smaller value, (B,)."""
        return torch.min(*self.both(state, action))


class PlainIQL:
    """Implicit Q-learning: V, then Q, then the target."""

    def __init__(
        self,
        state: int,
        action: int,
        replay: PlainReplay,
        *,
        batch: int,
        lr: float,
        expectile: float,
        gamma: float,
        polyak: float,
        **shape: Any,
    ) -> None:
        self.replay, self.batch, self.expectile, self.gamma, self.polyak = replay, batch, expectile, gamma, polyak
        self.q = TwinQ(state, action, **shape).to(replay.device)
        self.v = mlp(state, **shape).to(replay.device)
        self.target = copy.deepcopy(self.q).requires_grad_(False)
        self.q_optimiser = torch.optim.Adam(self.q.parameters(), lr=lr)
        self.v_optimiser = torch.optim.Adam(self.v.parameters(), lr=lr)

    def step(self) -> float:
        """Take one step on a random batch, and return the sum of the losses."""
        return self.step_on(*self.replay.sample(self.batch))

    def step_on(self, state: Tensor, action: Tensor, reward: Tensor, next_state: Tensor, terminal: Tensor) -> float:
        """Take one step on transitions, and return the sum of the losses."""
        with torch.no_grad():
            next_v = self.v(next_state).squeeze(1)
            target_q = self.target(state, action)
        advantage = target_q - self.v(state).squeeze(1)
        v_loss = torch.mean(torch.abs(self.expectile - (advantage < 0).float()) * advantage**2)
        self.v_optimiser.zero_grad()
        v_loss.backward()  # type: ignore[no-untyped-call]
        self.v_optimiser.step()
        targets = reward + (1.0 - terminal) * self.gamma * next_v
        qs = self.q.both(state, action)
        q_loss = sum((F.mse_loss(q, targets) for q in qs), torch.zeros((), device=state.device)) / len(qs)
        self.q_optimiser.zero_grad()
        q_loss.backward()  # type: ignore[no-untyped-call]
        self.q_optimiser.step()
        follow(self.target, self.q, self.polyak)
        return v_loss.item() + q_loss.item()


class PlainAEPO:
    """AEPO's energy network, regressed on the first order at the data action, shifted by ``nu``, with Posterior 1's
    variance.
    """

    def __init__(
        self,
        network: nn.Module,
        noise: nn.Module,
        critic: PlainIQL,
        variance: tuple[Tensor, Tensor, Tensor],
        *,
        batch: int,
        lr: float,
        beta: float,
        nu: float,
    ) -> None:
        self.network, self.noise, self.critic, self.batch, self.beta, self.nu = network, noise, critic, batch, beta, nu
        self.grid, variances, self.data_variance = variance
        self.relative = variances / self._of_a_gaussian(self.grid)
        self.optimiser = torch.optim.Adam(network.parameters(), lr=lr)

    def step(self) -> float:
        """Take one step on a random batch, and return the loss."""
        state, action, *_ = self.critic.replay.sample(self.batch)
        t, _, x = noised(action)
        return self.step_on(state, action, t, x)

    def step_on(self, state: Tensor, action: Tensor, t: Tensor, x: Tensor) -> float:
        """Take one step, and return the loss; x_t (B, A), t (B,)."""
        loss = F.mse_loss(self.network(x, t, state), self.targets(state, action, t, x))
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        return loss.item()

    def targets(self, state: Tensor, action: Tensor, t: Tensor, x: Tensor) -> Tensor:
        """Compute beta E(xbar) + g (mu - xbar) - var g^2 / 2, (B,), with E = V - Q."""
        _, grad = self._energy(state, action)
        point = action + self.nu * grad / grad.norm(dim=1, keepdim=True).clamp(min=1e-12)
        value, grad = self._energy(state, point)
        g = self.beta * grad
        alpha, sigma = marginal(t)
        with torch.no_grad():
            mean = (x - sigma[:, None] * self.noise(x, t, state)) / alpha[:, None]
        target = self.beta * value + torch.sum(g * (mean - point), dim=1) - 0.5 * self._variance(t) * torch.sum(g**2, dim=1)
        return target.detach()

    def _energy(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        action = action.detach().requires_grad_(True)
        with torch.no_grad():
            v = self.critic.v(state).squeeze(1)
        value = v - self.critic.target(state, action)
        return value.detach(), torch.autograd.grad(value.sum(), action)[0]

    def _variance(self, t: Tensor) -> Tensor:
        """Interpolate the variance linearly in units of a Gaussian's posterior variance."""
        right = torch.searchsorted(self.grid, t).clamp(1, len(self.grid) - 1)
        low, high = self.grid[right - 1], self.grid[right]
        weight = (t - low) / (high - low)
        relative = (1 - weight) * self.relative[right - 1] + weight * self.relative[right]
        return torch.minimum(relative * self._of_a_gaussian(t), self.data_variance)

    def _of_a_gaussian(self, t: Tensor) -> Tensor:
        alpha, sigma = marginal(t)
        return sigma**2 / (alpha**2 * self.data_variance + sigma**2)


class PlainCEP:
    """Contrastive energy prediction, with support actions drawn anew at every step."""

    def __init__(
        self,
        network: nn.Module,
        critic: PlainIQL,
        support: Callable[[Tensor, int], Tensor],
        *,
        batch: int,
        samples: int,
        lr: float,
        beta: float,
    ) -> None:
        self.network, self.critic, self.support, self.beta = network, critic, support, beta
        self.states, self.samples = batch // samples, samples
        self.optimiser = torch.optim.Adam(network.parameters(), lr=lr)

    def step(self) -> float:
        """Take one step on the support actions of random states, and return the loss."""
        state, *_ = self.critic.replay.sample(self.states)
        n, k = self.states, self.samples
        actions = self.support(state, k).reshape(n * k, -1)
        states = state.repeat_interleave(k, dim=0)
        t = (torch.rand(n, device=state.device) * (1 - 1e-3) + 1e-3).repeat_interleave(k)
        alpha, sigma = marginal(t)
        x = alpha[:, None] * actions + sigma[:, None] * torch.randn_like(actions)
        with torch.no_grad():
            energy = self.critic.v(states).squeeze(1) - self.critic.target(states, actions)
            labels = torch.softmax(-self.beta * energy.reshape(n, k), dim=1)
        guesses = -self.network(x, t, states).reshape(n, k)
        loss = -torch.mean(torch.sum(labels * F.log_softmax(guesses, dim=1), dim=1))
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        return loss.item()


@torch.no_grad()
def calibrate(
    noise: nn.Module, replay: PlainReplay, *, samples: int, grid: int, bounds: Iterable[tuple[Tensor, Tensor] | None]
) -> Any:
    """Compute second moments of the predicted noise, of the denoised action and of its error at each of ``grid`` times, with
    x_0 clipped to each of ``bounds`` in turn.
    """
    state, action, *_ = replay.sample(samples)
    mean, found = action.double().mean(dim=0), []
    for bound in bounds:
        for t in torch.linspace(1e-3, 1.0, grid, device=replay.device):
            alpha, sigma = marginal(t)
            sums: list[Any] = [0.0, 0.0, 0.0]
            for first in range(0, samples, 2048):
                a, s = action[first : first + 2048], state[first : first + 2048]
                x = alpha * a + sigma * torch.randn_like(a)
                mu = (x - sigma * noise(x, t.repeat(len(x)), s)) / alpha
                if bound is not None:
                    mu = torch.clamp(mu, *bound)
                rows = ((x - alpha * mu) / sigma, mu - mean, a - mu)
                sums = [total + v.double().T @ v.double() for total, v in zip(sums, rows, strict=True)]
            found.append([total / samples for total in sums])
    return found
