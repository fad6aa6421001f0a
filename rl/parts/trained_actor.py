"""Policy that is one network, as a part; the method defines its training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from typing_extensions import override

from egd.training.learners import Fit, Learner
from rl.config import ActorConfig
from rl.data.transitions import Batch
from rl.parts.actors import DeterministicActor, make_actor
from rl.parts.base import Part, RunContext


class TrainedActor(Part):
    """Actor of a recipe's section, and the learner that ``make_learner`` makes from it and its optimiser."""

    name = "policy"

    def __init__(
        self,
        context: RunContext,
        config: ActorConfig,
        make_learner: Callable[[DeterministicActor, Fit], Learner],
        *,
        settings: Mapping[str, Any] | None = None,
        members: Sequence[str] = tuple(Batch.__dataclass_fields__),
        after: Sequence[Part] = (),
    ) -> None:
        self.actor = context.fresh("actor", lambda: make_actor(config, context.states, context.actions))
        self.fit = Fit(self.actor, lr=config.lr, steps=config.steps, decay=config.decay)
        self.steps, self.members, self.after = config.steps, members, after
        self.settings = {"actor": config.model_dump(mode="json"), **(settings or {})}
        self._learner = make_learner(self.actor, self.fit)

    @property
    @override
    def learner(self) -> Learner:
        return self._learner

    @override
    def networks(self) -> dict[str, nn.Module]:
        return {"actor": self.actor}
