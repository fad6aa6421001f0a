"""Learners, which train one update at a time and keep everything that a killed run needs to continue bit for bit."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from typing_extensions import override

from egd.checkpoint import group, load_optimiser, optimiser_state, prefixed
from egd.contracts import energy_values
from egd.denoisers import Prediction, at_unit_scale, diffuse, prediction_loss
from egd.networks.mlp import EnergyNetwork
from egd.objectives.base import ObjectiveNetwork, is_dimensionless
from egd.training.precision import Computing
from egd.training.times import UNIFORM, Times
from egd.types import Context, HasLossNetworks, HasTargets, Objective, Sample, Schedule

Metrics: TypeAlias = dict[str, Tensor]


class Learner(Protocol):
    """Learner of one trained part. Its random numbers come from the generator that the caller keeps and checkpoints.

    Optional: ``computing`` (``HasComputing``) and ``training_only`` (``TrainingOnly``).
    """

    def update(self, generator: torch.Generator) -> Metrics:
        """Take one gradient step, and return the metrics, which stay on the device."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return everything that decides later updates, as flat tensors."""
        ...

    def load(self, state: dict[str, Tensor]) -> None:
        """Set everything from a ``state``."""
        ...


@runtime_checkable
class HasComputing(Protocol):
    """Learner whose steps can be taken in another precision, or compiled."""

    computing: Computing


@runtime_checkable
class TrainingOnly(Protocol):
    """Learner that says whether its result is used in training alone, so that a policy need not load it."""

    training_only: bool


def computing_of(learner: object) -> Computing:
    """Return the precision of a learner's steps, float32 where it does not say."""
    return learner.computing if isinstance(learner, HasComputing) else Computing()


def is_training_only(learner: object) -> bool:
    """Tell whether a learner's result is used in training alone."""
    return isinstance(learner, TrainingOnly) and learner.training_only


def train(learner: Learner, steps: int, generator: torch.Generator) -> Metrics:
    """Take ``steps`` updates, and return the metrics of the last; {} for no update."""
    metrics: Metrics = {}
    for _ in range(steps):
        metrics = learner.update(generator)
    return metrics


def moving_average(module: nn.Module, decay: float) -> AveragedModel:
    """Make an exponential moving average of a module's parameters; its first update copies them."""
    return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class EMA:
    """Exponential moving average of a part of the fitted module."""

    average: AveragedModel
    part: nn.Module
    decay: float


