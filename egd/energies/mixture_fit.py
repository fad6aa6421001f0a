"""A Gaussian mixture fitted to samples of the data: its posterior is again a mixture, and may have many modes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from egd.bounds import BetaOrZero, Members, Points, Positive, Samples, Seed, Share
from egd.contracts import energy_values, name_of
from egd.denoisers import diffuse
from egd.energies.second_order import LocalQuadratic
from egd.errors import UserError
from egd.mixtures import GaussianMixture
from egd.samplers.watching import note_effective
from egd.tensors import value_gradient_hessian
from egd.types import Context, Energy, Schedule, Support, TimedEnergy

__all__ = ["MixtureFit"]

PATIENCE = 2  # larger numbers of components are not tried after so many in a row that fit no better
FLOOR = 1e-6  # least variance, as a share of the data's
GAP = 10.0  # ratio of neighbouring principal variances from which on data count as low-rank
TRIED_AT = (0.1, 0.5, 0.9)  # times at which the correction is tried
TRIED = 64  # number of noised samples of the data for each trial
ALONE = 1.5  # effective number of draws below which nearly one draw has all the weight


class CollapsedError(UserError, ValueError):
    """Error of a fitted mixture whose correction rests on too few draws."""


@dataclass(frozen=True)
class MixtureFit:
    """Mixture estimate E_t ~ -log sum_k v_k(x_t) Z_k(x_t) from the posterior of a mixture fitted to ``samples`` of q.

    v_k are the posterior's weights and Z_k = E[exp(-beta E(x_0))] under its k-th Gaussian. Z_k is the second-order closed form,
    exact for a quadratic E, times an importance-sampling correction over ``points`` draws (0: no correction). Half of the draws
    are of the Gaussian and half of it tilted by the quadratic, whose curvatures below -1 + ``delta`` are set to 0. The fit is
    refused where the effective share of draws on noised samples of the data is below ``least_effective``, or hardly more than
    one draw counts (0: never). A sampling run that later comes to such a place warns, and ``Watch`` has the share.

    The number of components is the one of ``components`` under which held-out samples are likeliest, in the directions in which
    the data have modes (``fit_mixture``). The fit is made once, and serves unconditional models (c is None). In return for many
    modes, the data must look like a mixture: ``egd bench energies`` shows by how much they do not.
    """

    conditional: ClassVar[bool] = False
    """False: a conditional model, such as one of actions given states, cannot use this energy."""

    energy: Energy
    support: Support
    schedule: Schedule
    beta: BetaOrZero = 1.0
    samples: Samples = 65536
    components: Sequence[Members] = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32)
    points: Points = 64
    delta: Positive = 0.05
    seed: Seed = 0
    least_effective: Share = 0.05

    def prepare(self, c: Context) -> TimedEnergy:
        """Return the energy with the mixture fitted.

        Raises ValueError for a context, as one fit serves one distribution, and ``CollapsedError``, a ValueError too, where the
        correction rests on too few draws.
        """
        if c is not None:
            raise ValueError("mixture_fit fits one distribution and takes no context; use support_samples or ess_blend")
        return self._fitted

    def __call__(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        """Estimate E_t: (B, ...), (B,), None -> (B,)."""
        return self.prepare(c)(x, t, c)

    @cached_property
    def _fitted(self) -> _Fitted:
        """Energy of the mixture fitted to drawn support samples."""
        with torch.no_grad():
            data = self.support(None, self.samples)[0]
        mixture = fit_mixture(data.flatten(1), self.components, self.seed)
        least = max(self.least_effective * self.points, ALONE) if self.least_effective else 0.0
        fitted = _Fitted(self.energy, mixture, self.schedule, self.beta, self.points, self.delta, self.seed, least)
        if self.points and least:
            fitted.check(data[:TRIED])
        return fitted


def fit_mixture(samples: Tensor, components: Sequence[int], seed: int = 0, choose_on: int = 16384) -> GaussianMixture:
    """Fit a Gaussian mixture to samples (N, d) by expectation-maximisation (scikit-learn).

    ``components`` are tried in their order on the first ``choose_on`` samples, a quarter of which is held out. The trials end
    after two in a row that do not raise the held-out likelihood by a standard error of the difference. The best fit then
    continues with all samples.

    Data of low rank, whose principal variances fall by a factor of ``GAP`` somewhere, are fitted in the directions above the
    fall, with one Gaussian for all other directions: a covariance of every component in all d directions would need more
    samples than there are, and modes would be lost. Components in all d directions are taken where they make held-out samples
    likelier. Raises ValueError for fewer samples than the entries of one mean, and for samples that are all the same or not
    finite.
    """
    data = samples.detach().cpu().double()
    few, held = data[:choose_on].tensor_split([-(-3 * min(choose_on, len(data)) // 4)])
    if min(components) * data.shape[1] >= len(few):
        raise ValueError(f"{len(data)} samples of {data.shape[1]} dimensions are too few for a mixture; raise samples")
    if not data.var(correction=0) > 0 or not data.isfinite().all():
        raise ValueError(f"{len(data)} samples that are all the same, or not finite, are no data to fit")
    basis, rank = _principal(few)
    k = _choose(few @ basis[:, :rank], held @ basis[:, :rank], components, seed)
    if rank < data.shape[1]:
        low, full = _fit(few, basis, rank, k, seed), _fit(few, basis, data.shape[1], k, seed)
        if _surely_above(full.log_prob(held), low.log_prob(held)):
            rank = data.shape[1]
            k = _choose(few, held, components, seed)
    fitted = _fit(data, basis, rank, k, seed, start_on=len(few))
    return GaussianMixture(*(v.to(samples) for v in (fitted.log_weights, fitted.means, fitted.covs)))


def _principal(data: Tensor) -> tuple[Tensor, int]:
    """Return the principal directions of data (N, d), in columns (d, d), and the number before the largest fall of variance."""
    values, basis = torch.linalg.eigh(data.mT.cov().reshape(data.shape[1], -1))  # in one dimension cov() is a number
    values, basis = values.flip(0).clamp(min=1e-12 * values[-1]), basis.flip(1)
    falls = values[:-1] / values[1:]
    if not len(falls) or falls.max() < GAP:
        return torch.eye(len(values)).to(basis), len(values)
    return basis, int(falls.argmax()) + 1


def _choose(few: Tensor, held: Tensor, components: Sequence[int], seed: int) -> int:
    """Return the number of components, fitted to few (N, d), under which the held-out samples (M, d) are likeliest."""
    best, most, worse = components[0], None, 0
    for k in components:
        if worse == PATIENCE or k * few.shape[1] >= len(few):
            break
        likelihood = torch.as_tensor(_expectation_maximisation(few, k, seed).score_samples(held.numpy()))
        better = most is None or _surely_above(likelihood, most)
        best, most, worse = (k, likelihood, 0) if better else (best, most, worse + 1)
    return best


def _surely_above(new: Tensor, old: Tensor) -> bool:
    """Tell whether numbers (N,) exceed others, paired with them, by a standard error of their mean difference or more."""
    gain = new - old
    return bool(gain.mean() > gain.std() / math.sqrt(len(gain)))


def _fit(data: Tensor, basis: Tensor, rank: int, k: int, seed: int, start_on: int | None = None) -> GaussianMixture:
    """Fit k components in the first ``rank`` directions, times one Gaussian in the others."""
    place = data @ basis[:, :rank]
    fit = _expectation_maximisation(place[:start_on], k, seed)
    if start_on is not None:
        fit = _expectation_maximisation(place, k, seed, start=fit)
    rest = data @ basis[:, rank:]
    means = torch.cat([torch.as_tensor(fit.means_), rest.mean(0).expand(k, -1)], 1)
    covs = torch.zeros(k, *basis.shape, dtype=data.dtype)
    covs[:, :rank, :rank] = torch.as_tensor(fit.covariances_)
    if rest.shape[1]:
        covs[:, rank:, rank:] = rest.mT.cov().reshape(rest.shape[1], -1) + FLOOR * data.var() * torch.eye(rest.shape[1])
    return GaussianMixture(torch.as_tensor(fit.weights_).log(), means @ basis.mT, basis @ covs @ basis.mT)


def _expectation_maximisation(data: Tensor, k: int, seed: int, start: Any = None) -> Any:
    """Fit scikit-learn's mixture of k components to data (N, d), from three initialisations or from the fit ``start``."""
    from sklearn.mixture import GaussianMixture as Fit

    shared = {"covariance_type": "full", "reg_covar": FLOOR * float(data.var(correction=0)), "random_state": seed}
    if start is None:
        return Fit(k, n_init=3, **shared).fit(data.numpy())
    begin = {"weights_init": start.weights_, "means_init": start.means_, "precisions_init": start.precisions_}
    return Fit(k, tol=1e-5, max_iter=500, **begin, **shared).fit(data.numpy())


