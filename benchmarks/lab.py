"""The objects that the benchmark's pieces use: random data, agents of a recipe, and plain code of the same sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import plain, qgpo
from egd.bench.speed import Setup
from egd.config.base import Tree, merge, override, validate
from egd.errors import UserError, nearest
from egd.networks.mlp import EnergyMLP, NoiseMLP
from egd.training.learners import Fit, StepLearner
from egd.training.precision import set_up
from rl.agents.aepo import AEPO
from rl.config import GuidedConfig
from rl.data.transitions import Batch, OfflineData

BETA, NU, SUPPORT, CONTRASTED = 3.0, 0.001, 32, 16
SHAPES: dict[str, Tree] = {"recipe": {}, "qgpo": qgpo.SETTINGS}
BASE: Tree = {
    "experiment": "offline_rl",
    "task": "maze2d-umaze",
    "denoiser": {"decay": False},
    "energy_network": {"decay": False},
    "calibration": {"samples": 256, "grid": 10},
    "guidance": {"energy": {"name": "support_samples", "samples": SUPPORT}, "beta": BETA},
    "variants": {
        "aepo": {"energy": {"name": "analytic", "nu": NU}, "beta": BETA, "posterior": "posterior1", "clip_x0": False},
        "cep": {"energy": {"name": "cep", "samples": CONTRASTED}, "beta": BETA, "clip_x0": False},
    },
}
SMOKE: Tree = {
    "denoiser": {"width": 16, "blocks": 2},
    "critic": {"width": 16, "layers": 2},
    "energy_network": {"width": 16, "layers": 2},
    "calibration": {"samples": 32, "grid": 3},
    "sampler": {"steps": 2},
}


@dataclass(frozen=True)
class Lab:
    """A factory of equal objects for the library's code and for plain code. Networks are untrained, since no time depends on
    their weights.
    """

    setup: Setup

    def __post_init__(self) -> None:
        if self.setup.shapes not in SHAPES:
            raise UserError(f"no shapes are called '{self.setup.shapes}'; {nearest(self.setup.shapes, SHAPES)}", key="--shapes")
        if self.setup.width is not None and self.setup.shapes != "recipe":
            raise UserError(f"the widths of '{self.setup.shapes}' are those published; use --shapes recipe", key="--width")

    @property
    def device(self) -> torch.device:
        """The device of all tensors."""
        return self.setup.device

    def config(self, over: Mapping[str, Any]) -> GuidedConfig:
        """Return the recipe: the base recipe with the chosen shapes, ``--width``, ``over`` and ``--set``."""
        tree = merge(BASE, SHAPES[self.setup.shapes])
        tree = merge(tree, SMOKE) if self.setup.smoke else tree
        if self.setup.width is not None:
            tree = merge(tree, {"denoiser": {"width": self.setup.width}})
        tree = override(merge(merge(tree, {"device": self.device.type}), over), self.setup.settings)
        config = validate(GuidedConfig, tree, "--set")
        set_up(self.device, torch.get_num_threads(), config.precision)
        return config

    def agent(self, over: Mapping[str, Any] | None = None, data: OfflineData | None = None) -> AEPO:
        """Create a calibrated agent; ``over`` overrides the recipe."""
        agent = AEPO(self.config(over or {}), self.data if data is None else data, self.device)
        if self.setup.shapes == "qgpo":
            state, action = (getattr(agent.data.transitions, key).shape[1] for key in ("state", "action"))
            d = agent.config.denoiser
            network = qgpo.ScoreUNet(action, state, width=32 if self.setup.smoke else 512).to(self.device)
            agent.behaviour.fit = Fit(network, lr=d.lr, steps=d.steps, decay=d.decay, ema=d.ema)
        agent.calibration.update(self.generator())
        return agent

    def learner(self, agent: AEPO, phase: str) -> StepLearner:
        """Return the learner of a phase."""
        learner = {p.name: p.learner for p in agent.phases()}[phase]
        assert isinstance(learner, StepLearner)
        return learner

    def generator(self, seed: int = 0) -> torch.Generator:
        """Return a seeded generator on the device."""
        return torch.Generator(self.device).manual_seed(seed)

    @cached_property
    def data(self) -> OfflineData:
        """Random transitions of the chosen sizes."""
        return self.random_data(self.setup.state, self.setup.action)

    def random_data(self, state: int, action: int) -> OfflineData:
        """Draw as many random transitions as a small data set of D4RL has."""
        rng, n = np.random.default_rng(0), 2000 if self.setup.smoke else 100_000

        def normal(*shape: int) -> Tensor:
            return torch.from_numpy(rng.normal(size=shape).astype(np.float32)).to(self.device)

        batch = Batch(normal(n, state), normal(n, action).tanh(), normal(n), normal(n, state), (normal(n) > 2.5).float())
        zero, one = torch.zeros(state, device=self.device), torch.ones(state, device=self.device)
        return OfflineData(batch, zero, one, batch.action.amin(0), batch.action.amax(0), 0.0, 100)

    # -- plain code, of an agent's sizes -------------------------------------------------------------------------

    def replay(self, agent: AEPO) -> plain.PlainReplay:
        """Return the agent's data for plain code."""
        return plain.PlainReplay.of(agent.data, self.device)

    def plain_noise_network(self, agent: AEPO) -> nn.Module:
        """Create a noise model of the agent's size."""
        state, action = (getattr(agent.data.transitions, key).shape[1] for key in ("state", "action"))
        d = agent.config.denoiser
        if isinstance(agent.behaviour.fit.module, NoiseMLP):
            return NoiseMLP(action, state, width=d.width, blocks=d.blocks).to(self.device)
        return qgpo.ScoreUNet(action, state, width=32 if self.setup.smoke else 512).to(self.device)

    def plain_energy_network(self, agent: AEPO) -> nn.Module:
        """Create an energy network of the agent's size."""
        state, action = (getattr(agent.data.transitions, key).shape[1] for key in ("state", "action"))
        e = agent.config.energy_network
        return EnergyMLP(action, state, width=e.width, layers=e.layers, activation=e.activation).to(self.device)

    def plain_critic(self, agent: AEPO, batch: int = 256) -> plain.PlainIQL:
        """Create twin critics and a value network of the agent's sizes."""
        state, action = (getattr(agent.data.transitions, key).shape[1] for key in ("state", "action"))
        wanted = {"lr", "expectile", "gamma", "polyak", "width", "layers", "activation", "layer_norm"}
        settings = agent.config.critic.model_dump(include=wanted)
        return plain.PlainIQL(state, action, self.replay(agent), batch=batch, **settings)

    def bounds(self, agent: AEPO) -> tuple[Tensor, Tensor]:
        """Return the range of the data's actions."""
        return agent.data.action_low, agent.data.action_high
