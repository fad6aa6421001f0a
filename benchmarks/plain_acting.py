"""Acting and evaluation as public code usually has them (see ``benchmarks.plain``): every step calls the denoiser and an
autograd gradient of the energy, the solver's coefficients are computed on the way, and guidance scales are evaluated one after
the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.plain import BETA_MAX, BETA_MIN, PlainIQL, marginal

Bounds = tuple[Tensor, Tensor] | None
Value = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, A), t (B,)) -> an energy (B,)."""
Policy = Callable[[Tensor], Tensor]
"""States (B, S) -> actions (B, A)."""


@torch.no_grad()
def sample(
    noise: nn.Module,
    state: Tensor,
    action: int,
    *,
    steps: int,
    energy: Value | None = None,
    scale: float = 1.0,
    bounds: Bounds = None,
    end: float = 1e-3,
) -> Tensor:
    """Draw an action for each state (B, S) by DPM-Solver++(2M): (B, A)."""
    times = uniform_in_log_snr(steps, end).to(state.device)
    x = torch.randn(len(state), action, device=state.device) * marginal(times[0])[1]
    previous, h_previous = torch.zeros_like(x), torch.zeros((), device=x.device)
    for i in range(steps):
        (alpha, sigma), (alpha_next, sigma_next) = marginal(times[i]), marginal(times[i + 1])
        t = torch.ones(len(x), device=x.device) * times[i]
        x0 = (x - sigma * noise(x, t, state)) / alpha
        if bounds is not None:
            x0 = torch.clamp(x0, *bounds)
        if energy is not None:
            x0 = x0 - scale * sigma**2 / alpha * gradient(energy, x, t)
            if bounds is not None:
                x0 = torch.clamp(x0, *bounds)
        h = torch.log(alpha_next / sigma_next) - torch.log(alpha / sigma)
        target = x0 if i == 0 else x0 + (x0 - previous) / (2 * h_previous / h)
        x = sigma_next / sigma * x - alpha_next * torch.expm1(-h) * target
        previous, h_previous = x0, h
    return x


def uniform_in_log_snr(steps: int, end: float) -> Tensor:
    """Return ``steps + 1`` times from 1 to ``end`` at equal distances in log(alpha / sigma)."""
    alpha, sigma = marginal(torch.tensor([1.0, end], dtype=torch.float64))
    first, last = torch.log(alpha / sigma)
    log_alpha = -0.5 * torch.log1p(torch.exp(-2 * torch.linspace(float(first), float(last), steps + 1, dtype=torch.float64)))
    rise = BETA_MAX - BETA_MIN
    return ((torch.sqrt(BETA_MIN**2 - 4 * rise * log_alpha) - BETA_MIN) / rise).float()


def gradient(energy: Value, x: Tensor, t: Tensor) -> Tensor:
    """Compute the gradient of the energy with respect to x, (B, A)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        return torch.autograd.grad(energy(x, t).sum(), x)[0]


def support(noise: nn.Module, state: Tensor, k: int, action: int, *, steps: int, bounds: Bounds = None) -> Tensor:
    """Draw k unguided actions for every state: (B, k, A)."""
    drawn = sample(noise, state.repeat_interleave(k, dim=0), action, steps=steps, bounds=bounds)
    return drawn.reshape(len(state), k, action)


def trained_energy(network: nn.Module, state: Tensor) -> Value:
    """Return the energy of a trained network in these states."""
    return lambda x, t: network(x, t, state)


def support_energy(
    noise: nn.Module, critic: PlainIQL, state: Tensor, k: int, action: int, *, beta: float, steps: int, bounds: Bounds
) -> Value:
    """Return E_t by its definition over k support actions of every state, whose clean energies are computed once."""
    points = support(noise, state, k, action, steps=steps, bounds=bounds)
    with torch.no_grad():
        states = state.repeat_interleave(k, dim=0)
        values = critic.v(states).squeeze(1) - critic.target(states, points.reshape(-1, action))
        values = beta * values.reshape(len(state), k)

    def energy(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = marginal(t)
        distance = torch.sum((x[:, None] - alpha[:, None, None] * points) ** 2, dim=2)
        weights = torch.log_softmax(-distance / (2 * sigma[:, None] ** 2), dim=1)
        return -torch.logsumexp(weights - values, dim=1)

    return energy


def evaluate(
    make_env: Callable[[], Any], act: Callable[[Tensor], Tensor], *, episodes: int, device: torch.device
) -> list[float]:
    """Return the returns of all episodes, one environment each. Environments are stepped one by one; the actions of all running
    episodes are computed in one batch.
    """
    envs: list[gym.Env[Any, Any]] = [make_env() for _ in range(episodes)]
    states = [env.reset(seed=i)[0] for i, env in enumerate(envs)]
    returns, running = [0.0] * episodes, list(range(episodes))
    while running:
        batch = torch.tensor(np.stack([states[i] for i in running]), dtype=torch.float32).to(device)
        actions = act(batch).cpu().numpy()
        still = []
        for i, action in zip(running, actions, strict=True):
            states[i], reward, terminated, truncated, _ = envs[i].step(np.clip(action, -1, 1))
            returns[i] += float(reward)
            if not (terminated or truncated):
                still.append(i)
        running = still
    return returns
