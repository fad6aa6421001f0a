"""Comparison of policies without a simulator: a critic's value of their actions, minus a penalty for divergence from the
behaviour.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from egd.errors import UserError, nearest

Penalty = Literal["kl", "error"]

BLUR = 0.05  # standard deviation of the noise, as a share of the behaviour's own spread
ROUNDING = 1e-6  # smallest distance, in the same units, that float32 resolves
LEAST_SPREAD = 1e-3  # lower bound of the spread of an action entry


@dataclass(frozen=True)
class Score:
    """Score of a policy, as means over states.

    ``value`` is the critic's preference for the policy's actions over the behaviour's, ``kl`` is KL(pi || mu) in nats,
    ``score`` is the value less the penalty, and ``se`` is the standard error of ``score`` for the critic as it is.
    """

    value: float
    kl: float
    score: float
    se: float


def spread(reference: Tensor) -> Tensor:
    """Compute the behaviour's own spread within a state, by entry: actions (N, M, A) -> (A,)."""
    return reference.var(1).mean(0).sqrt().clamp(min=LEAST_SPREAD)


def neighbour_kl(actions: Tensor, reference: Tensor, unit: Tensor, generator: torch.Generator) -> Tensor:
    """Estimate KL(pi || mu) in every state, in nats, from nearest-neighbour distances of samples, (N, n, A) and (N, m, A) ->
    (N,):

        A / n sum_i log(nu_i / rho_i) + log(m / (n - 1)),

    where nu_i is the distance of a_i ~ pi to the nearest sample of mu, and rho_i to the nearest other sample of pi (Wang,
    Kulkarni, Verdú 2009, doi:10.1109/TIT.2009.2016060, Eq. 5). Distances are in ``unit`` (A,), the behaviour's own spread.
    Gaussian noise of BLUR units is added to both samples, so that the estimate is finite for a deterministic policy; by the
    data processing inequality the noise does not increase the KL.

    The estimate's mean is 0 at pi = mu for m = n - 1, whatever n and A; elsewhere it is consistent. With few samples it
    underestimates the KL of distant distributions, by half for a shift in many dimensions. Raises ValueError for n < 2.
    """
    n, m = actions.shape[1], reference.shape[1]
    if n < 2:
        raise ValueError(f"nearest neighbours among the policy's own actions need at least 2 a state; got {n}")

    def blurred(x: Tensor) -> Tensor:
        noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        return x / unit + BLUR * noise

    a, b = blurred(actions), blurred(reference)
    itself = torch.eye(n, dtype=torch.bool, device=a.device)
    nearest_own, nearest_other = distances(a, a).masked_fill(itself, math.inf).amin(2), distances(a, b).amin(2)
    nearest_own, nearest_other = (distance.clamp(min=ROUNDING) for distance in (nearest_own, nearest_other))
    return a.shape[2] * (nearest_other / nearest_own).log().mean(1) + math.log(m / (n - 1))


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Compute pairwise distances, (N, n, A), (N, m, A) -> (N, n, m), without scalar products, whose rounding makes close
    neighbours coincide.
    """
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def disagreement(members: Tensor) -> float:
    """Estimate the spread of a critic's error over actions of a state, from the values (M, N, K) of its M members for the
    behaviour's actions.

    The members' errors are taken as independent: sqrt of 1 / (M - 1) sum_i var_a(Q_i - mean Q), averaged over states. Raises
    UserError for M < 2.
    """
    if len(members) < 2:
        raise UserError("it needs a critic of two members at least; use --penalty kl", key="--penalty")
    apart = members - members.mean(0)
    return float(apart.var(2).sum(0).mean().div(len(members) - 1).sqrt())


def regularised(value: Tensor, kl: Tensor, price: float) -> Score:
    """Compute E_s[value - price KL] from both (N,): with ``price`` 1 / beta the objective that pi ~ mu exp(beta Q) maximises.

    A negative estimate of the mean KL counts as 0.
    """
    return _score(value, kl, price * kl, price * max(float(kl.mean()), 0.0))


def cautious(value: Tensor, kl: Tensor, error: float) -> Score:
    """Compute E_s[value] - error sqrt(2 KL) from both (N,), where KL is the mean over states.

    It is a lower bound on the value of the actions if the critic's error over actions of mu is sub-Gaussian with spread
    ``error``, since then E_pi[e] - E_mu[e] <= error sqrt(2 KL(pi || mu)).
    """
    mean = max(float(kl.mean()), 0.0)
    grad = error / math.sqrt(2 * mean) if mean > 0 else 0.0
    return _score(value, kl, grad * kl, error * math.sqrt(2 * mean))


def _score(value: Tensor, kl: Tensor, linear: Tensor, penalty: float) -> Score:
    """Return the score; ``linear`` (N,) is the penalty to first order, which the standard error needs."""
    se = float((value - linear).std() / len(value) ** 0.5) if len(value) > 1 else math.nan
    return Score(float(value.mean()), float(kl.mean()), float(value.mean()) - penalty, se)


def check_penalty(name: str) -> Penalty:
    """Return the name as a ``Penalty``. Raises UserError for an unknown one."""
    for known in get_args(Penalty):
        if name == known:
            return known  # type: ignore[no-any-return]
    raise UserError(f"'{name}': {nearest(name, get_args(Penalty))}", key="--penalty")


@dataclass(frozen=True)
class Regret:
    """Regret of the choice by the simulator's scores.

    Scores are those of the best rolled-out policy, of the chosen one and of the default; None for one that was not rolled out.
    """

    best: str
    best_score: float
    chosen_score: float | None
    default_score: float | None

    @property
    def of_choice(self) -> float | None:
        """Score of the best policy minus that of the chosen one."""
        return None if self.chosen_score is None else self.best_score - self.chosen_score

    @property
    def of_default(self) -> float | None:
        """Score of the best policy minus that of the default."""
        return None if self.default_score is None else self.best_score - self.default_score


def choose(scores: Mapping[str, Score]) -> str:
    """Return the policy of the highest score; scores that are not finite are ignored. Raises UserError where none is finite."""
    sound = {name: score.score for name, score in scores.items() if math.isfinite(score.score)}
    if not sound:
        raise UserError("no policy has a score that is a number: the actions or the critics of these runs are lost")
    return max(sound, key=lambda name: sound[name])


def regret(simulated: Mapping[str, float | None], chosen: str, default: str) -> Regret | None:
    """Return the regret of the choice by the simulator's scores, or None where none of the policies was rolled out."""
    known = {name: score for name, score in simulated.items() if score is not None}
    if not known:
        return None
    best = max(known, key=lambda name: known[name])
    return Regret(best, known[best], known.get(chosen), known.get(default))


def held_out(rows: int, blocks: int = 100, every: int = 10) -> Tensor:
    """Return a mask of the rows held out from fitted Q evaluation, (rows,) bool: whole stretches of neighbours, because rows of
    an episode are correlated.
    """
    blocks = min(blocks, rows)
    return torch.arange(rows) * blocks // rows % every == min(every, blocks) - 1
