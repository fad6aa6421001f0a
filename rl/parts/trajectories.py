"""Plans: a diffusion model of windows of the data given their first state, and the value of a plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from egd.config.sections import NetworkConfig
from egd.networks.ensemble import EnsembleMLP
from egd.training.learners import Fit, Metrics, StepLearner
from egd.types import Denoiser, Sampler
from egd.wrappers import Inpaint
from rl.config import DiffusionConfig
from rl.critics.base import Critic
from rl.data.trajectories import Windows
from rl.data.transitions import Batch
from rl.parts.base import Part, RunContext
from rl.parts.behaviour import Behaviour


@dataclass(frozen=True)
class Inpainted:
    """Sampler that keeps the context where ``mask`` is true in its samples, whatever the denoiser."""

    sampler: Sampler
    mask: Tensor

    def __call__(self, denoiser: Denoiser, *noise_and_times: Any, **settings: Any) -> Tensor:
        """Run the wrapped sampler with the in-painting denoiser: (B, H, S + A)."""
        return self.sampler(Inpaint(denoiser, self.mask), *noise_and_times, **settings)


class PlanModel(Behaviour):
    """Diffusion model of the windows (H, S + A) of the data given their first state, which is in-painted."""

    members = ("state", "action", "next_state", "terminal")
    sections: ClassVar[set[str]] = {"schedule", "denoiser", "plan"}

    def __init__(
        self, context: RunContext, config: DiffusionConfig, windows: Windows, network: Callable[[], nn.Module]
    ) -> None:
        super().__init__(context, config, network)
        self.windows = windows
        self.low, self.high = windows.bounds
        self.sampler = replace(self.sampler, event=windows.event, sampler=Inpainted(self.sampler.sampler, windows.given))

    @override
    def denoiser(self, clip: bool, straight_through: bool = False, *, in_training: bool = False) -> Denoiser:
        return Inpaint(super().denoiser(clip, straight_through, in_training=in_training), self.windows.given)

    @override
    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.windows.sample(n, generator)


class Reward(Part, StepLearner):
    """Reward model r(s, a), regressed on the rewards of the data."""

    name = "reward"
    members = ("state", "action", "reward")

    def __init__(self, context: RunContext, config: NetworkConfig) -> None:
        self.data, self.batch = context.data, config.batch
        self.steps, self.settings = config.steps, config.model_dump(mode="json")
        shape = config.model_dump(include={"width", "layers", "activation"})
        network = context.fresh("reward", lambda: EnsembleMLP(1, context.states + context.actions, **shape))
        self.fit = Fit(network, lr=config.lr, steps=config.steps, decay=config.decay)

    @override
    def networks(self) -> dict[str, nn.Module]:
        return {"reward": self.fit.module}

    @override
    def draw(self, generator: torch.Generator) -> Batch:
        return self.data.sample(self.batch, generator)

    @override
    def loss(self, drawn: Batch) -> tuple[Tensor, Metrics]:
        loss = (self.fit.module(drawn.state, drawn.action)[0] - drawn.reward).square().mean()
        return loss, {"loss": loss.detach()}


class PlanValue:
    """Value of plans s_0, a_0, s_1, ..., s_(H-1), a_(H-1): sum_(t < H-1) gamma^t r(s_t, a_t) + gamma^(H-1) V(s_(H-1))."""

    def __init__(self, critic: Critic, reward: nn.Module, states: int) -> None:
        self.critic, self.reward, self.states = critic, reward, states
        self.fit = critic.fit

    def q(self, state: Tensor, plan: Tensor) -> Tensor:
        """Value plans, (B, S), (B, H, S + A) -> (B,); the state is ignored, because it is the plan's first."""
        states, actions = plan[..., : self.states], plan[..., self.states :]
        steps = plan.shape[1] - 1
        rewards: Tensor = self.reward(states[:, :-1].flatten(0, 1), actions[:, :-1].flatten(0, 1))[0].reshape(-1, steps)
        discount = self.critic.gamma ** torch.arange(steps + 1, device=plan.device, dtype=plan.dtype)
        return (discount[:-1] * rewards).sum(1) + discount[-1] * self.critic.v(states[:, -1])

    def v(self, state: Tensor) -> Tensor:
        """Value states: (B, S) -> (B,)."""
        return self.critic.v(state)
