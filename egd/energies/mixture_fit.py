"""A Gaussian mixture fitted to samples of the data: its posterior is again a mixture, and may have many modes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from egd.bounds import BetaOrZero, Members, Points, Positive, Samples, Seed
from egd.contracts import energy_values
from egd.energies.second_order import LocalQuadratic
from egd.mixtures import GaussianMixture
from egd.tensors import value_gradient_hessian
from egd.types import Context, Energy, Schedule, Support, TimedEnergy

__all__ = ["MixtureFit"]

PATIENCE = 2  # numbers of components in a row that fit no better, after which no more are tried


@dataclass(frozen=True)
class MixtureFit:
    """E_t ~ -log sum_k v_k(x_t) Z_k(x_t): the posterior of a mixture fitted to ``samples`` of q, v_k its weights,
    Z_k = E[exp(-beta E(x_0))] under its k-th Gaussian.

    Z_k is the second-order closed form, exact for a quadratic E, times an importance-sampling correction over ``points``
    draws (0: no correction), half of them of the Gaussian and half of it tilted by the quadratic, whose curvatures below
    -1 + ``delta`` count as none. The number of components is the one of ``components`` with the least Bayesian information
    criterion. For unconditional models (c is None); the fit is made once. The price of seeing many modes is that the data
    must look like a mixture: ``egd bench energies`` shows by how much it does not.
    """

    conditional: ClassVar[bool] = False
    """Takes no context, and so is no arm of a policy."""

    energy: Energy
    support: Support
    schedule: Schedule
    beta: BetaOrZero = 1.0
    samples: Samples = 65536
    components: Sequence[Members] = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
    points: Points = 64
    delta: Positive = 0.05
    seed: Seed = 0

    def prepare(self, c: Context) -> TimedEnergy:
        """The same energy with the mixture fitted. ValueError for a context: one fit serves one distribution."""
        if c is not None:
            raise ValueError("mixture_fit fits one distribution and takes no context; use support_samples or ess_blend")
        return self._fitted

    def __call__(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        """(B, ...), (B,), None -> (B,)"""
        return self.prepare(c)(x, t, c)

    @cached_property
    def _fitted(self) -> _Fitted:
        with torch.no_grad():
            data = self.support(None, self.samples)[0]
        mixture = fit_mixture(data.flatten(1), self.components, self.seed)
        return _Fitted(self.energy, mixture, self.schedule, self.beta, self.points, self.delta, self.seed)


def fit_mixture(samples: Tensor, components: Sequence[int], seed: int = 0, choose_on: int = 16384) -> GaussianMixture:
    """Expectation-maximisation (scikit-learn): samples (N, d). ``components`` are tried in their order on the first
    ``choose_on`` samples, until two in a row have no better BIC; the best fit then goes on with all samples. ValueError for
    fewer of them than the entries of one mean.
    """
    from sklearn.mixture import GaussianMixture as Fit

    data = samples.detach().cpu().double().numpy()
    few = data[:choose_on]
    shared = {"covariance_type": "full", "reg_covar": 1e-6 * data.var(), "random_state": seed}
    best, least, worse = None, math.inf, 0
    for k in components:
        if worse == PATIENCE or k * data.shape[1] >= len(few):
            break
        fit = Fit(k, n_init=3, **shared).fit(few)
        bic = fit.bic(few)
        best, least, worse = (fit, bic, 0) if bic < least else (best, least, worse + 1)
    if best is None:
        raise ValueError(f"{len(data)} samples of {data.shape[1]} dimensions are too few for a mixture; raise samples")
    start = {"weights_init": best.weights_, "means_init": best.means_, "precisions_init": best.precisions_}
    best = Fit(best.n_components, tol=1e-5, max_iter=500, **start, **shared).fit(data)
    weights, means, covs = (torch.as_tensor(a).to(samples) for a in (best.weights_, best.means_, best.covariances_))
    return GaussianMixture(weights.log(), means, covs)


@dataclass(frozen=True)
class _Fitted:
    energy: Energy
    mixture: GaussianMixture
    schedule: Schedule
    beta: float
    points: Points
    delta: Positive
    seed: Seed

    def __call__(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        log_v, means, covs = self.mixture.posterior(self.schedule, x.flatten(1), t)
        n, k, d = means.shape
        root = torch.linalg.cholesky(covs).expand(n, k, d, d).flatten(0, 1)
        mean = means.flatten(0, 1)
        model = LocalQuadratic.fit(*value_gradient_hessian(self._tilt(x), mean, None), root, self.delta, instead=0.0)
        log_z = model.log_partition()
        if self.points:
            log_z = log_z + self._correction(model, log_z, mean, root, x)
        return -torch.logsumexp(log_v + log_z.reshape(n, k), 1)

    def _correction(self, model: LocalQuadratic, log_z: Tensor, mean: Tensor, root: Tensor, x: Tensor) -> Tensor:
        """log of E exp(-beta E) / E exp(-q), (N,), the latter's logarithm being ``log_z``; both by the same draws, half of the
        prior and half of the prior tilted by q: no weight exceeds two, and of a quadratic E nothing is left.
        """
        prior, tilted = _normal(self.points, mean, self.seed).tensor_split(2)
        u = torch.cat([prior.expand(len(mean), -1, -1), model.tilted(tilted)], 1)
        q = model(u)
        log_w = -torch.nn.functional.softplus(-q - log_z[:, None])
        events = mean[:, None] + u @ root.mT
        energies = self._tilt(x)(events.flatten(0, 1), None).reshape(q.shape)
        return torch.logsumexp(log_w - energies, 1) - torch.logsumexp(log_w - q, 1)

    def _tilt(self, x: Tensor) -> Energy:
        """beta E of flattened events."""
        return lambda p, _: self.beta * energy_values(self.energy, p.reshape(-1, *x.shape[1:]), None)


def _normal(n: int, like: Tensor, seed: int) -> Tensor:
    """A scrambled Sobol sequence as standard normals: (n, d) of the d of ``like`` (..., d)."""
    uniform = torch.quasirandom.SobolEngine(like.shape[-1], scramble=True, seed=seed).draw(n, dtype=torch.float64)  # type: ignore[no-untyped-call]
    normal: Tensor = torch.special.ndtri(uniform.clamp(1e-9, 1 - 1e-9)).to(like)
    return normal
