"""AEPO's objective: regress the network on a closed form."""

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
    """mean (E_Theta(x_t, t, c) - target)^2 with a closed form as target. AEPO Eq. 26.

    Without ``target`` the form is AEPO's own, the first order, expanded at the data point moved by ``nu`` up the energy,
    xbar = x_0 + nu grad E / ||grad E|| with the gradient taken at x_0: Eq. 46's a - nu Q'/||Q'|| in our sign (E = -Q).
    ``expand_at: mean`` expands at the posterior mean instead. With ``target`` it is that energy at (x_t, t, c), whatever
    it is: the network is then a fast copy of it, no more exact than it is, and the other settings are idle.

    The optimum is E[target | x_t, t, c]. ValueError when there is neither a target nor an energy and a posterior.
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

    @torch.no_grad()  # an energy's own gradient is taken all the same; the denoiser's graph is not kept
    def targets(self, x0: Tensor, x: Tensor, t: Tensor, c: Context) -> Tensor:
        """The regression targets, (B,)."""
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
        """The loss () and its metrics; x0 and x (B, ...), t (B,)."""
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
        """Whether a target may count its clips: its own form has none, and a compiled one counts nothing."""
        return self.target is not None and not torch.compiler.is_compiling()
