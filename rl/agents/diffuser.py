"""Diffuser: plans by a diffusion model of trajectories, guided by their return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, ClassVar

import torch
from typing_extensions import override

from egd.bounds import Grid, Steps
from egd.config.base import ComponentConfig, Strict
from egd.config.sections import DenoiserConfig, EnergyNetworkConfig, NetworkConfig
from egd.errors import UserError
from egd.networks.temporal import TemporalEnergy, TemporalUNet
from rl.agents.base import Agent
from rl.config import AdvantageCalibrationConfig, GuidanceConfig, GuidedConfig
from rl.critics.choice import check_critic
from rl.data.trajectories import Windows
from rl.data.transitions import OfflineData
from rl.evaluation import diagnostics
from rl.parts.action_sampling import Randomness
from rl.parts.base import Part
from rl.parts.behaviour import check_sampling
from rl.parts.calibration import AdvantageCalibration
from rl.parts.critic import OfflineCritic
from rl.parts.guidance import Guidance
from rl.parts.guidance_settings import check_guidance, trained_guidances, try_components
from rl.parts.policies import Act, AgentPolicy
from rl.parts.trajectories import PlanModel, PlanValue, Reward


class PlanConfig(Strict):
    """Settings of plans."""

    horizon: Grid = 32
    """Number of steps of a plan, H."""


class RewardConfig(NetworkConfig):
    """Settings of the reward model r(s, a), by which a plan's steps are valued."""

    steps: Steps = 100_000


class FirstAction(AgentPolicy):
    """Policy that takes the first action of a plan and plans anew in every state."""

    def __init__(self, plans: AgentPolicy, states: int) -> None:
        self.plans, self.states, self.part, self.scale = plans, states, plans.part, plans.scale

    @override
    def scales(self, only: Sequence[float] | None = None) -> list[float] | None:
        return self.plans.scales(only)

    @override
    def act(self, scales: Sequence[float], randomness: Randomness) -> Act:
        plan = self.plans.act(scales, randomness)
        return lambda states, scale_index: plan(states, scale_index)[:, 0, self.states :]


class DiffuserConfig(GuidedConfig):
    """Settings of guided plans: ``blocks`` and ``layers`` are levels of temporal networks, ``width`` the channels of their
    first.
    """

    agent: str = "diffuser"
    plan: PlanConfig = PlanConfig()
    reward: RewardConfig = RewardConfig()
    denoiser: DenoiserConfig = DenoiserConfig(prediction="sample", width=32, blocks=3, batch=64)
    energy_network: EnergyNetworkConfig = EnergyNetworkConfig(width=32, layers=3, activation="mish", batch=64)
    calibration: AdvantageCalibrationConfig = AdvantageCalibrationConfig(grid=20, samples=1024)
    guidance: GuidanceConfig = GuidanceConfig(energy=ComponentConfig(name="mse"), energy_scale="advantage_std")


class Diffuser(Agent):
    """Diffuser (arXiv:2205.09991): a diffusion model of H steps of states and actions, with the first state in-painted, guided
    by the plan's return.

    The first action is taken, and the next state is planned from anew.

    The energy is E(plan) = V(s_0) - return(plan) (``rl.parts.trajectories.PlanValue``). Plans take the place of AEPO's actions,
    and every energy and every rule that guides actions also guides plans. Diffuser's own energy is ``mse``, the return
    regressed on noised plans.
    """

    Config: ClassVar[type[DiffuserConfig]] = DiffuserConfig
    config: DiffuserConfig
    calibration: AdvantageCalibration
    guidance: Guidance

    def __init__(self, config: DiffuserConfig, data: OfflineData, device: torch.device) -> None:
        super().__init__(config, data, device)
        self.windows = Windows(data, config.plan.horizon)
        try_components(config, (self.context.actions,), self.context.states)
        self.behaviour = PlanModel(self.context, config, self.windows, self.noise_model)
        self.critic_part = OfflineCritic(self.context, config.critic)
        self.critic = self.critic_part.critic
        self.reward = Reward(self.context, config.reward)
        value = PlanValue(self.critic, self.reward.fit.module, self.context.states)
        before = [self.behaviour, self.critic_part, self.reward]
        self.calibration = AdvantageCalibration(self.behaviour, value, config.calibration, device, after=before)
        self.guidance = Guidance(self.context, config, self.calibration, self.critic_part, network=self.energy_model)

    @classmethod
    @override
    def check(cls, config: Any) -> None:
        check_sampling(config)
        check_critic(config.critic, support=False)
        check_guidance(config.guidances)
        if config.training == "joint":
            raise UserError("'joint' trains no reward, which plans need; use phased", key="training")

    @classmethod
    @override
    def batch_key(cls, config: Any) -> Mapping[str, Any]:
        return {**super().batch_key(config), "guidances": trained_guidances(config)}

    def noise_model(self) -> TemporalUNet:
        """Return the temporal U-Net of the recipe's ``denoiser``, conditioned on the first state."""
        d, windows = self.config.denoiser, self.windows
        return TemporalUNet(windows.event[1], width=d.width, levels=d.blocks, given=windows.given)

    def energy_model(self) -> TemporalEnergy:
        """Return the network of the recipe's ``energy_network``, conditioned on the first state."""
        e, windows = self.config.energy_network, self.windows
        return TemporalEnergy(*windows.event, width=e.width, levels=e.layers, activation=e.activation, given=windows.given)

    @override
    def parts(self) -> Sequence[Part]:
        return [
            self.behaviour,  # the denoising loss of windows
            self.reward,  # (r(s, a) - r)^2
            self.critic_part,
            self.calibration,
            *self.guidance.energies.values(),  # (J_phi(plan_t, t) - return)^2
        ]

    @override
    def named_policies(self) -> Mapping[str, AgentPolicy]:
        return {name: FirstAction(policy, self.context.states) for name, policy in self.guidance.policies().items()}

    def planner(self, name: str, scales: Sequence[float], randomness: Randomness) -> Act:
        """Return the function that plans as a policy does, with whole plans (n, H, S + A) in place of actions."""
        return self.guidance.policies()[name].act(scales, randomness)

    @property
    @override
    def entries(self) -> int:
        return prod(self.windows.event)

    @override
    @torch.no_grad()
    def diagnostics(self, generator: torch.Generator) -> dict[str, Any]:
        # the advantage, return minus V(s_0), of plans from states of the data, beside that of the data's own windows
        data, states = self.behaviour.sample(256, generator)
        scale_index = torch.zeros(len(states), dtype=torch.long, device=self.device)
        plans = {"data": data}
        for name, scales in self.scales().items():
            plans[name] = self.planner(name, scales[:1], generator)(states, scale_index)
        energy = self.calibration.energy()
        return {
            "posterior_clamped_share": diagnostics.clamped_shares(self.calibration),
            "plans": {name: {"advantage": float(-energy(plan, states).mean())} for name, plan in plans.items()},
        }
