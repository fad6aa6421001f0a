"""AEPO's closed form, the energy to first order around a point."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from egd.bounds import BetaOrZero
from egd.contracts import energy_values, posterior_at
from egd.tensors import inner, value_and_grad
from egd.types import Context, Energy, Posterior

__all__ = ["FirstOrder"]


@dataclass(frozen=True)
class FirstOrder:
    """First-order expansion E_t ~ beta E(xbar) + g^T (mu - xbar) - 1/2 g^T Sigma g, g = beta grad E(xbar). AEPO Eq. 17, 25.

    It is exact when E is linear and the posterior N(mu, Sigma) is Gaussian. Without the last term (``variance: false``) it is
    the linearised DPS. The expansion point xbar is mu, or ``at`` where the caller gives a better one (in AEPO's training the
    data point).
    """

    energy: Energy
    posterior: Posterior
    beta: BetaOrZero = 1.0
    variance: bool = True

    def __call__(self, x: Tensor, t: Tensor, c: Context = None, at: Tensor | None = None) -> Tensor:
        """Estimate E_t: (B, ...), (B,), c, at (B, ...) -> (B,)."""
        q = posterior_at(self.posterior, x, t, c)
        point = q.mean if at is None else at
        value, grad = value_and_grad(lambda p: energy_values(self.energy, p, c), point, create_graph=point.requires_grad)
        g = self.beta * grad
        result = self.beta * value + (inner(g, q.mean - point) if at is not None else 0.0)
        return result - 0.5 * q.quadratic(g) if self.variance else result
