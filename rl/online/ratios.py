"""Clean log-weights log p / q of transitions, p those of the policy of the day and q the replayed ones, by discrimination.

EDIS (arXiv:2407.12448, Theorem 3.1) divides the weight of x = (s, a, r, s') into those of the state, of the action given the
state, and of what follows given both. Here the second is the difference of the weight of (s, a) and of that of s, and so is
normalised in every state, as the theorem needs it; a contrast within each state would leave a function of s free.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from egd.bounds import Layers, NotNegative, Rate, Steps, Width
from egd.config.sections import NetworkConfig
from egd.energies.clean import at_zero
from egd.networks.mlp import EnergyMLP
from egd.objectives.ratio import Ratio
from egd.schedules.edm import EDM
from egd.training.learners import EnergyLearner, Fit, Metrics, train
from egd.types import Sample
from rl.data.transitions import Batch, drawn
from rl.online.generators.base import GeneratorContext
from rl.online.transition_codec import TransitionCodec

Term = Literal["state", "action", "transition"]
Draw = Callable[[int, torch.Generator], Tensor]
"""(n, generator) -> vectors (n, D)."""


class RatioConfig(NetworkConfig):
    """The networks of the log-weights; ``steps`` of every refresh."""

    width: Width = 256
    layers: Layers = 2
    steps: Steps = 500
    lr: Rate = 1e-3
    window: Steps = 5000
    """So many of the last online transitions stand for p; 0: all."""
    actions: Literal["policy", "replay"] = "policy"
    """Actions of p: fresh ones of the policy in the states of the window, or those that were taken there."""
    headroom: NotNegative = 0.5
    """No weight is above -log f + headroom, f the share of the window in q: of the states of p, and of their actions as they
    were taken, q has a share f. Fresh actions may be any; with these it keeps a few rows from being all that counts.
    """
    floor: NotNegative = 5
    """No part is below minus this. Where p has next to nothing, log p / q is what the network makes of it, and a difference of
    two such parts, as for actions alone, would be noise.
    """


RATIO = RatioConfig()


class LogWeights:
    """w(x) = sum_i lambda_i w_i(x) for vectors x (B, D) of ``vectors``, ``terms`` being term i -> lambda_i and w_i its part of
    log p(x) / q(x): w_state = log p(s) / q(s), w_action = log p(a|s) / q(a|s), w_transition = log T(x) / model(x).
    """

    def __init__(
        self, world: GeneratorContext, vectors: TransitionCodec, terms: Mapping[Term, float], config: RatioConfig
    ) -> None:
        self.world, self.vectors, self.config = world, vectors, config
        of_state, of_action = terms.get("state", 0.0), terms.get("action", 0.0)
        parts = {
            "state": (vectors.state, of_state - of_action),  # w_action is the weight of (s, a) less that of s
            "state_action": (vectors.state_action, of_action),
            "transition": (slice(0, vectors.size), terms.get("transition", 0.0)),
        }
        self.parts = {name: part for name, (part, factor) in parts.items() if factor}
        self.factors = {name: factor for name, (_, factor) in parts.items() if factor}
        self.networks = {name: self._network(name, part) for name, part in self.parts.items()}
        self.most = math.inf

    def _network(self, name: str, part: slice) -> EnergyMLP:
        c, size = self.config, part.stop - part.start
        network: EnergyMLP = self.world.fresh(
            f"ratio/{name}", lambda: EnergyMLP(size, width=c.width, layers=c.layers, activation=c.activation)
        )
        return network

    def modules(self) -> dict[str, nn.Module]:
        """The networks; a refresh goes on from them."""
        return {f"ratio_{name}": network for name, network in self.networks.items()}

    def train(self, recent: Batch, replayed: Draw, share: float, generated: Draw | None, generator: torch.Generator) -> Metrics:
        """Learn from the ``recent`` online rows and what is drawn from q, of which ``share`` is online, and, for the term
        ``transition``, from vectors that the model has ``generated``.
        """
        self.most = self.config.headroom - math.log(max(share, 1e-9))
        wanted = self._wanted(recent)
        metrics: Metrics = {}
        for name, part in self.parts.items():
            if name == "transition":
                assert generated is not None
                found = self._discriminate(name, _of(replayed, part), _of(generated, part), generator)
            else:
                found = self._discriminate(name, _of(wanted, part), _of(replayed, part), generator)
            metrics |= {f"{name}_{key}": value for key, value in found.items()}
        return metrics

    def _wanted(self, recent: Batch) -> Draw:
        def draw(n: int, generator: torch.Generator) -> Tensor:
            rows = drawn(recent, n, generator)
            action = rows.action if self.config.actions == "replay" else self.world.act(rows.state, generator)
            return self.vectors.encode_pairs(rows.state, action)

        return draw

    def _discriminate(self, name: str, wanted: Sample, model: Sample, generator: torch.Generator) -> Metrics:
        c = self.config
        objective = Ratio(EDM(), wanted, clean=True)
        fit = Fit(self.networks[name], lr=c.lr, steps=c.steps, decay=c.decay)
        learner = EnergyLearner(fit, EDM(), model, objective, batch=c.batch)
        metrics = train(learner, c.steps, generator)
        return {key: metrics[key] for key in ("loss", "auc") if key in metrics}

    def __call__(self, x: Tensor) -> Tensor:
        """(B, D) -> (B,)"""
        return self._unbounded(x).clamp(max=self.most)

    def _unbounded(self, x: Tensor) -> Tensor:
        parts = [factor * self._part(name, x) for name, factor in self.factors.items()]
        return torch.stack(parts).sum(0)

    def _part(self, name: str, x: Tensor) -> Tensor:
        value: Tensor = -at_zero(self.networks[name])(x[:, self.parts[name]], None)
        return value.clamp(-self.config.floor, self.most)

    @torch.no_grad()
    def spread(self, x: Tensor) -> Metrics:
        """For vectors (B, D) of q: what share of them counts, and what share is as heavy as a weight may be."""
        w = self._unbounded(x)
        found = {"effective_share": effective_share(w.clamp(max=self.most))}
        return found | {"at_most": (w >= self.most - 1e-6).float().mean()}


def effective_share(log_weights: Tensor) -> Tensor:
    """(sum e^w)^2 / (n sum e^2w), (): of n rows weighted so, the share that counts. Kish."""
    w = log_weights.double()
    return (2 * w.logsumexp(0) - (2 * w).logsumexp(0) - math.log(len(w))).exp().float()


def _of(draw: Draw, part: slice) -> Sample:
    """Those coordinates alone."""
    return lambda n, generator: (draw(n, generator)[:, part], None)
