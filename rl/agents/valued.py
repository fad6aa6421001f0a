"""A behaviour diffusion and a critic: what all methods have in common that reweigh the one by the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from egd.networks.mlp import NoiseMLP
from egd.runs.phases import Phase
from egd.types import Denoiser, Energy
from rl.agents.base import Act, Agent
from rl.critics import MinusAdvantage
from rl.critics.base import ValueFunction
from rl.critics.choice import check_critic, make_critic
from rl.data.transitions import OfflineData
from rl.evaluation import diagnostics
from rl.parts.behaviour import Behaviour, check_sampling
from rl.parts.calibration import AdvantageCalibration
from rl.parts.guided_policy import GuidedPolicy, Randomness
from rl.parts.support_actions import SupportTable
from rl.runs.config import ValuedConfig
from rl.tasks import Task


class ValuedAgent(Agent):
    """A diffusion model of mu(a|s), Q and V, and what is estimated of both; its one policy is mu.

    The energy handed to ``egd`` is E(a, s) = V(s) - Q(s, a), which differs from -Q by a function of s alone and so tilts mu in
    the same way, but spares a network the job of learning V.
    """

    Config: ClassVar[type[ValuedConfig]] = ValuedConfig
    config: ValuedConfig

    def __init__(self, config: ValuedConfig, data: OfflineData, device: torch.device) -> None:
        super().__init__(config, data, device)
        self.behaviour = self.make_behaviour()
        self.schedule, self.sampler, self.denoiser = self.behaviour.schedule, self.behaviour.sampler, self.behaviour.denoiser
        self.critic = self.fresh("critic", lambda: make_critic(config.critic, self.states, self.actions, device))
        self.value_function = self.make_value_function()
        self.calibration = AdvantageCalibration(self.behaviour, self.value_function, config.calibration, device)
        k, draw = self.support_actions(), partial(drawn, self.behaviour, config.support.clip_x0)
        self.support = SupportTable(data, k, draw) if k else None

    @classmethod
    def check(cls, config: Any) -> None:
        """UserError for a schedule, a sampler or a critic that does not exist or a setting it does not have."""
        check_sampling(config)
        check_critic(config.critic)

    @classmethod
    def batch_key(cls, config: Any) -> Mapping[str, Any]:
        """All but the seed, the expectile, and what comes after training."""
        after: Any = {"seed": True, "critic": {"expectile"}, "evaluation": {"episodes", "envs"}}
        tree: dict[str, Any] = config.model_dump(mode="json", exclude=after)
        return tree

    # -- parts ---------------------------------------------------------------------------------------------------

    def make_behaviour(self) -> Behaviour:
        """With a fresh noise model."""
        return Behaviour(self.config, self.data, self.fresh("denoiser", self.noise_model), self.device)

    def noise_model(self) -> nn.Module:
        """A fresh one, of the recipe's ``denoiser``."""
        d = self.config.denoiser
        return NoiseMLP(self.actions, self.states, width=d.width, blocks=d.blocks)

    def make_value_function(self) -> ValueFunction:
        """By which what is sampled is judged: the critic."""
        return self.critic

    def energy(self, scale: str = "raw") -> Energy:
        """E(a, s) = (V(s) - Q(s, a)) / scale: minus the advantage."""
        unit = self.calibration.advantage_std if scale == "advantage_std" else torch.ones((), device=self.device)
        return MinusAdvantage(self.value_function, unit)

    def support_actions(self) -> int:
        """How many stored actions of mu in every state something learns from; 0: none."""
        return self.config.support.actions if self.critic.needs_support else 0

    # -- acting --------------------------------------------------------------------------------------------------

    def policies(self) -> dict[str, float | None]:
        """The behaviour policy."""
        return {"behaviour": None}

    def scales(self, only: Sequence[float] | None = None) -> dict[str, list[float]]:
        """It has none."""
        return {name: [] for name in self.policies()}

    @property
    def headline(self) -> str:
        """The behaviour policy."""
        return "behaviour"

    def policy(self, name: str, scales: Sequence[float], randomness: Randomness) -> Act:
        """``behaviour``."""
        return self.unguided(self.denoiser(True), randomness, clip=True)

    def unguided(self, denoiser: Denoiser, randomness: Randomness, *, clip: bool) -> Act:
        """One sample of a denoiser a state, within the range of the data's actions if ``clip``."""
        sampled = GuidedPolicy(self.sampler, denoiser, randomness, bounds=self.bounds(clip))
        return lambda states, which: sampled(states)

    def bounds(self, clip: bool) -> tuple[Tensor, Tensor] | None:
        """The range of the data's actions if ``clip``."""
        return (self.behaviour.low, self.behaviour.high) if clip else None

    def loss_networks(self) -> dict[str, nn.Module]:
        """What an energy reads, by the tensors that are not the same in all runs of a recipe."""
        return {
            "noise": self.behaviour.fit.model,
            "critic": self.critic.values,
            "target": self.critic.target.module,
            "calibration": self.calibration,
        }

    def modules(self) -> dict[str, nn.Module]:
        """The same."""
        return self.loss_networks()

    # -- training ------------------------------------------------------------------------------------------------

    def phases(self) -> list[Phase]:
        """Each part on its converged predecessor."""
        denoiser = self.denoiser_phase(self.behaviour)
        support = [self.support_phase("support", self.support, denoiser)] if self.support is not None else []
        before = support if self.critic.needs_support else []
        learner = self.critic.learner(self.data, self.config.critic.batch, self.support)
        critic = self.critic_phase(learner, self.config.critic, before)
        settings = self.config.calibration.model_dump(mode="json")
        judged = [denoiser, *self.judge_phases(critic)]
        return [denoiser, *support, critic, self.phase("calibration", 1, self.calibration, settings, after=judged)]

    def judge_phases(self, critic: Phase) -> list[Phase]:
        """The phases that the judge is made by, ``critic`` being the critic's."""
        return [critic]

    def support_phase(self, name: str, table: SupportTable, denoiser: Phase) -> Phase:
        """Offer the phase that fills a table with actions drawn from this denoiser."""
        dump = self.config.model_dump(mode="json", include={"support", "sampler"})
        settings = dump | {"k": table.k}  # an arm may need more than the recipe says
        every, data = table.checkpoint_every(self.config.checkpoint_every), ("state", "next_state", "action")
        return self.phase(name, table.steps, table, settings, data=data, after=[denoiser], checkpoint_every=every)

    def ready(self, phase: str, generator: torch.Generator) -> None:
        """Calibrated for the occasion while the parts are trained that calibration looks at."""
        if phase == "critic" or not self.calibration.moments:
            self.calibration.update(generator)

    # -- for people ----------------------------------------------------------------------------------------------

    def diagnostics(self, generator: torch.Generator) -> dict[str, Any]:
        """See docs/diagnostics.md."""
        return diagnostics.of_values(self, generator)

    def save_figures(self, folder: Path, title: str, task: Task, rollouts: Any) -> None:
        """Posterior variances, paths through a maze."""
        from rl.evaluation import figures  # matplotlib is not needed to act

        figures.draw_valued(self, folder, title, task, rollouts)


def drawn(behaviour: Behaviour, clip: bool, states: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """K actions of the behaviour policy in every state."""
    return behaviour.actions(states, k, generator, clip)
