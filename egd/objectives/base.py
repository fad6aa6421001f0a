"""What an objective may offer beyond its loss."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from egd.types import BringsNetwork, Context, Dimensionless, Grouped


def is_dimensionless(objective: object) -> bool:
    """Tell whether the loss has no unit, of an objective or of its class."""
    return isinstance(objective, Dimensionless) and objective.dimensionless


def is_grouped(objective: object) -> bool:
    """Tell whether it compares samples of one context side by side, of an objective or of its class."""
    return isinstance(objective, Grouped) and objective.grouped


class ObjectiveNetwork(nn.Module):
    """E_Theta(x_t, t, c), (B,), of a network that an objective brings; the loss is given ``network`` itself."""

    def __init__(self, objective: BringsNetwork, event: tuple[int, ...], context: int) -> None:
        super().__init__()
        self.network = objective.network(event, context)
        self._timed_energy = objective.timed_energy

    def forward(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        """(B, ...), (B,), c -> (B,)"""
        return self._timed_energy(self.network, x, t, c)


def energy_network(objective: object, event: tuple[int, ...], context: int, default: Callable[[], nn.Module]) -> nn.Module:
    """Make the network that an objective trains, which is its own or else the ``default``, fresh; for events of this shape and
    contexts of so many entries."""
    return ObjectiveNetwork(objective, event, context) if isinstance(objective, BringsNetwork) else default()
