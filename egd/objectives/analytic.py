"""AEPO's objective: regress the network on a closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from egd.energies.first_order import FirstOrder
from egd.tensors import expand, norm, value_and_grad
from egd.types import Context, Energy, Posterior, TimedEnergy

__all__ = ["Analytic"]


@dataclass(frozen=True)
class Analytic:
    """mean (E_Theta(x_t, t, c) - target)^2 with the first-order closed form as target. AEPO Eq. 26.

    The target is expanded at the data point moved by ``nu`` up the energy, xbar = x_0 + nu grad E / ||grad E|| with the
    gradient taken at x_0: Eq. 46's a - nu Q'/||Q'|| in our sign (E = -Q). ``expand_at: mean`` expands at the posterior
    mean instead.
    """

    energy: Energy
    posterior: Posterior
    beta: float = 1.0
    nu: float = 0.001
    variance: bool = True
    expand_at: Literal["data", "mean"] = "data"

    @torch.no_grad()  # the energy's own gradient is taken all the same; the denoiser's graph is not kept
    def target(self, x0: Tensor, x: Tensor, t: Tensor, c: Context) -> Tensor:
        """The regression target, (B,)."""
        closed_form = FirstOrder(self.energy, self.posterior, self.beta, self.variance)
        if self.expand_at == "mean":
            return closed_form(x, t, c)
        _, slope = value_and_grad(lambda p: self.energy(p, c), x0)
        unit = slope / expand(norm(slope).clamp(min=1e-12), slope)
        return closed_form(x, t, c, at=x0 + self.nu * unit)

    def loss(self, network: TimedEnergy, x0: Tensor, x: Tensor, t: Tensor, c: Context) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss () and its metrics; x0 and x (B, ...), t (B,)."""
        target = self.target(x0, x, t, c)
        return (network(x, t, c) - target).square().mean(), {"target_mean": target.mean(), "target_std": target.std()}
