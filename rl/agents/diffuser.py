"""Diffuser: plans by a diffusion model of trajectories, guided by their return."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from egd.bounds import Grid, Steps
from egd.config.base import ComponentConfig, Strict
from egd.config.sections import NetworkConfig
from egd.errors import UserError
from egd.networks.ensemble import EnsembleMLP
from egd.networks.temporal import TemporalEnergy, TemporalUNet
from egd.posteriors.moments import KINDS
from egd.runs.phases import Phase
from egd.training.learners import Fit
from rl.agents.base import Act
from rl.agents.guided import GuidedAgent
from rl.critics.base import ValueFunction
from rl.critics.choice import check_critic
from rl.data.trajectories import Windows
from rl.parts.behaviour import Behaviour
from rl.parts.guided_policy import Randomness
from rl.parts.trajectories import PlanModel, PlanValue, Reward
from rl.runs.config import CalibrationConfig, DenoiserConfig, EnergyNetworkConfig, GuidanceConfig, GuidedConfig


class PlanConfig(Strict):
    """What is planned."""

    horizon: Grid = 32
    """Steps of a plan, H."""


class RewardConfig(NetworkConfig):
    """The network r(s, a), by which a plan's steps are judged."""

    steps: Steps = 100_000


class DiffuserConfig(GuidedConfig):
    """Of a guided agent whose samples are plans: ``blocks`` and ``layers`` are levels of temporal networks, ``width`` the
    channels of their first.
    """

    agent: str = "diffuser"
    plan: PlanConfig = PlanConfig()
    reward: RewardConfig = RewardConfig()
    denoiser: DenoiserConfig = DenoiserConfig(prediction="sample", width=32, blocks=3, batch=64)
    energy_network: EnergyNetworkConfig = EnergyNetworkConfig(width=32, layers=3, activation="mish", batch=64)
    calibration: CalibrationConfig = CalibrationConfig(grid=20, samples=1024)
    guidance: GuidanceConfig = GuidanceConfig(energy=ComponentConfig(name="mse"), energy_scale="advantage_std")


class Diffuser(GuidedAgent):
    """Diffuser (arXiv:2205.09991): a diffusion model of H steps of states and actions, the first state in-painted, guided by
    the return of the plan; the first action is taken, and the next state planned from anew.

    The energy is E(plan) = V(s_0) - return(plan) (``rl.parts.trajectories.PlanValue``): what an action is to AEPO a plan is
    here, and every energy and every rule that guides actions guides plans. ``mse`` is
    Diffuser's own, the return regressed on noised plans.
    """

    Config: ClassVar[type[GuidedConfig]] = DiffuserConfig
    config: DiffuserConfig

    @classmethod
    def check(cls, config: Any) -> None:
        """As all that guide; UserError also for joint training."""
        super().check(config)
        check_critic(config.critic, support=False)
        if config.training == "joint":
            raise UserError("'joint' trains no reward, which plans need; use phased", key="training")

    # -- parts ---------------------------------------------------------------------------------------------------

    def make_behaviour(self) -> PlanModel:
        """Of the data's windows, with a fresh network."""
        self.windows = Windows(self.data, self.config.plan.horizon)
        return PlanModel(self.config, self.windows, self.fresh("denoiser", self.noise_model), self.device)

    def noise_model(self) -> nn.Module:
        """A fresh temporal U-Net of the recipe's ``denoiser``, which knows the first state."""
        d = self.config.denoiser
        return TemporalUNet(self.windows.event[1], width=d.width, levels=d.blocks, given=self.windows.given)

    def energy_model(self) -> TemporalEnergy:
        """A fresh one, which knows the first state."""
        e = self.config.energy_network
        event, given = self.windows.event, self.windows.given
        return TemporalEnergy(*event, width=e.width, levels=e.layers, activation=e.activation, given=given)

    def make_value_function(self) -> ValueFunction:
        """The return of a plan by the critic and a fresh reward."""
        r = self.config.reward
        make = partial(EnsembleMLP, 1, self.states + self.actions, width=r.width, layers=r.layers, activation=r.activation)
        fit = Fit(self.fresh("reward", make), lr=r.lr, steps=r.steps, decay=r.decay)
        self.reward = Reward(fit, self.data, r.batch)
        return PlanValue(self.critic, fit.module, self.states)

    def support_actions(self) -> int:
        """None: a table of plans would hold H times as much as one of actions."""
        return 0

    def grouped(self, k: int, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n windows of the data, or the most that k divides: groups of unlike first states."""
        return self.behaviour.sample(max(1, n // k) * k, generator)

    # -- acting --------------------------------------------------------------------------------------------------

    @property
    def entries(self) -> int:
        """Those of a plan."""
        steps, dim = self.windows.event
        return steps * dim

    def policy(self, name: str, scales: Sequence[float], randomness: Randomness) -> Act:
        """The first action of a plan, made anew in every state."""
        plan = self.planner(name, scales, randomness)
        return lambda states, which: plan(states, which)[:, 0, self.states :]

    def planner(self, name: str, scales: Sequence[float], randomness: Randomness) -> Act:
        """As ``policy``, with whole plans (n, H, S + A) for actions."""
        return super().policy(name, scales, randomness)

    def loss_networks(self) -> dict[str, nn.Module]:
        """The same and the reward."""
        return {**super().loss_networks(), "reward": self.reward.fit.module}

    # -- training ------------------------------------------------------------------------------------------------

    def phases(self) -> list[Phase]:
        """The reward after the denoiser."""
        denoiser, *rest = super().phases()
        return [denoiser, self._reward_phase(), *rest]

    def denoiser_phase(self, behaviour: Behaviour) -> Phase:
        """Fit the model of windows."""
        settings = self.config.model_dump(mode="json", include={"schedule", "denoiser", "plan"})
        data = ("state", "action", "next_state", "terminal")
        return self.phase("denoiser", self.config.denoiser.steps, behaviour.learner(), settings, data=data)

    def judge_phases(self, critic: Phase) -> list[Phase]:
        """Critic and reward."""
        return [critic, self._reward_phase()]

    def _reward_phase(self) -> Phase:
        reward = self.config.reward
        settings = reward.model_dump(mode="json")
        return self.phase("reward", reward.steps, self.reward, settings, data=("state", "action", "reward"))

    # -- for people ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def diagnostics(self, generator: torch.Generator) -> dict[str, Any]:
        """What plans from states of the data are said to be worth, less V of the state."""
        shares = {
            ("clipped_" if clip else "") + kind: moments.clamp_share(kind)
            for clip, moments in self.calibration.moments.items()
            for kind in KINDS
        }
        data, states = self.behaviour.sample(256, generator)
        which = torch.zeros(len(states), dtype=torch.long, device=self.device)
        plans = {"data": data}
        for name, scales in self.scales().items():
            plans[name] = self.planner(name, scales[:1], generator)(states, which)
        energy = self.energy()
        return {
            "posterior_clamped_share": shares,
            "plans": {name: {"advantage": float(-energy(plan, states).mean())} for name, plan in plans.items()},
        }
