"""Clean energies E(x_0, c) from others."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from egd.contracts import energy_values, timed_values
from egd.energies.sum import check_weights, weighted
from egd.types import Context, Energy, TimedEnergy


def combine(energies: Sequence[Energy], weights: Sequence[float] | None = None) -> Energy:
    """Make the energy sum_k w_k E^k(x_0, c), with weights 1 unless given; its target is q(x_0) prod_k exp(-beta w_k E^k).

    Any estimator may be applied to it. Unlike a ``Sum`` of intermediate energies, the sum itself adds no error. Raises
    ValueError when there are no energies, or not one weight for each.
    """
    check_weights(energies, weights)

    def energy(x0: Tensor, c: Context) -> Tensor:
        return weighted([energy_values(member, x0, c) for member in energies], weights)

    return energy


def at_zero(energy: TimedEnergy) -> Energy:
    """Make the clean energy E(x_0, c) = E_t(x_0, 0, c) of an intermediate energy at t = 0, for use in any closed form.

    The intermediate energy may be a network that ``Ratio`` trained at t = 0 (``clean: true``).
    """

    def clean(x0: Tensor, c: Context) -> Tensor:
        return timed_values(energy, x0, x0.new_zeros(len(x0)), c)

    return clean
