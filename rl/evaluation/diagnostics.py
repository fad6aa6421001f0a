"""What tells a sound run from an unsound one: is the critic's gradient signal or noise, is the variance valid, does the
model stay on support?
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from egd.denoisers import at_unit_scale, diffuse, random_times
from egd.posteriors.moments import KINDS
from egd.tensors import norm, value_and_grad
from egd.types import HasTargets

if TYPE_CHECKING:
    from rl.agents.guided import GuidedAgent
    from rl.agents.valued import ValuedAgent


def of_values(agent: ValuedAgent, generator: torch.Generator, *, states: int = 512, candidates: int = 16) -> dict[str, Any]:
    """Numbers for ``summary.json`` about critic and behaviour policy; every entry is explained in docs/diagnostics.md."""
    return {
        "critic": _critic(agent, generator, states),
        "posterior_clamped_share": {
            ("clipped_" if clip else "") + kind: moments.clamp_share(kind)
            for clip, moments in agent.calibration.moments.items()
            for kind in KINDS
        },
        "behaviour": _behaviour(agent, generator, states, candidates),
    }


def diagnose(agent: GuidedAgent, generator: torch.Generator, *, states: int = 512) -> dict[str, Any]:
    """The same, and the energy networks' targets."""
    values = of_values(agent, generator, states=states)
    return {**values, "targets": {name: _targets(agent, name, generator, states) for name in agent.energies}}


def _critic(agent: ValuedAgent, generator: torch.Generator, states: int) -> dict[str, float]:
    """Spread of the advantage against what its gradient, taken at face value over the spread of the actions, would make
    of it.
    """
    batch = agent.data.sample(states, generator)
    values, grad = value_and_grad(lambda a: agent.energy()(a, batch.state), batch.action)
    spread = batch.action.std(0).norm()
    return {
        "advantage_std": float(values.std()),
        "gradient_norm": float(norm(grad).mean()),
        "linear_spread": float(norm(grad).mean() * spread / batch.action.shape[1] ** 0.5),
        "q_mean": float(agent.critic.q(batch.state, batch.action).detach().mean()),
    }


@torch.no_grad()
def _behaviour(agent: ValuedAgent, generator: torch.Generator, states: int, k: int) -> dict[str, float]:
    """Samples of the behaviour model against the data's own action in the same state."""
    batch = agent.data.sample(states, generator)
    tiled = batch.state.repeat_interleave(k, 0)
    drawn = agent.sampler.draw(agent.denoiser(False), tiled, len(tiled), generator)
    low, high = agent.data.action_low, agent.data.action_high
    inside = drawn.clamp(low, high)
    advantage = -agent.energy()(inside, tiled).reshape(states, k)
    data_advantage = -agent.energy()(batch.action, batch.state)
    gap = (drawn.reshape(states, k, -1) - batch.action[:, None]).square().mean(2)
    return {
        "outside_range_share": float(((drawn < low - 0.02) | (drawn > high + 0.02)).float().mean()),
        "rms_to_data_action": float(gap.mean().sqrt()),
        "nearest_rms_to_data_action": float(gap.amin(1).mean().sqrt()),
        "advantage_of_data": float(data_advantage.mean()),
        "advantage_of_samples": float(advantage.mean()),
        "advantage_of_best_sample": float(advantage.amax(1).mean()),
        "advantage_std_within_state": float(advantage.std(1).mean()),
    }


def _targets(agent: GuidedAgent, name: str, generator: torch.Generator, states: int) -> dict[str, float]:
    """Spread of an energy network's targets at low and high noise, beside beta times the advantage's."""
    learner = agent.energies[name]
    batch = agent.data.sample(states, generator)
    objective = learner.objective
    if not isinstance(objective, HasTargets):
        return {}
    noise = torch.randn(batch.action.shape, generator=generator, device=agent.device)
    arm = agent.config.guidances[name]
    energies = agent.energy(arm.energy_scale)(batch.action, batch.state).detach()
    result = {"beta_times_advantage_std": arm.beta * float(energies.std())}
    for label, t in (("low_noise", 0.1), ("middle", 0.5), ("high_noise", 1.0)):
        times = torch.full((states,), t, device=agent.device)
        x = diffuse(agent.schedule, batch.action, times, noise)
        result[f"target_std_{label}"] = float(objective.targets(batch.action, x, times, batch.state).std())
    times = random_times(states, 1e-3, generator)
    x = diffuse(agent.schedule, batch.action, times, noise)
    grad = value_and_grad(lambda x: at_unit_scale(learner.fit.model, agent.schedule)(x, times, batch.state), x)[1]
    result["network_gradient_norm"] = float(norm(grad).mean())
    return result
