"""Policies compared without a simulator: what a critic thinks of their actions, less a price for leaving the behaviour."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from egd.errors import UserError, nearest

Penalty = Literal["kl", "error"]

BLUR = 0.05  # of the behaviour's own spread
ROUNDING = 1e-6  # neighbours nearer than this, in those units, are as near as float32 can tell
LEAST_SPREAD = 1e-3  # of an action entry, where the behaviour has none


@dataclass(frozen=True)
class Score:
    """Means over states: ``value``, by how much a critic prefers the policy's actions to the behaviour's; ``kl``, KL(pi || mu)
    in nats; ``score``, and ``se``, its standard error for the critic as it is.
    """

    value: float
    kl: float
    score: float
    se: float


def spread(reference: Tensor) -> Tensor:
    """The behaviour's own spread within a state, by entry: actions (N, M, A) -> (A,)."""
    return reference.var(1).mean(0).sqrt().clamp(min=LEAST_SPREAD)


def neighbour_kl(actions: Tensor, reference: Tensor, unit: Tensor, generator: torch.Generator) -> Tensor:
    """KL(pi || mu) of every state in nats from samples of both, (N, n, A) and (N, m, A) -> (N,), by distances to the nearest:

        A / n sum_i log(nu_i / rho_i) + log(m / (n - 1)),

    nu_i from a_i ~ pi to the nearest of mu's samples, rho_i to the nearest other of pi's own (Wang, Kulkarni, Verdú 2009,
    doi:10.1109/TIT.2009.2016060, Eq. 5). Distances are in ``unit`` (A,), the behaviour's own spread, of which BLUR is added
    to both as noise: so it is finite for a policy without any, and by the data processing inequality no larger.

    Its mean is 0 at pi = mu for m = n - 1, whatever n and A; consistent elsewhere. With few samples it makes too little of a
    distance that they do not bridge: half the truth for a shift in many dimensions. Raises ValueError for n < 2.
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
    """(N, n, A), (N, m, A) -> (N, n, m); not by scalar products, whose rounding makes neighbours of neighbours the same."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def disagreement(members: Tensor) -> float:
    """The spread of a critic's error over actions of a state, from what its members (M, N, K) say of the behaviour's actions,
    as if their errors were independent: sqrt of 1 / (M - 1) sum_i var_a(Q_i - mean Q), averaged over states. UserError for
    M < 2.
    """
    if len(members) < 2:
        raise UserError("it needs a critic of two members at least; use --penalty kl", key="--penalty")
    apart = members - members.mean(0)
    return float(apart.var(2).sum(0).mean().div(len(members) - 1).sqrt())


def regularised(value: Tensor, kl: Tensor, price: float) -> Score:
    """E_s[value - price KL], both (N,): with ``price`` 1 / beta the objective that pi ~ mu exp(beta Q) maximises. Where the
    estimate of the mean KL is below 0, it counts as 0.
    """
    return _score(value, kl, price * kl, price * max(float(kl.mean()), 0.0))


def cautious(value: Tensor, kl: Tensor, error: float) -> Score:
    """E_s[value] - error sqrt(2 KL), KL the mean over states: a lower bound on what the actions are worth where the critic's
    error over actions of mu is sub-Gaussian with that spread, as E_pi[e] - E_mu[e] <= error sqrt(2 KL(pi || mu)) then.
    """
    mean = max(float(kl.mean()), 0.0)
    grad = error / math.sqrt(2 * mean) if mean > 0 else 0.0
    return _score(value, kl, grad * kl, error * math.sqrt(2 * mean))


def _score(value: Tensor, kl: Tensor, linear: Tensor, penalty: float) -> Score:
    """``linear`` (N,): the penalty to first order, for the standard error."""
    se = float((value - linear).std() / len(value) ** 0.5) if len(value) > 1 else math.nan
    return Score(float(value.mean()), float(kl.mean()), float(value.mean()) - penalty, se)


def check_penalty(name: str) -> Penalty:
    """UserError where there is none of that name."""
    for known in get_args(Penalty):
        if name == known:
            return known  # type: ignore[no-any-return]
    raise UserError(f"'{name}': {nearest(name, get_args(Penalty))}", key="--penalty")


@dataclass(frozen=True)
class Regret:
    """What the choice costs by the simulator: scores of the best policy, of the chosen one, and of the default, all of those
    that were rolled out; None where it was not.
    """

    best: str
    best_score: float
    chosen_score: float | None
    default_score: float | None

    @property
    def of_choice(self) -> float | None:
        """Best - chosen."""
        return None if self.chosen_score is None else self.best_score - self.chosen_score

    @property
    def of_default(self) -> float | None:
        """Best - default."""
        return None if self.default_score is None else self.best_score - self.default_score


def choose(scores: Mapping[str, Score]) -> str:
    """The policy of the highest score. UserError where no score is a number; one that is none is never the highest."""
    sound = {name: score.score for name, score in scores.items() if math.isfinite(score.score)}
    if not sound:
        raise UserError("no policy has a score that is a number: the actions or the critics of these runs are lost")
    return max(sound, key=lambda name: sound[name])


def regret(simulated: Mapping[str, float | None], chosen: str, default: str) -> Regret | None:
    """Of the choice, by the simulator's scores; None where none of the policies was rolled out."""
    known = {name: score for name, score in simulated.items() if score is not None}
    if not known:
        return None
    best = max(known, key=lambda name: known[name])
    return Regret(best, known[best], known.get(chosen), known.get(default))


def held_out(rows: int, blocks: int = 100, every: int = 10) -> Tensor:
    """Which of the data's rows are kept from fitted Q evaluation, (rows,) bool: whole stretches of neighbours, as rows of an
    episode tell of each other.
    """
    blocks = min(blocks, rows)
    return torch.arange(rows) * blocks // rows % every == min(every, blocks) - 1
