"""Diagnostics of a run: whether the critic's gradient is signal or noise, whether the posterior variance is valid, and whether
the model stays on support.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

from egd.denoisers import at_unit_scale, diffuse, random_times
from egd.posteriors.moments import KINDS
from egd.samplers.watching import SamplingWarning
from egd.tensors import norm, value_and_grad
from egd.types import HasTargets
from rl.parts.calibration import AdvantageCalibration
from rl.parts.energies import TrainedEnergy
from rl.parts.guidance import Guidance


def of_values(
    calibration: AdvantageCalibration, generator: torch.Generator, *, states: int = 512, candidates: int = 16
) -> dict[str, Any]:
    """Measure critic and behaviour policy for ``summary.json``; docs/diagnostics.md explains every entry."""
    return {
        "critic": _critic(calibration, generator, states),
        "posterior_clamped_share": clamped_shares(calibration),
        "behaviour": _behaviour(calibration, generator, states, candidates),
    }


def of_guidance(guidance: Guidance, generator: torch.Generator, *, states: int = 512) -> dict[str, Any]:
    """Measure critic and behaviour policy as ``of_values`` does, and the targets of the energy networks."""
    calibration = guidance.calibration
    values = of_values(calibration, generator, states=states)
    targets = {name: _targets(energy, calibration, generator, states) for name, energy in guidance.energies.items()}
    return {**values, "targets": targets}


def clamped_shares(calibration: AdvantageCalibration) -> dict[str, float]:
    """Return the share of the times t at which each posterior's variance was clamped."""
    return {
        ("clipped_" if clip else "") + kind: moments.clamp_share(kind)
        for clip, moments in calibration.moments.items()
        for kind in KINDS
    }


def _critic(calibration: AdvantageCalibration, generator: torch.Generator, states: int) -> dict[str, float]:
    """Measure the spread of the advantage, and the spread that its gradient would give by linear extrapolation over the
    actions.
    """
    batch, energy = calibration.behaviour.data.sample(states, generator), calibration.energy()
    values, grad = value_and_grad(lambda a: energy(a, batch.state), batch.action)
    spread = batch.action.std(0).norm()
    return {
        "advantage_std": float(values.std()),
        "gradient_norm": float(norm(grad).mean()),
        "linear_spread": float(norm(grad).mean() * spread / batch.action.shape[1] ** 0.5),
        "q_mean": float(calibration.value.q(batch.state, batch.action).detach().mean()),
    }


@torch.no_grad()
def _behaviour(calibration: AdvantageCalibration, generator: torch.Generator, states: int, k: int) -> dict[str, float]:
    """Compare samples of the behaviour model with the data's own action in the same state."""
    behaviour, energy = calibration.behaviour, calibration.energy()
    batch = behaviour.data.sample(states, generator)
    tiled = batch.state.repeat_interleave(k, 0)
    with warnings.catch_warnings():  # without clip_x0, so that what leaves the range is counted here
        warnings.simplefilter("ignore", SamplingWarning)
        drawn = behaviour.sampler.draw(behaviour.denoiser(False), tiled, len(tiled), generator)
    low, high = behaviour.low, behaviour.high
    inside = drawn.clamp(low, high)
    advantage = -energy(inside, tiled).reshape(states, k)
    data_advantage = -energy(batch.action, batch.state)
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


def _targets(
    trained: TrainedEnergy, calibration: AdvantageCalibration, generator: torch.Generator, states: int
) -> dict[str, float]:
    """Measure the spread of an energy network's targets at low and high noise, and the spread of beta times the advantage."""
    guidance, schedule = trained.guidance, calibration.behaviour.schedule
    batch = calibration.behaviour.data.sample(states, generator)
    objective = trained.learner.objective
    if not isinstance(objective, HasTargets):
        return {}
    device = batch.action.device
    noise = torch.randn(batch.action.shape, generator=generator, device=device)
    energies = calibration.energy(guidance.energy_scale)(batch.action, batch.state).detach()
    result = {"beta_times_advantage_std": guidance.beta * float(energies.std())}
    for label, t in (("low_noise", 0.1), ("middle", 0.5), ("high_noise", 1.0)):
        times = torch.full((states,), t, device=device)
        x = diffuse(schedule, batch.action, times, noise)
        result[f"target_std_{label}"] = float(objective.targets(batch.action, x, times, batch.state).std())
    times = random_times(states, 1e-3, generator)
    x = diffuse(schedule, batch.action, times, noise)
    network = at_unit_scale(trained.fit.model, schedule)
    result["network_gradient_norm"] = float(norm(value_and_grad(lambda x: network(x, times, batch.state), x)[1]).mean())
    return result
