"""The online loop: a step in the environment, a refresh of the generator when due, and updates on batches of three shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from egd.checkpoint import group, prefixed
from egd.runs.phase import seed_of
from egd.training.learners import Fit, Metrics
from rl.data.transitions import Batch, OfflineData
from rl.online.config import OnlineConfig
from rl.online.generators.base import Generator
from rl.online.replay import Replay, joined
from rl.online.resumable_env import Array, ResumableEnv
from rl.parts.base import Part


class Stateful(Protocol):
    """Part of an agent that a checkpoint stores."""

    def state(self) -> dict[str, Tensor]:
        """Return everything that decides later updates, as flat tensors."""
        ...

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore the tensors returned by ``state``."""
        ...


class OnlineAgent(Protocol):
    """Agent that can go on learning in the environment."""

    data: OfflineData
    device: torch.device

    def explore(self, states: Tensor, generator: torch.Generator) -> Tensor:
        """Draw actions of the current policy for learning, in standardised states: (B, S) -> (B, A)."""
        ...

    def improve(self, batch: Batch, generator: torch.Generator) -> Metrics:
        """Update all networks once, and return metrics."""
        ...

    def fits(self) -> Sequence[Fit]:
        """Return the optimisers of an update."""
        ...

    def learned(self) -> Mapping[str, Stateful]:
        """Return, by name, everything that decides later updates."""
        ...


STREAMS = ("acting", "online")


class OnlineLearner(Part):
    """Loop of online fine-tuning.

    Online only, offline replay, generated and resampled replay, and EDIS differ only in the shares of ``config`` and in the
    generator. Action noise and draws of online rows have random streams of their own, by ``seed``, so that they are the same in
    all.
    """

    name = "online"
    reusable = False
    hook_first = True

    def __init__(
        self, agent: OnlineAgent, config: OnlineConfig, env: ResumableEnv, generator: Generator | None, *, seed: int = 0
    ) -> None:
        self.agent, self.config, self.env, self.generator = agent, config, env, generator
        self.steps = config.steps
        self.replay = Replay(config.steps, agent.data.transitions)
        streams = {name: torch.Generator(agent.device).manual_seed(seed_of(seed, f"online/{name}")) for name in STREAMS}
        self.streams = streams
        self.step = 0
        self._rates_fixed = False

    def parts(self) -> Sequence[Part]:
        """Return the parts that the generator trains offline, and the loop itself."""
        return [*([] if self.generator is None else self.generator.parts()), self]

    def update(self, generator: torch.Generator) -> Metrics:
        """Take a step in the environment, refresh the generator when due, update the agent, and return metrics."""
        self._fix_rates()
        metrics = self._act()
        since = self.step - self.config.start
        if since < 0:
            return metrics
        if self.generator is not None and since % self.config.refresh == 0:
            metrics |= {f"refresh_{k}": v for k, v in self.generator.refresh(self.replay, generator).items()}
        if since % self.config.update_every == 0:
            for _ in range(self.config.updates):
                metrics |= self.agent.improve(self.batch(generator), generator)
        return metrics

    def _fix_rates(self) -> None:
        """Fix the learning rates of the online phase, because decay has taken the offline rates to zero."""
        if not self._rates_fixed:
            self._rates_fixed = True
            for fit in self.agent.fits():
                fit.fix_rates(self.config.lr)

    @torch.no_grad()
    def _act(self) -> Metrics:
        state = self._standardised(self.env.observation)
        action = self.agent.explore(state, self.streams["acting"]).clamp(-1, 1)
        outcome = self.env.step(action[0].cpu().numpy().astype(np.float32))
        reward = torch.full((1,), self.agent.data.transformed(outcome.reward), device=self.agent.device)
        terminal = torch.full((1,), float(outcome.terminated), device=self.agent.device)
        self.replay.append(Batch(state, action, reward, self._standardised(outcome.observation), terminal))
        self.step += 1
        if outcome.finished is None:
            return {}
        return {"return": torch.tensor(outcome.finished, device=self.agent.device)}

    def _standardised(self, observation: Array) -> Tensor:
        row = torch.as_tensor(observation, dtype=torch.float32, device=self.agent.device)
        return self.agent.data.standardise(row[None])

    def batch(self, generator: torch.Generator) -> Batch:
        """Draw a batch of the three shares."""
        online, offline, generated = self.config.shares.rows(self.config.batch)
        if self.config.shares.pooled:
            parts = self._pooled(online + offline)
        else:
            parts = [self.replay.sample(online, self.streams["online"]), self.agent.data.sample(offline, generator)]
        if generated:
            assert self.generator is not None
            parts.append(self.generator.sample(generated, generator))
        return joined(*parts)

    def _pooled(self, n: int) -> list[Batch]:
        """Draw n of the online and the offline rows, uniformly with replacement."""
        stream, offline = self.streams["online"], self.agent.data.transitions
        index = torch.randint(len(offline) + len(self.replay), (n,), generator=stream, device=stream.device)
        return [offline[index[index < len(offline)]], self.replay.rows[index[index >= len(offline)] - len(offline)]]

    def state(self) -> dict[str, Tensor]:
        """Return the state of the agent, the replay, the environment and the generator, for a checkpoint."""
        found = {
            **prefixed("replay", self.replay.state()),
            **prefixed("env", self.env.state()),
            **{f"stream.{name}": stream.get_state() for name, stream in self.streams.items()},
            "step": torch.tensor(self.step),
        }
        for name, part in self.agent.learned().items():
            found |= prefixed(f"agent.{name}", part.state())
        if self.generator is not None:
            found |= prefixed("generator", self.generator.state())
            for name, module in self.generator.networks().items():
                found |= prefixed(f"network.{name}", module.state_dict())
        return found

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore the tensors returned by ``state``."""
        for name, part in self.agent.learned().items():
            part.load(group(f"agent.{name}", state))
        self.replay.load(group("replay", state))
        self.env.load(group("env", state))
        self.step = int(state["step"])
        for name, stream in self.streams.items():
            stream.set_state(state[f"stream.{name}"].cpu())
        if self.generator is not None:
            self.generator.load(group("generator", state))
            for name, module in self.generator.networks().items():
                module.load_state_dict(group(f"network.{name}", state))
