"""The guidance section of a recipe: what its names stand for, and whether they fit."""

from __future__ import annotations

from collections.abc import Mapping

from egd.config import catalogue
from egd.config.catalogue import OBJECTIVES, POSTERIORS, RULES, check_energy, energy_registry
from egd.config.components import Registry, Spec, build, parameters, validate, wanted_parts
from egd.config.parts import ENERGY_PARTS, POSTERIOR_PARTS
from egd.energies.base import takes_context
from egd.errors import UserError
from egd.objectives.base import is_grouped
from rl.runs.config import GuidanceConfig


def is_trained(guidance: GuidanceConfig) -> bool:
    """Whether the energy is an objective that trains a network, rather than a closed form."""
    return catalogue.is_trained(guidance.energy.name, "guidance.energy")


def _registry(guidance: GuidanceConfig) -> Registry:
    return energy_registry(guidance.energy.name, "guidance.energy")


def component_parts(guidance: GuidanceConfig) -> set[str]:
    """The parts that an arm's energy, or what is nested in it, asks for."""
    return wanted_parts(_registry(guidance), guidance.energy.spec, ENERGY_PARTS, "guidance.energy")


def group_size(guidance: GuidanceConfig) -> int:
    """K of an objective that takes K ``samples`` of the ``support`` of a state, or that is ``grouped``; 0 for any other."""
    if not is_trained(guidance):
        return 0
    component = OBJECTIVES.find(guidance.energy.name, "guidance.energy")
    known = parameters(component)
    if "samples" not in known or not ("support" in known or is_grouped(component)):
        return 0
    return int(guidance.energy.spec.settings.get("samples", known["samples"].default) or 0)


def check_guidance(arms: Mapping[str, GuidanceConfig]) -> None:
    """UserError for a component that does not exist or a setting it does not have."""
    for name, guidance in arms.items():
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
