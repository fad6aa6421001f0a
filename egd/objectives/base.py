"""Optional members of objectives."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from egd.types import BringsNetwork, Context, Dimensionless, Grouped


def is_dimensionless(objective: object) -> bool:
    """Tell whether the loss of an objective, or of its class, has no unit."""
    return isinstance(objective, Dimensionless) and objective.dimensionless


def is_grouped(objective: object) -> bool:
    """Tell whether an objective, or its class, compares samples of one context side by side."""
    return isinstance(objective, Grouped) and objective.grouped


class ObjectiveNetwork(nn.Module):
    """Network of E_Theta(x_t, t, c), (B,), around the ``network`` that an objective brings and its loss is given."""

    def __init__(self, objective: BringsNetwork, event: tuple[int, ...], context: int) -> None:
        super().__init__()
        self.network = objective.network(event, context)
        self._timed_energy = objective.timed_energy

    def forward(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        """Estimate E_t: (B, ...), (B,), c -> (B,)."""
        return self._timed_energy(self.network, x, t, c)


def energy_network(objective: object, event: tuple[int, ...], context: int, default: Callable[[], nn.Module]) -> nn.Module:
    """Make the network that an objective trains, its own or else the ``default``, for events of this shape.

    ``context`` is the number of entries of a context.
    """
    return ObjectiveNetwork(objective, event, context) if isinstance(objective, BringsNetwork) else default()
