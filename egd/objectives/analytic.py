"""AEPO's objective, regression on a closed form."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from egd.bounds import BetaOrZero, NotNegative
from egd.contracts import energy_values, timed_values
from egd.energies.base import prepare
from egd.energies.first_order import FirstOrder
from egd.samplers.watching import watching
from egd.tensors import expand, norm, spread, value_and_grad
from egd.types import Context, Energy, Posterior, TimedEnergy

__all__ = ["Analytic"]


@dataclass(frozen=True)
class Analytic:
    """Regression on a closed form, mean (E_Theta(x_t, t, c) - target)^2. AEPO Eq. 26.

    Without ``target`` the closed form is AEPO's first order, expanded at the data point moved by ``nu`` up the energy, xbar =
    x_0 + nu grad E / ||grad E|| with the gradient taken at x_0: Eq. 46's a - nu Q'/||Q'|| in our sign (E = -Q). ``expand_at:
    mean`` expands at the posterior mean instead. With ``target`` the closed form is that energy at (x_t, t, c): the network is
    then a fast copy of it, no more exact than the energy itself, and the other settings have no effect.

    The optimum is E[target | x_t, t, c]. Raises ValueError when there is neither a target nor an energy and a posterior.
    """

    energy: Energy | None = None
    posterior: Posterior | None = None
    beta: BetaOrZero = 1.0
    target: TimedEnergy | None = None
    nu: NotNegative = 0.001
    variance: bool = True
    expand_at: Literal["data", "mean"] = "data"

    def __post_init__(self) -> None:
        if self.target is None and (self.energy is None or self.posterior is None):
            raise ValueError("Analytic needs an energy and a posterior, or a target of its own")

    @torch.no_grad()  # the denoiser's graph is not kept; the gradient of the energy is taken all the same
    def targets(self, x0: Tensor, x: Tensor, t: Tensor, c: Context) -> Tensor:
        """Compute the regression targets: (B,)."""
        if self.target is not None:
            return timed_values(prepare(self.target, c), x, t, c)
        assert self.energy is not None
        assert self.posterior is not None
        closed_form = FirstOrder(self.energy, self.posterior, self.beta, self.variance)
        if self.expand_at == "mean":
            return closed_form(x, t, c)
        energy = self.energy
        _, grad = value_and_grad(lambda p: energy_values(energy, p, c), x0)
        unit = grad / expand(norm(grad).clamp(min=1e-12), grad)
        return closed_form(x, t, c, at=x0 + self.nu * unit)

    def loss(
        self, network: TimedEnergy, x0: Tensor, x: Tensor, t: Tensor, c: Context, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss () and its metrics: x0 and x (B, ...), t (B,)."""
        with watching() if self._is_watched() else nullcontext() as watch:
            targets = self.targets(x0, x, t, c)
        shares = {} if watch is None else watch.metrics()
        loss = (timed_values(network, x, t, c) - targets).square().mean()
        return loss, {
            "target_mean": targets.mean(),
            "target_std": spread(targets),
            **({"target_clipped": targets.new_tensor(shares["clipped"])} if "clipped" in shares else {}),
        }

    def _is_watched(self) -> bool:
        """Tell whether the target's clips are counted: the first order has none, and a compiled target counts nothing."""
        return self.target is not None and not torch.compiler.is_compiling()