@dataclass(frozen=True)
class _Fitted:
    """Energy of a fitted mixture."""

    energy: Energy
    mixture: GaussianMixture
    schedule: Schedule
    beta: float
    points: Points
    delta: Positive
    seed: Seed
    least: float

    def __call__(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        """Estimate E_t: (B, ...), (B,), None -> (B,)."""
        values, effective = self._averaged(x, t)
        if effective is not None:
            note_effective(self.energy, effective, self.points, self.least)
        return values

    @torch.no_grad()
    def check(self, data: Tensor) -> None:
        """Try the correction on noised samples of the data (N, ...). Raises ``CollapsedError`` where too few draws count."""
        noise = torch.randn(data.shape, generator=torch.Generator().manual_seed(self.seed)).to(data)
        for time in TRIED_AT:
            t = torch.full((len(data),), time, dtype=data.dtype, device=data.device)
            _, effective = self._averaged(diffuse(self.schedule, data, t, noise), t)
            assert effective is not None
            if float(effective) < self.least:
                raise CollapsedError(
                    f"of the {self.points} draws by which mixture_fit averages {name_of(self.energy)} {float(effective):.3g} "
                    f"count at t = {time:g}, fewer than {self.least:.3g}: its correction has collapsed, and its gradient would "
                    "be noise. Raise points, lower beta, or use ess_blend or support_samples; "
                    "least_effective: 0 takes it as it is"
                )

    def _averaged(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """Estimate E_t, (B,), and return it with the effective number () of its draws, None where it takes no draws."""
        log_v, means, covs = self.mixture.posterior(self.schedule, x.flatten(1), t)
        n, k, d = means.shape
        root = torch.linalg.cholesky(covs).expand(n, k, d, d).flatten(0, 1)
        mean = means.flatten(0, 1)
        model = LocalQuadratic.fit(*value_gradient_hessian(self._tilt(x), mean, None), root, self.delta, instead=0.0)
        log_z, effective = model.log_partition(), None
        if self.points:
            correction, counted = self._correction(model, log_z, mean, root, x)
            log_z = log_z + correction
            shares = (log_v + log_z.reshape(n, k)).detach().softmax(1)
            effective = (shares * counted.reshape(n, k)).sum(1).mean()
        return -torch.logsumexp(log_v + log_z.reshape(n, k), 1), effective

    def _correction(self, model: LocalQuadratic, log_z: Tensor, mean: Tensor, root: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Estimate log of E exp(-beta E) / E exp(-q), (N,), and return it with the effective number of draws behind it, (N,).

        ``log_z`` is the logarithm of the denominator. Numerator and denominator use the same draws, half of the prior and half
        of the prior tilted by q: no weight exceeds two, and the estimate has no error for a quadratic E.
        """
        prior, tilted = _normal(self.points, mean, self.seed).tensor_split(2)
        u = torch.cat([prior.expand(len(mean), -1, -1), model.tilted(tilted)], 1)
        q = model(u)
        log_w = -torch.nn.functional.softplus(-q - log_z[:, None])
        events = mean[:, None] + u @ root.mT
        energies = self._tilt(x)(events.flatten(0, 1), None).reshape(q.shape)
        total = torch.logsumexp(log_w - energies, 1)
        effective = (2 * total - torch.logsumexp(2 * (log_w - energies), 1)).detach().exp()
        return total - torch.logsumexp(log_w - q, 1), effective

    def _tilt(self, x: Tensor) -> Energy:
        """Return beta E as a function of flattened events."""
        return lambda p, _: self.beta * energy_values(self.energy, p.reshape(-1, *x.shape[1:]), None)


def _normal(n: int, like: Tensor, seed: int) -> Tensor:
    """Draw a scrambled Sobol sequence as standard normals (n, d), d being that of ``like`` (..., d)."""
    uniform = torch.quasirandom.SobolEngine(like.shape[-1], scramble=True, seed=seed).draw(n, dtype=torch.float64)  # type: ignore[no-untyped-call]
    normal: Tensor = torch.special.ndtri(uniform.clamp(1e-9, 1 - 1e-9)).to(like)
    return normal
