"""Fitted Q evaluation: Q of a given policy from offline data alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from egd.tensors import isolated_rng
from rl.config import CriticConfig
from rl.critics import CriticLearner
from rl.critics.td import TD, Acted
from rl.data.transitions import OfflineData

ROWS = 50_000  # maximum number of transitions used: acting once in each next state takes most of the time

Draw = Callable[[Tensor], Tensor]
"""Draws actions (B, A) of a policy in states (B, S)."""


def fitted_q(
    data: OfflineData,
    rows: Tensor,
    policy: Draw,
    settings: CriticConfig,
    *,
    steps: int,
    generator: torch.Generator,
    advance: Callable[[int], Any] | None = None,
) -> TD:
    """Fit Q^pi by ``steps`` of temporal differences (Le, Voloshin, Yue 2019, arXiv:1903.08738) on the transitions ``rows``
    (R,).

    At most ROWS of them are used. The critic is one network of the size given by ``settings``: a minimum over several networks
    would be pessimistic.
    """
    if len(rows) > ROWS:
        rows = rows[torch.randperm(len(rows), generator=generator, device=generator.device)[:ROWS].to(rows.device)]
    pool = data.transitions[rows]
    actions = policy(pool.next_state)
    critic = _critic(settings, pool.state.shape[1], pool.action.shape[1], steps, generator)

    def sample(n: int, generator: torch.Generator) -> Acted:
        index = torch.randint(len(pool), (n,), generator=generator, device=generator.device)
        return pool[index], actions[index]

    learner = CriticLearner(critic, partial(sample, settings.batch))
    for _ in range(steps):
        learner.update(generator)
        if advance is not None:
            advance(1)
    return critic


def _critic(settings: CriticConfig, state: int, action: int, steps: int, generator: torch.Generator) -> TD:
    network = settings.model_dump(include={"gamma", "lr", "width", "layers", "activation", "layer_norm"})
    polyak = max(settings.polyak, min(1.0, 20 / max(1, steps)))  # a short training needs a target that keeps up
    with isolated_rng(generator.initial_seed()):
        return TD(state, action, **network, polyak=polyak, ensemble=1, steps=steps, decay=True, device=generator.device)
