"""What an energy may do once per sampling run rather than once per step."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from egd.types import Context, TimedEnergy


@runtime_checkable
class Preparable(Protocol):
    """An intermediate energy with work to do once for a batch of contexts, such as drawing support samples."""

    def prepare(self, c: Context) -> TimedEnergy:
        """The energy bound to these contexts."""
        ...


def prepare(energy: TimedEnergy, c: Context) -> TimedEnergy:
    """Bind an energy to contexts before a sampling run; energies without ``prepare`` are returned as they are."""
    return energy.prepare(c) if isinstance(energy, Preparable) else energy
