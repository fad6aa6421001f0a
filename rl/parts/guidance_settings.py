"""Section ``guidance`` of a recipe: resolution and checks of the components it names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from egd.config import catalogue
from egd.config.catalogue import OBJECTIVES, POSTERIORS, RULES, check_energy, energy_registry, make_schedule
from egd.config.components import Registry, Spec, build, parameters, validate, wanted_parts
from egd.config.parts import ENERGY_PARTS, POSTERIOR_PARTS
from egd.config.trial import Trial
from egd.energies.base import takes_context
from egd.errors import UserError
from egd.objectives.base import is_grouped
from rl.config import GuidanceConfig, GuidedConfig
from rl.critics.choice import needs_support

OF_NETWORK = {"energy", "beta", "posterior", "clip_x0", "straight_through", "energy_scale"}
"""Settings of a guidance that decide its network."""


def is_trained(guidance: GuidanceConfig) -> bool:
    """Return whether the energy is an objective that trains a network, rather than a closed form."""
    return catalogue.is_trained(guidance.energy.name, "guidance.energy")


def _registry(guidance: GuidanceConfig) -> Registry:
    return energy_registry(guidance.energy.name, "guidance.energy")


def component_parts(guidance: GuidanceConfig) -> set[str]:
    """Return the names of the parts that a guidance's energy, or a component nested in it, asks for."""
    return wanted_parts(_registry(guidance), guidance.energy.spec, ENERGY_PARTS, "guidance.energy")


def group_size(guidance: GuidanceConfig) -> int:
    """Return K of an objective that takes K ``samples`` of the ``support`` of a state, or that is ``grouped``; 0
    for any other.
    """
    if not is_trained(guidance):
        return 0
    component = OBJECTIVES.find(guidance.energy.name, "guidance.energy")
    known = parameters(component)
    if "samples" not in known or not ("support" in known or is_grouped(component)):
        return 0
    return int(guidance.energy.spec.settings.get("samples", known["samples"].default) or 0)


def network_owners(guidances: Mapping[str, GuidanceConfig]) -> dict[str, str]:
    """Map every trained guidance to the one whose network it uses: those that differ only in rule or omega share one."""
    owners: dict[str, str] = {}
    seen: dict[str, str] = {}
    for name, guidance in guidances.items():
        if is_trained(guidance):
            owners[name] = seen.setdefault(guidance.model_dump_json(include=OF_NETWORK), name)
    return owners


def support_actions(config: GuidedConfig) -> int:
    """Return the number of stored actions of mu in every state that the critic or an objective learns from; 0 for none."""
    groups = [group_size(guidance) for guidance in config.guidances.values()]
    own = config.support.actions if needs_support(config.critic) else 0
    return max(config.support.actions, *groups) if any(groups) else own


def trained_guidances(config: GuidedConfig) -> dict[str, Any]:
    """Return the settings of every guidance that decide training, which runs trained together share; None for an untrained one.

    Guidances of equal beta may share a network; the settings say which betas are equal, but not their values.
    """
    betas = list(dict.fromkeys(guidance.beta for guidance in config.guidances.values()))

    def trained(guidance: GuidanceConfig) -> Any:
        settings = guidance.model_dump(mode="json", include=OF_NETWORK - {"beta"})
        return {**settings, "beta": betas.index(guidance.beta)} if is_trained(guidance) else None

    return {name: trained(guidance) for name, guidance in config.guidances.items()}


def try_components(config: GuidedConfig, event: tuple[int, ...], states: int) -> None:
    """Try the user's own components on two rows of artificial data. Raises UserError for one that breaks its contract."""
    trial = Trial(event, make_schedule(config.schedule.spec), torch.zeros(2, states))
    for name, guidance in config.guidances.items():
        key = "guidance" if name == "guided" else f"variants.{name}"
        trial.energy(guidance.energy.spec, f"{key}.energy")
        trial.posterior(guidance.posterior.spec, f"{key}.posterior")
        trial.rule(guidance.rule.spec, f"{key}.rule")


def check_joint(config: GuidedConfig) -> None:
    """Raise UserError for joint training of a part that learns from support actions, which only a finished behaviour policy
    draws.
    """
    supported = [name for name, guidance in config.guidances.items() if group_size(guidance)]
    if config.training == "joint" and (supported or needs_support(config.critic)):
        what = f"the energy of '{supported[0]}'" if supported else f"the critic '{config.critic.name}'"
        raise UserError(f"'joint' draws no support actions, which {what} learns from; use 'phased'", key="training")


def check_guidance(guidances: Mapping[str, GuidanceConfig]) -> None:
    """Raise UserError for a component that does not exist or a setting that it does not have."""
    for name, guidance in guidances.items():
        key = "guidance" if name == "guided" else f"variants.{name}"
        component = check_energy(guidance.energy.spec, ENERGY_PARTS, f"{key}.energy")
        if not takes_context(component):
            raise UserError(f"'{guidance.energy.name}' takes no state; use support_samples or ess_blend", key=f"{key}.energy")
        validate(POSTERIORS, guidance.posterior.spec, POSTERIOR_PARTS, f"{key}.posterior")
        _check_rule(guidance.rule.spec, f"{key}.rule")


def _check_rule(spec: Spec, key: str) -> None:
    try:
        build(RULES, spec, {"omega": 1.0}, key)
    except ValueError as error:
        raise UserError(str(error), key=key) from None
