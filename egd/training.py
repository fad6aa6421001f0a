"""Learners: what is trained, one update at a time, with everything that a killed run needs to go on bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from egd.checkpoint import group, load_optimiser, optimiser_state, prefixed
from egd.denoisers import diffuse, eps_loss, random_times
from egd.networks import EnergyMLP
from egd.types import Context, Schedule, TimedEnergy

Sample: TypeAlias = Callable[[int, torch.Generator], tuple[Tensor, Context]]
"""(n, generator) -> n data points (n, ...) and their contexts."""

Metrics: TypeAlias = dict[str, Tensor]


class Learner(Protocol):
    """One trained part. Its random numbers come from the generator that the caller keeps and checkpoints."""

    def update(self, generator: torch.Generator) -> Metrics:
        """One gradient step; the metrics stay on the device."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything that decides later updates, as flat tensors."""
        ...

    def load(self, state: dict[str, Tensor]) -> None:
        """The inverse of ``state``."""
        ...


class Objective(Protocol):
    """A loss for an energy network; see ``egd.objectives``."""

    def loss(self, network: TimedEnergy, x0: Tensor, x: Tensor, t: Tensor, c: Context) -> tuple[Tensor, Metrics]:
        """The loss () and metrics; x0 and x (B, ...), t (B,)."""
        ...


def moving_average(module: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of a module's parameters; its first update copies them."""
    return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]


class Fit:
    """A module with Adam, an optional cosine decay to zero over ``steps``, gradient clipping and an optional
    exponential moving average.
    """

    def __init__(
        self, module: nn.Module, *, lr: float, steps: int, decay: bool = False, ema: float = 0.0, clip: float = 0.0
    ) -> None:
        self.module, self.lr, self.steps, self.decay, self.clip = module, lr, steps, decay, clip
        self.optimiser = torch.optim.Adam(module.parameters(), lr=lr, fused=True)
        self.average = moving_average(module, ema) if ema else None
        self.step = 0

    @property
    def model(self) -> nn.Module:
        """The network to use: the average where there is one."""
        return self.average.module if self.average is not None else self.module

    def descend(self, loss: Tensor) -> None:
        """One step down the loss ()."""
        if self.decay:
            for settings in self.optimiser.param_groups:
                settings["lr"] = self.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, self.step / max(1, self.steps))))
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if self.clip:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.clip)
        self.optimiser.step()
        if self.average is not None:
            self.average.update_parameters(self.module)
        self.step += 1

    def state(self) -> dict[str, Tensor]:
        """Weights, average, optimiser and step count."""
        average = {} if self.average is None else prefixed("average", self.average.state_dict())
        return {
            **prefixed("module", self.module.state_dict()),
            **prefixed("optimiser", optimiser_state(self.optimiser)),
            **average,
            "step": torch.tensor(self.step),
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """The inverse of ``state``."""
        self.module.load_state_dict(group("module", state))
        load_optimiser(self.optimiser, group("optimiser", state))
        if self.average is not None:
            self.average.load_state_dict(group("average", state))
        self.step = int(state["step"])


class DenoiserLearner:
    """Trains a noise model on the eps-loss (AEPO Algorithm 1, first part)."""

    def __init__(self, fit: Fit, schedule: Schedule, sample: Sample, *, batch: int, t_min: float = 1e-3) -> None:
        self.fit, self.schedule, self.sample, self.batch, self.t_min = fit, schedule, sample, batch, t_min
        self.state, self.load = fit.state, fit.load

    def update(self, generator: torch.Generator) -> Metrics:
        """One step; the loss is the mean over dimensions, 1 for a model that predicts nothing."""
        x0, c = self.sample(self.batch, generator)
        t = random_times(self.batch, self.t_min, generator)
        noise = torch.randn(x0.shape, generator=generator, device=x0.device)
        loss = eps_loss(self.fit.module, self.schedule, x0, t, noise, c)
        self.fit.descend(loss)
        return {"loss": loss.detach() / x0[0].numel()}


class EnergyLearner:
    """Trains an energy network on an objective (AEPO Algorithm 1, last part)."""

    def __init__(
        self, fit: Fit, schedule: Schedule, sample: Sample, objective: Objective, *, batch: int, t_min: float = 1e-3
    ) -> None:
        self.fit, self.schedule, self.sample, self.objective = fit, schedule, sample, objective
        self.batch, self.t_min = batch, t_min
        self.state, self.load = fit.state, fit.load

    def update(self, generator: torch.Generator) -> Metrics:
        """One step; the network's output scale is set from the first batch's targets."""
        x0, c = self.sample(self.batch, generator)
        t = random_times(self.batch, self.t_min, generator)
        noise = torch.randn(x0.shape, generator=generator, device=x0.device)
        x = diffuse(self.schedule, x0, t, noise)
        if self.fit.step == 0 and isinstance(self.fit.module, EnergyMLP):
            self._standardise(x0, x, t, c)
        loss, metrics = self.objective.loss(self.fit.module, x0, x, t, c)
        self.fit.descend(loss / self.scale**2)
        return {"loss": loss.detach() / self.scale**2, **metrics}

    @property
    def scale(self) -> Tensor | float:
        """The network's output scale: losses are reported and descended in these units."""
        return self.fit.module.scale if isinstance(self.fit.module, EnergyMLP) else 1.0

    def _standardise(self, x0: Tensor, x: Tensor, t: Tensor, c: Context) -> None:
        target = getattr(self.objective, "target", None)
        if target is not None and isinstance(self.fit.module, EnergyMLP):
            self.fit.module.standardise(target(x0, x, t, c))
