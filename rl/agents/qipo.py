"""QIPO: a diffusion policy trained on energy-weighted actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from egd.bounds import Batch, Beta, Decay, Rate, Rounds, Steps
from egd.config.base import Strict
from egd.denoisers import NetworkDenoiser
from egd.runs.phases import Phase
from egd.selection import energy_weights
from egd.training.learners import DenoiserLearner, Fit, Noised
from egd.types import Context, Denoiser
from egd.wrappers import Clip
from rl.agents.base import Act
from rl.agents.valued import ValuedAgent
from rl.data.transitions import OfflineData
from rl.parts.guided_policy import Randomness
from rl.parts.support_actions import SupportTable
from rl.runs.config import ValuedConfig


class WeightedPolicyConfig(Strict):
    """The network trained on weighted actions; of the size of the denoiser, whose weights it starts from."""

    beta: Beta = 3.0
    energy_scale: Literal["raw", "advantage_std"] = "raw"
    """Q in the critic's units, or divided by the data's spread of Q - V."""
    rounds: Rounds = 1
    """After each but the last the actions are drawn anew, from the policy so far."""
    steps: Steps = 200_000
    """In each round."""
    batch: Batch = 4096
    """Actions, all K of as many states as that makes."""
    lr: Rate = 3e-4
    decay: bool = True
    """Over a round."""
    ema: Decay = 0.995
    clip_x0: bool = True
    """Keep x_0 within the range of the data's actions when acting."""


class QIPOConfig(ValuedConfig):
    """A behaviour policy, a critic, and the policy that is trained on both."""

    agent: str = "qipo"
    policy: WeightedPolicyConfig = WeightedPolicyConfig()


class WeightedLearner(DenoiserLearner):
    """A denoiser of weighted actions that starts as a copy of another one, as that is when training begins."""

    def __init__(self, *arguments: Any, start: nn.Module, modules: dict[str, nn.Module], **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.start, self.modules = start, modules

    def begin(self, drawn: Noised) -> None:
        """Copy."""
        self.fit.module.load_state_dict(self.start.state_dict())

    def loss_networks(self) -> dict[str, nn.Module]:
        """What the weights are made of."""
        return self.modules


@dataclass(frozen=True)
class Round:
    """Actions of the policy before it, and the policy fitted to them as far as they are good."""

    support: SupportTable
    fit: Fit
    learner: WeightedLearner


class QIPO(ValuedAgent):
    """QIPO (arXiv:2503.04975): behaviour diffusion, critic, support actions, then a diffusion policy by the denoising loss on
    these, weighted by softmax(beta Q) among those of a state: it samples mu exp(beta Q) without guidance. In each further round
    the actions are those of the policy so far, which adds a beta: mu exp(n beta Q) after n rounds.
    """

    Config: ClassVar[type[QIPOConfig]] = QIPOConfig
    config: QIPOConfig

    def __init__(self, config: QIPOConfig, data: OfflineData, device: torch.device) -> None:
        super().__init__(config, data, device)
        self.rounds: list[Round] = []
        for _ in range(config.policy.rounds):
            self.rounds.append(self._round())

    def support_actions(self) -> int:
        """K, always."""
        return self.config.support.actions

    def _round(self) -> Round:
        p, k = self.config.policy, self.config.support.actions
        before = self.rounds[-1].fit.model if self.rounds else self.behaviour.fit.model
        first = self.support if not self.rounds else None
        table = first or SupportTable(self.data, k, partial(self._drawn, before), next_states=False)
        fit = Fit(self.fresh("policy", self.noise_model), lr=p.lr, steps=p.steps, decay=p.decay, ema=p.ema)
        learner = WeightedLearner(
            fit,
            self.schedule,
            partial(self._sample, table),
            batch=p.batch,
            prediction=self.config.denoiser.prediction,
            weights=energy_weights(self.energy(p.energy_scale), p.beta, group=k),
            start=before,
            modules=self.loss_networks(),
        )
        return Round(table, fit, learner)

    def _sample(self, table: SupportTable, n: int, generator: torch.Generator) -> tuple[Tensor, Context]:
        """K stored actions in each of n / K states, those of a state side by side."""
        index = self.data.index(max(1, n // table.k), generator)
        return table.of(index).flatten(0, 1), self.data.transitions.state[index].repeat_interleave(table.k, 0)

    @torch.no_grad()
    def _drawn(self, network: nn.Module, states: Tensor, k: int, generator: torch.Generator) -> Tensor:
        tiled = states.repeat_interleave(k, 0)
        denoiser = self._denoiser(network, self.config.support.clip_x0)
        return self.sampler.draw(denoiser, tiled, len(tiled), generator).reshape(len(states), k, -1)

    def _denoiser(self, network: nn.Module, clip: bool) -> Denoiser:
        plain = NetworkDenoiser(network, self.schedule, self.config.denoiser.prediction)
        return Clip(plain, self.data.action_low, self.data.action_high) if clip else plain

    # -- acting --------------------------------------------------------------------------------------------------

    def policies(self) -> dict[str, float | None]:
        """Behaviour and ``policy``."""
        return {"behaviour": None, "policy": None}

    @property
    def headline(self) -> str:
        """The trained one."""
        return "policy"

    def policy(self, name: str, scales: Sequence[float], randomness: Randomness) -> Act:
        """``policy``, or ``behaviour``."""
        clip = self.config.policy.clip_x0
        network = self.rounds[-1].fit.model if name == "policy" else self.behaviour.fit.model
        return self.unguided(self._denoiser(network, clip), randomness, clip=clip)

    def modules(self) -> dict[str, nn.Module]:
        """The policy's too."""
        return {**self.loss_networks(), "policy": self.rounds[-1].fit.model}

    # -- training ------------------------------------------------------------------------------------------------

    def phases(self) -> list[Phase]:
        """After denoiser, support, critic and calibration: ``policy``; then ``support_2``, ``policy_2`` and so on."""
        denoiser, support, critic, calibration = super().phases()
        phases, start = [denoiser, support, critic, calibration], denoiser
        settings = self.config.policy.model_dump(mode="json", exclude={"rounds", "clip_x0"})
        for n, this in enumerate(self.rounds, 1):
            suffix = "" if n == 1 else f"_{n}"
            if n > 1:
                support = self.support_phase(f"support{suffix}", this.support, start)
                phases.append(support)
            before = [calibration, support, start]
            start = self.phase(f"policy{suffix}", self.config.policy.steps, this.learner, settings, after=before)
            phases.append(start)
        return phases