class Fit:
    """Module with Adam, an optional cosine decay to zero over ``steps``, gradient clipping and an optional moving average.

    ``rates`` are learning rates of the module's children by name, where they differ from ``lr``.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        lr: float,
        steps: int,
        decay: bool = False,
        ema: float = 0.0,
        clip: float = 0.0,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        self.module, self.lr, self.steps, self.decay, self.clip = module, lr, steps, decay, clip
        self.optimiser = torch.optim.Adam(_groups(module, lr, rates or {}), fused=True)
        self.ema_modules: list[EMA] = []
        self.average = self.follow(module, ema) if ema else None
        self.step, self.cycles = 0, 1

    def follow(self, part: nn.Module, decay: float) -> AveragedModel:
        """Return a moving average of a part of the module that every step updates; its first update copies the part."""
        average = moving_average(part, decay)
        self.ema_modules.append(EMA(average, part, decay))
        return average

    @property
    def model(self) -> nn.Module:
        """Network to use: the moving average where there is one, else the module."""
        return self.average.module if self.average is not None else self.module

    def parameters(self) -> list[nn.Parameter]:
        """List the fitted parameters, in the optimiser's order."""
        return [p for settings in self.optimiser.param_groups for p in settings["params"]]

    @property
    def device(self) -> torch.device:
        """Device of the module."""
        return self.parameters()[0].device

    def fix_rates(self, lr: float | None) -> None:
        """Fix the learning rates from now on, without decay; if ``lr`` is given, scale them so that the largest is ``lr``."""
        self.decay = False
        largest = max(settings["initial_lr"] for settings in self.optimiser.param_groups)
        for settings in self.optimiser.param_groups:
            settings["initial_lr"] *= 1 if lr is None else lr / largest
            settings["lr"] = settings["initial_lr"]

    def descend(self, loss: Tensor) -> None:
        """Take one step down the gradient of the loss ()."""
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.step_down()

    def step_down(self) -> None:
        """Take one step down the gradients that the parameters hold."""
        self.set_rate(self.optimiser)
        if self.clip:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.clip)
        self.optimiser.step()
        for follower in self.ema_modules:
            follower.average.update_parameters(follower.part)
        self.step += 1

    def set_rate(self, optimiser: torch.optim.Optimizer) -> None:
        """Set the learning rates of this step; the decay begins anew in each of ``cycles`` equal parts of the steps."""
        if self.decay:
            length = max(1, -(-self.steps // self.cycles))
            done = self.step % length if self.step < self.steps else length
            share = 0.5 * (1 + math.cos(math.pi * done / length))
            for settings in optimiser.param_groups:
                settings["lr"] = settings["initial_lr"] * share

    def state(self) -> dict[str, Tensor]:
        """Return weights, moving average, optimiser and step count as flat tensors."""
        average = {} if self.average is None else prefixed("average", self.average.state_dict())
        return {
            **prefixed("module", self.module.state_dict()),
            **prefixed("optimiser", optimiser_state(self.optimiser)),
            **average,
            "step": torch.tensor(self.step),
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Set everything from a ``state``."""
        self.module.load_state_dict(group("module", state))
        load_optimiser(self.optimiser, group("optimiser", state))
        if self.average is not None:
            self.average.load_state_dict(group("average", state))
        self.step = int(state["step"])


def _groups(module: nn.Module, lr: float, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return the optimiser's parameter groups, by learning rate, in the module's order."""
    found: dict[float, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        found.setdefault(rates.get(name.partition(".")[0], lr), []).append(parameter)
    return [{"params": parameters, "lr": rate, "initial_lr": rate} for rate, parameters in found.items()]


class StepLearner(ABC):
    """Learner whose step is a draw, a loss and a descent.

    All random numbers come in the draw, so that the rest can be compiled, captured, or done for many runs at once
    (``egd.training.batched``).
    """

    fit: Fit
    computing: Computing = Computing()
    batchable: bool = True
    """Whether nothing but draws comes between its steps, so that several runs can take them together."""

    @abstractmethod
    def draw(self, generator: torch.Generator) -> Any:
        """Draw all that is random in a step, as tensors in tuples, mappings or the like."""

    @abstractmethod
    def loss(self, drawn: Any) -> tuple[Tensor, Metrics]:
        """Compute the loss () to descend, and the metrics, detached."""

    def loss_networks(self) -> dict[str, nn.Module]:
        """Return the modules, beside the fitted one, whose tensors the loss uses and which differ between runs."""
        return {}

    def begin(self, drawn: Any) -> None:  # noqa: B027
        """Set what depends on the first draw of all."""

    def update(self, generator: torch.Generator) -> Metrics:
        """Take one step, and return the metrics."""
        drawn = self.draw(generator)
        if self.fit.step == 0:
            self.begin(drawn)
        with self.computing.autocast(self.fit.device):
            loss, metrics = self.loss(drawn)
        self.fit.descend(loss)
        return metrics

    def state(self) -> dict[str, Tensor]:
        """Return everything that decides later updates, as flat tensors."""
        return self.fit.state()

    def load(self, state: dict[str, Tensor]) -> None:
        """Set everything from a ``state``."""
        self.fit.load(state)


Noised: TypeAlias = tuple[Tensor, Context, Tensor, Tensor]
"""Draw of x_0 (B, ...), c, t (B,) and noise (B, ...): x_t is ``diffuse(schedule, x_0, t, noise)``."""


def draw_noised(sample: Sample, batch: int, times: Times, generator: torch.Generator) -> Noised:
    """Draw a batch of data with times and standard normal noise.

    It has as many rows as ``sample`` returns, which may differ from ``batch``.
    """
    x0, c = sample(batch, generator)
    t = times(len(x0), generator)
    return x0, c, t, torch.randn(x0.shape, generator=generator, device=x0.device)


class DenoiserLearner(StepLearner):
    """Learner of a denoiser, by the denoising loss of its network's prediction type (for noise AEPO Algorithm 1, first part).

    ``weights`` (x_0, c) -> (B,) weights the data, and the denoiser is that of the weighted data (energy-weighted training). See
    ``prediction_loss``. The metric ``loss`` is the mean over dimensions: 1 for a noise model that predicts nothing.
    """

    def __init__(
        self,
        fit: Fit,
        schedule: Schedule,
        sample: Sample,
        *,
        batch: int,
        prediction: Prediction = "epsilon",
        weights: Callable[[Tensor, Context], Tensor] | None = None,
        times: Times = UNIFORM,
    ) -> None:
        self.fit, self.schedule, self.sample, self.batch = fit, schedule, sample, batch
        self.prediction, self.weights, self.times = prediction, weights, times

    @override
    def draw(self, generator: torch.Generator) -> Noised:
        return draw_noised(self.sample, self.batch, self.times, generator)

    @override
    def loss(self, drawn: Noised) -> tuple[Tensor, Metrics]:
        x0, c, t, noise = drawn
        weight = None if self.weights is None else energy_values(self.weights, x0, c).detach()
        loss = prediction_loss(self.fit.module, self.schedule, x0, t, noise, c, self.prediction, weight)
        return loss, {"loss": loss.detach() / x0[0].numel()}


class EnergyLearner(StepLearner):
    """Learner of an energy network, by an objective (AEPO Algorithm 1, last part).

    The first batch's targets set the network's output scale, and a loss with a unit is divided by the square of that scale. Use
    the network as ``at_unit_scale(network, schedule)`` where the schedule has an ``input_scale``, because it is trained so.
    ``fresh`` is false for a network that has been trained before; its output scale is then left alone.
    """

    def __init__(
        self,
        fit: Fit,
        schedule: Schedule,
        sample: Sample,
        objective: Objective,
        *,
        batch: int,
        times: Times = UNIFORM,
        fresh: bool = True,
    ) -> None:
        self.fit, self.schedule, self.sample, self.objective = fit, schedule, sample, objective
        self.batch, self.times, self.fresh = batch, times, fresh
        self._generator = torch.Generator()

    @override
    def draw(self, generator: torch.Generator) -> Noised:
        self._generator = generator
        return draw_noised(self.sample, self.batch, self.times, generator)

    @override
    def begin(self, drawn: Noised) -> None:
        x0, c, t, noise = drawn
        network, objective = self.fit.module, self.objective
        if self.fresh and isinstance(objective, HasTargets) and isinstance(network, EnergyNetwork):
            network.standardise(objective.targets(x0, diffuse(self.schedule, x0, t, noise), t, c))

    @override
    def loss(self, drawn: Noised) -> tuple[Tensor, Metrics]:
        x0, c, t, noise = drawn
        x = diffuse(self.schedule, x0, t, noise)
        module = self.fit.module
        network = at_unit_scale(module.network if isinstance(module, ObjectiveNetwork) else module, self.schedule)
        loss, metrics = self.objective.loss(network, x0, x, t, c, self._generator)
        if not is_dimensionless(self.objective):
            loss = loss / self.scale**2
        return loss, {"loss": loss.detach(), **metrics}

    @override
    def loss_networks(self) -> dict[str, nn.Module]:
        return self.objective.loss_networks() if isinstance(self.objective, HasLossNetworks) else {}

    @property
    def scale(self) -> Tensor | float:
        """Output scale of the network; losses with a unit are reported and descended in its square."""
        return self.fit.module.scale if isinstance(self.fit.module, EnergyNetwork) else 1.0
