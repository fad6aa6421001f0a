"""GuidedPolicy policies: every guidance of a recipe with its energy, closed or trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from egd.config.catalogue import ENERGIES, RULES
from egd.config.components import build
from egd.denoisers import at_unit_scale
from egd.networks.mlp import EnergyNetwork
from egd.posteriors import residual
from egd.runs.labels import label
from egd.types import TimedEnergy
from rl.config import GuidanceConfig, GuidedConfig
from rl.parts.action_sampling import Choice, GuidedSampling, Randomness
from rl.parts.base import Part, RunContext
from rl.parts.calibration import AdvantageCalibration
from rl.parts.energies import TrainedEnergy, energy_components
from rl.parts.guidance_settings import component_parts, network_owners
from rl.parts.policies import Act, AgentPolicy
from rl.parts.support_actions import SupportTable


class GuidedPolicy(AgentPolicy):
    """Policy pi(a|s) ~ mu(a|s) exp(beta Q(s, a)) (AEPO Eq. 4): samples of mu guided by an intermediate energy.

    The energy is a closed form unless there is a ``network``. ``part`` is the part that makes the energy.
    """

    def __init__(
        self, name: str, config: GuidanceConfig, calibration: AdvantageCalibration, part: Part, network: TrainedEnergy | None
    ) -> None:
        self.name, self.config, self.calibration, self.part, self.network = name, config, calibration, part, network
        self.behaviour, self.scale = calibration.behaviour, config.omega

    @override
    def scales(self, only: Sequence[float] | None = None) -> list[float] | None:
        omegas = [self.config.omega, *self.config.omegas] if only is None else only
        return list(dict.fromkeys(omega for omega in omegas if self.config.alters(omega))) or None

    def timed_energy(self, randomness: Randomness) -> TimedEnergy:
        """Return the intermediate energy."""
        if self.network is not None:
            return at_unit_scale(self.network.fit.model, self.behaviour.schedule)
        components = energy_components(self.config, self.calibration, randomness)
        closed_form: TimedEnergy = build(ENERGIES, self.config.energy.spec, components, f"{self.name}.energy")
        return closed_form

    @override
    def act(self, scales: Sequence[float], randomness: Randomness) -> Act:
        g, k = self.config, self.config.candidates
        timed, omegas = self.timed_energy(randomness), torch.tensor(scales, device=self.behaviour.low.device)
        unguided = self._unguided(randomness)

        def act(states: Tensor, scale_index: Tensor) -> Tensor:
            rule = build(RULES, g.rule.spec, {"omega": omegas[scale_index].repeat_interleave(k)}, f"{self.name}.rule")
            return unguided(states) if max(scales) == 0 else replace(unguided, timed_energy=timed, rule=rule)(states)

        return act

    def _unguided(self, randomness: Randomness) -> GuidedSampling:
        g, behaviour = self.config, self.behaviour
        denoiser, moments = behaviour.denoiser(g.clip_x0), self.calibration.moments[g.clip_x0]
        variance = residual(denoiser, moments, schedule=behaviour.schedule).variance
        choice = Choice(self.calibration.energy(g.energy_scale), g.beta, g.candidates, g.selection, variance)
        bounds = behaviour.bounds(g.clip_x0)
        return GuidedSampling(behaviour.sampler, denoiser, randomness, choice=choice, bounds=bounds, temperature=g.temperature)


class Guidance:
    """Guidances of a recipe, ``guided`` and the variants, and the energy networks that they need.

    ``critic`` is the part that trains Q; the other arguments are those of ``TrainedEnergy``.
    """

    def __init__(
        self,
        context: RunContext,
        config: GuidedConfig,
        calibration: AdvantageCalibration,
        critic: Part,
        support: SupportTable | None = None,
        network: Callable[[], EnergyNetwork] | None = None,
    ) -> None:
        self.config, self.calibration, self.critic = config, calibration, critic
        self.owners = network_owners(config.guidances)
        self.energies = {
            name: TrainedEnergy(context, name, config, calibration, support, network)
            for name in dict.fromkeys(self.owners.values())
        }

    def policies(self) -> dict[str, AgentPolicy]:
        """Return ``behaviour``, and the policy of every guidance under its name."""
        behaviour = self.calibration.behaviour.policy(self.config.guidance.clip_x0)
        return {"behaviour": behaviour, **{name: self.policy(name) for name in self.config.guidances}}

    def policy(self, name: str) -> GuidedPolicy:
        """Return the policy of a guidance."""
        network = self.energies.get(self.owners.get(name, ""))
        return GuidedPolicy(name, self.config.guidances[name], self.calibration, network or self.critic, network)

    def own(self, name: str) -> str:
        """Return the name of the policy of a guidance at its own scale."""
        guidance = self.config.guidances[name]
        return f"{name}@{label(guidance.omega)}" if guidance.alters(guidance.omega) else "behaviour"

    def warnings(self, diagnostics: Mapping[str, Any]) -> list[str]:
        """Return a warning for each guidance whose posterior's variance was clamped."""
        found = []
        for name, guidance in self.config.guidances.items():
            kind = ("clipped_" if guidance.clip_x0 else "") + guidance.posterior.name  # Tweedie's is not clamped over t
            share = diagnostics["posterior_clamped_share"].get(kind, 0.0)
            if share and "posterior" in component_parts(guidance):
                found.append(
                    f"{name}: its {guidance.posterior.name} variance was clamped at {100 * share:.0f} % of the times; "
                    "see posterior_variance.png and docs/diagnostics.md"
                )
        return found
