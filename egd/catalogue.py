"""The library's own components, by kind: what a recipe may name."""

from __future__ import annotations

from egd.components import Registry

SCHEDULES = Registry("schedule", "egd.schedules")
POSTERIORS = Registry("posterior", "egd.posteriors")
ENERGIES = Registry("energy", "egd.energies")
OBJECTIVES = Registry("energy", "egd.objectives")
RULES = Registry("guidance rule", "egd.rules")
SAMPLERS = Registry("sampler", "egd.samplers")
WRAPPERS = Registry("wrapper of a denoiser", "egd.wrappers")

CATALOGUE = {
    "schedule": SCHEDULES,
    "posterior": POSTERIORS,
    "energy (closed form)": ENERGIES,
    "energy (trained)": OBJECTIVES,
    "guidance rule": RULES,
    "sampler": SAMPLERS,
    "wrapper of a denoiser": WRAPPERS,
}
"""Kind, as ``egd list`` has it -> registry."""
