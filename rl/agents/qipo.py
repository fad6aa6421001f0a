"""QIPO: a diffusion policy trained on energy-weighted actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from typing_extensions import override

from egd.bounds import Batch, Beta, Decay, Rate, Rounds, Steps
from egd.config.base import Strict
from egd.selection import energy_weights
from egd.training.learners import DenoiserLearner, Noised
from rl.agents.base import Agent
from rl.config import ValuedConfig
from rl.critics.choice import check_critic
from rl.data.transitions import OfflineData
from rl.parts.base import Part, RunContext
from rl.parts.behaviour import Behaviour, check_sampling
from rl.parts.calibration import AdvantageCalibration
from rl.parts.critic import OfflineCritic
from rl.parts.policies import AgentPolicy
from rl.parts.support_actions import SupportTable, drawn_from


class WeightedPolicyConfig(Strict):
    """Settings of the network trained on weighted actions, which starts from the denoiser's weights and has its size."""

    beta: Beta = 3.0
    energy_scale: Literal["raw", "advantage_std"] = "raw"
    """Unit of Q: the critic's, or the data's spread of Q - V."""
    rounds: Rounds = 1
    """Number of rounds; after each but the last the actions are drawn anew, from the policy so far."""
    steps: Steps = 200_000
    """Number of steps in each round."""
    batch: Batch = 4096
    """Number of actions: all K actions of ``batch`` / K states."""
    lr: Rate = 3e-4
    decay: bool = True
    """Decay the learning rate over a round."""
    ema: Decay = 0.995
    clip_x0: bool = True
    """Keep x_0 within the range of the data's actions when acting."""


class QIPOConfig(ValuedConfig):
    """Settings of a behaviour policy, a critic, and the policy that is trained on both."""

    agent: str = "qipo"
    policy: WeightedPolicyConfig = WeightedPolicyConfig()


class WeightedLearner(DenoiserLearner):
    """Learner of a denoiser on weighted actions, which starts as a copy of another denoiser when its training begins."""

    def __init__(self, *arguments: Any, start: nn.Module, networks: dict[str, nn.Module], **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.start, self.networks = start, networks

    @override
    def begin(self, drawn: Noised) -> None:
        self.fit.module.load_state_dict(self.start.state_dict())

    @override
    def loss_networks(self) -> dict[str, nn.Module]:
        return self.networks


class WeightedPolicy(Behaviour):
    """Diffusion policy trained on the actions of a ``support`` drawn from the model ``before`` it, each weighted by
    softmax(beta Q) among those of its state.
    """

    seeded = "policy"

    def __init__(
        self,
        context: RunContext,
        config: QIPOConfig,
        name: str,
        before: Behaviour,
        support: SupportTable,
        calibration: AdvantageCalibration,
    ) -> None:
        p = config.policy
        fitted = p.model_dump(include={"steps", "batch", "lr", "decay", "ema"})
        super().__init__(context, config.model_copy(update={"denoiser": config.denoiser.model_copy(update=fitted)}))
        self.name, self.settings = name, p.model_dump(mode="json", exclude={"rounds", "clip_x0"})
        self.members, self.after = Part.members, [calibration, support, before]
        self.before, self.support, self.calibration, self.weighted = before, support, calibration, p

    @cached_property
    @override
    def learner(self) -> WeightedLearner:
        # E w |eps(a_t, s, t) - eps|^2, w = softmax_k(-beta E(a_k, s)) over the K actions of a state
        p, support = self.weighted, self.support
        return WeightedLearner(
            self.fit,
            self.schedule,
            partial(support.grouped, support.k),
            batch=p.batch,
            prediction=self.config.denoiser.prediction,
            weights=energy_weights(self.calibration.energy(p.energy_scale), p.beta, group=support.k),
            start=self.before.fit.model,
            networks=self.loss_networks(),
        )

    @override
    def networks(self) -> dict[str, nn.Module]:
        return {self.name: self.fit.model}


class QIPO(Agent):
    """QIPO (arXiv:2503.04975): a diffusion policy trained by the denoising loss on support actions, weighted by softmax(beta
    Q).

    The support actions are drawn from behaviour diffusion, the weights are normalised over those of a state, and the policy
    samples mu exp(beta Q) without guidance. In each further round the actions are drawn from the policy so far, which adds beta
    once more: mu exp(n beta Q) after n rounds.
    """

    Config: ClassVar[type[QIPOConfig]] = QIPOConfig
    config: QIPOConfig
    calibration: AdvantageCalibration

    def __init__(self, config: QIPOConfig, data: OfflineData, device: torch.device) -> None:
        super().__init__(config, data, device)
        k = config.support.actions
        self.behaviour = Behaviour(self.context, config)
        self.support = drawn_from(self.behaviour, config, k)
        self.critic_part = OfflineCritic(self.context, config.critic, self.support)
        self.critic = self.critic_part.critic
        before = [self.behaviour, self.critic_part]
        self.calibration = AdvantageCalibration(self.behaviour, self.critic, config.calibration, device, after=before)
        self.rounds = [WeightedPolicy(self.context, config, "policy", self.behaviour, self.support, self.calibration)]
        for n in range(2, config.policy.rounds + 1):
            last = self.rounds[-1]
            table = drawn_from(last, config, k, name=f"support_{n}", next_states=False)
            self.rounds.append(WeightedPolicy(self.context, config, f"policy_{n}", last, table, self.calibration))

    @classmethod
    @override
    def check(cls, config: Any) -> None:
        check_sampling(config)
        check_critic(config.critic)

    @override
    def parts(self) -> Sequence[Part]:
        further = [part for policy in self.rounds[1:] for part in (policy.support, policy)]
        return [self.behaviour, self.support, self.critic_part, self.calibration, self.rounds[0], *further]

    @override
    def named_policies(self) -> Mapping[str, AgentPolicy]:
        clip = self.config.policy.clip_x0
        return {"behaviour": self.behaviour.policy(clip), "policy": self.rounds[-1].policy(clip)}
