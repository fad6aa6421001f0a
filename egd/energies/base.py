"""What an energy may offer beyond its values."""

from __future__ import annotations

from egd.types import Context, Preparable, TakesContext, TimedEnergy


def prepare(energy: TimedEnergy, c: Context) -> TimedEnergy:
    """Bind an energy to contexts before a sampling run; energies without ``prepare`` are returned as they are."""
    return energy.prepare(c) if isinstance(energy, Preparable) else energy


def takes_context(energy: object) -> bool:
    """Tell whether a context is of use to an energy or to its class; where it does not say, it is."""
    return not isinstance(energy, TakesContext) or energy.conditional
