"""Optional members of intermediate energies."""

from __future__ import annotations

from egd.types import Context, Preparable, TakesContext, TimedEnergy


def prepare(energy: TimedEnergy, c: Context) -> TimedEnergy:
    """Bind an energy to contexts before a sampling run; energies without ``prepare`` are returned as they are."""
    return energy.prepare(c) if isinstance(energy, Preparable) else energy


def takes_context(energy: object) -> bool:
    """Tell whether an energy, or its class, uses a context; it does where it does not say."""
    return not isinstance(energy, TakesContext) or energy.conditional
